"""Pairs of sentences, few of which are paraphrases: other words, other order, same meaning."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from attnlib.tasks.task import Task, check_sizes, distinct, generator_from


class SentencePairs(NamedTuple):
    """tokens of both sentences, and targets 1 (paraphrase) or 0."""

    tokens: Int[Tensor, "B 2 N"]
    targets: Int[Tensor, " B"]


@dataclass(frozen=True)
class Paraphrases(Task):
    """Each meaning m has two synonyms, the words 2 m and 2 m + 1; no meaning occurs twice.

    The second sentence of a paraphrase has the meanings of the first, in random order and with
    synonyms drawn anew. The second sentence of any other pair keeps half of the meanings
    (rounded down) and replaces the rest.
    """

    length: int = 6
    meanings: int = 30
    share: float = 0.05

    def __post_init__(self):
        check_sizes(length=self.length, meanings=self.meanings)
        if self.meanings < 2 * self.length:
            raise ValueError(
                f"meanings must be at least twice the length, {2 * self.length}, "
                f"got {self.meanings}"
            )
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must lie in [0, 1], got {self.share}")

    @property
    def words(self) -> int:
        """How many words there are."""
        return 2 * self.meanings

    def batch(self, size: int, seed: int | torch.Generator) -> SentencePairs:
        """Pairs of which a share `share` are paraphrases, on average."""
        generator = generator_from(seed)
        drawn = distinct(size, 2 * self.length, self.meanings, generator)
        first, other = drawn[:, : self.length], drawn[:, self.length :]
        same = torch.rand(size, generator=generator) < self.share
        kept = torch.arange(self.length) < self.length // 2
        second = torch.where(same[:, None] | kept, first, other)
        order = distinct(size, self.length, self.length, generator)
        pair = torch.stack((first, second.gather(1, order)), dim=1)
        synonym = torch.randint(2, pair.shape, generator=generator)
        return SentencePairs(2 * pair + synonym, same.long())
