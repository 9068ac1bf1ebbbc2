"""Two documents about the same people: a gap in the second is filled by reading the first.

Tokens 0 ... roles * people - 1 are facts: fact r * people + p says "the role r is played by person
p". The next `roles` tokens are gaps: gap r says "the role r is played by ...". Then come the words
and the mark between the documents.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from attnlib.tasks.task import IGNORE, Task, check_sizes, distinct, generator_from


class ClozeBatch(NamedTuple):
    """Both documents in one row, the person that stood at each gap, and where the gaps are."""

    tokens: Int[Tensor, "batch N"]
    targets: Int[Tensor, "batch N"]
    is_gap: Bool[Tensor, "batch N"]


@dataclass(frozen=True)
class TwoDocuments(Task):
    """words fact words ... mark ... words gap words: who plays the role of the gap?

    The first document holds `facts` facts about different roles and people, among words at random.
    The second holds `gaps` of them with the person masked; the target of a gap is the person, a
    number below `people`. With `told=True` the second document says it too: the fact stands right
    behind its gap.
    Shapes: tokens, targets and is_gap (batch, 2 document + 1); the documents are `document` long.
    Source of the idea: Caciularu et al. (2021), section 2.
    """

    document: int = 20
    facts: int = 4
    gaps: int = 4
    people: int = 8
    roles: int = 8
    words: int = 16
    told: bool = False

    def __post_init__(self):
        check_sizes(
            document=self.document,
            facts=self.facts,
            gaps=self.gaps,
            people=self.people,
            roles=self.roles,
            words=self.words,
        )
        for name, size, least in (
            ("facts", self.facts, self.gaps),
            ("roles", self.roles, self.facts),
            ("people", self.people, self.facts),
            ("document", self.document, 2 * self.facts),
        ):
            if size < least:
                raise ValueError(f"{name} must be at least {least}, got {size}")

    @property
    def length(self) -> int:
        """Places in a row: two documents and the mark between them."""
        return 2 * self.document + 1

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return self.people * self.roles + self.roles + self.words + 1

    @property
    def mark(self) -> int:
        """The token between the documents."""
        return self.vocabulary - 1

    @property
    def chance(self) -> float:
        """Accuracy of guessing any person."""
        return 1 / self.people

    @property
    def unbound(self) -> float:
        """Accuracy of knowing who is named, but not with which role."""
        return 1 / self.facts

    @property
    def optimum(self) -> float:
        """Accuracy of reading the person behind the role."""
        return 1.0

    def batch(self, size: int, seed: int | torch.Generator) -> ClozeBatch:
        """Pairs of documents; the same people and roles, other words."""
        generator = generator_from(seed)
        first_gap = self.people * self.roles
        first_word = first_gap + self.roles
        tokens = torch.randint(
            first_word, first_word + self.words, (size, self.length), generator=generator
        )
        tokens[:, self.document] = self.mark
        person = distinct(size, self.facts, self.people, generator)
        role = distinct(size, self.facts, self.roles, generator)
        fact = role * self.people + person
        tokens.scatter_(1, distinct(size, self.facts, self.document, generator), fact)
        asked = self.document + 1 + 2 * distinct(size, self.gaps, self.document // 2, generator)
        tokens.scatter_(1, asked, first_gap + role[:, : self.gaps])
        if self.told:
            tokens.scatter_(1, asked + 1, fact[:, : self.gaps])
        targets = torch.full_like(tokens, IGNORE)
        targets.scatter_(1, asked, person[:, : self.gaps])
        return ClozeBatch(tokens, targets, self.is_gap(tokens))

    def is_gap(self, tokens: Int[Tensor, "batch N"]) -> Bool[Tensor, "batch N"]:
        """Where a person is masked."""
        first = self.people * self.roles
        return (tokens >= first) & (tokens < first + self.roles)
