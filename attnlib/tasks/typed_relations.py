"""Two names and a sentence: of what kind are they, and which relation holds between them?"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from attnlib.tasks.task import Task, check_sizes, generator_from

KINDS = ("person", "firm", "place")
RELATIONS = ("none", "works for", "born in", "based in")
SIGNATURES = {1: (0, 1), 2: (0, 2), 3: (1, 2)}  # relation: kinds of its first and second name

ALLOWED = torch.zeros(len(RELATIONS), len(KINDS), len(KINDS), dtype=torch.bool)
"""ALLOWED[r, a, b]: relation r may hold between a name of kind a and one of kind b."""
ALLOWED[0] = True
for _relation, _kinds in SIGNATURES.items():
    ALLOWED[_relation, *_kinds] = True


class RelationBatch(NamedTuple):
    """tokens (two names, then the words around them), targets (relation), kinds of the names."""

    tokens: Int[Tensor, "B two_plus_N"]
    targets: Int[Tensor, " B"]
    kinds: Int[Tensor, "B 2"]


@dataclass(frozen=True)
class TypedRelations(Task):
    """One cue word among the words around two names tells the relation.

    A share `unsure` of the names are the unknown name, which is of any kind, and of the cues of
    "born in" and "based in" a cue that serves both. Where nothing is unsure, a name tells its
    kind and the cue its relation. Without a relation the kinds are drawn freely.
    """

    each: int = 9
    fillers: int = 20
    length: int = 8
    unsure: float = 0.3

    def __post_init__(self):
        check_sizes(each=self.each, fillers=self.fillers, length=self.length)
        if not 0 <= self.unsure <= 1:
            raise ValueError(f"unsure must lie in [0, 1], got {self.unsure}")

    @property
    def unknown_name(self) -> int:
        """The token after the known names; fillers and cues follow it."""
        return len(KINDS) * self.each

    @property
    def first_cue(self) -> int:
        """The cue of relation r is first_cue + r; the cue that serves two is the last."""
        return self.unknown_name + 1 + self.fillers

    @property
    def words(self) -> int:
        """How many tokens there are."""
        return self.first_cue + len(RELATIONS) + 1

    def batch(self, size: int, seed: int | torch.Generator) -> RelationBatch:
        """Sentences with a relation drawn evenly, "none" included."""
        generator = generator_from(seed)

        def below(limit: int, *shape: int) -> Tensor:
            return torch.randint(limit, (size, *shape), generator=generator)

        def chance(*shape: int) -> Tensor:
            return torch.rand(size, *shape, generator=generator) < self.unsure

        relation, kinds = below(len(RELATIONS)), below(len(KINDS), 2)
        for number, signature in SIGNATURES.items():
            kinds[relation == number] = torch.tensor(signature)
        names = (kinds * self.each + below(self.each, 2)).masked_fill(chance(2), self.unknown_name)
        cue = relation.masked_fill((relation >= 2) & chance(), len(RELATIONS)) + self.first_cue
        words = self.unknown_name + 1 + below(self.fillers, self.length)
        words.scatter_(1, below(self.length, 1), cue[:, None])
        return RelationBatch(torch.cat((names, words), dim=1), relation, kinds)
