"""Short texts in which an attribute, given beside the text, decides which word counts."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from attnlib.tasks.task import Task, check_sizes, distinct, generator_from


class AdBatch(NamedTuple):
    """tokens (attribute first, then one word of each kind), targets, place of the word."""

    tokens: Int[Tensor, "B one_plus_N"]
    targets: Int[Tensor, " B"]
    place: Int[Tensor, " B"]


@dataclass(frozen=True)
class AdTexts(Task):
    """A text has one word of each of `kinds` kinds, in random order; attribute k asks for kind k.

    Words 0 ... kinds * each - 1; word w is of kind w % kinds. The target, 0 or 1, is a fixed
    property of the word that counts: (w // kinds) % 2. Token 0 of the input is the attribute.
    """

    kinds: int = 3
    each: int = 10

    def __post_init__(self):
        check_sizes(kinds=self.kinds, each=self.each)

    @property
    def words(self) -> int:
        """How many words there are."""
        return self.kinds * self.each

    def batch(self, size: int, seed: int | torch.Generator) -> AdBatch:
        """Texts with an attribute drawn evenly."""
        generator = generator_from(seed)
        number = torch.randint(self.each, (size, self.kinds), generator=generator)
        kind = distinct(size, self.kinds, self.kinds, generator)
        attribute = torch.randint(self.kinds, (size, 1), generator=generator)
        place = (kind == attribute).int().argmax(-1)
        target = number.gather(1, place[:, None])[:, 0] % 2
        return AdBatch(torch.cat((attribute, number * self.kinds + kind), dim=1), target, place)
