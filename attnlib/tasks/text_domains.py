"""Texts of several domains: each has words, a table and a distance of its own."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attnlib.tasks.task import Task, check_sizes, generator_from


class DomainBatch(NamedTuple):
    """Windows of text with the next words as targets, the chance of each target, the domain."""

    tokens: Int[Tensor, "batch N"]
    targets: Int[Tensor, "batch N"]
    probabilities: Float[Tensor, "batch N"]
    domain: Int[Tensor, " batch"]


@dataclass(frozen=True)
class TextDomains(Task):
    r"""In domain d the word that decides the next one stands `distances[d]` places before it.

    .. math:: p_d(t_{i+1} \mid t_1 \ldots t_i) = P_d[t_{i+1-\ell_d},\; t_{i+1}]

    A domain uses `shared` words that all domains have and `own` words that no other has; its table
    P_d over them is drawn once, from `table_seed`, as that of `Markov`. So two domains differ in
    what an attention layer must look at (the distance) and in what follows from it (the table).
    Each window is of one domain, and nothing names it; the first words are any of the domain's with
    the same chance. With `only` all windows are of that domain.
    Shapes: tokens and targets (batch, length).
    """

    length: int = 48
    shared: int = 16
    own: int = 8
    distances: tuple[int, ...] = (1, 2, 3)
    table_seed: int = 0
    only: int | None = None

    def __post_init__(self):
        check_sizes(length=self.length, shared=self.shared, own=self.own)
        if not self.distances:
            raise ValueError("distances must hold one distance for each domain, got none")
        for distance in self.distances:
            check_sizes(distances=distance)
        if self.only is not None and self.only not in range(self.domains):
            raise ValueError(f"only must be None or in 0 ... {self.domains - 1}, got {self.only}")

    @property
    def domains(self) -> int:
        """How many domains there are."""
        return len(self.distances)

    @property
    def vocabulary(self) -> int:
        """How many words all domains have together."""
        return self.shared + self.domains * self.own

    @property
    def tables(self) -> Float[Tensor, "domains vocabulary vocabulary"]:
        """P: for each domain the chance of each word, given the word that decides it.

        The rows of words that a domain does not use are zero.
        """
        generator = torch.Generator().manual_seed(self.table_seed)
        tables = torch.zeros(self.domains, self.vocabulary, self.vocabulary)
        for domain, table in enumerate(tables):
            words = self.words(domain)
            logits = 2 * torch.randn(len(words), len(words), generator=generator)
            table[words[:, None], words] = torch.softmax(logits, -1)
        return tables

    def words(self, domain: int) -> Int[Tensor, " words"]:
        """The words of a domain: the shared ones, then its own."""
        start = self.shared + domain * self.own
        return torch.cat((torch.arange(self.shared), torch.arange(start, start + self.own)))

    def of(self, domain: int) -> "TextDomains":
        """The texts of one domain alone."""
        return replace(self, only=domain)

    def batch(self, size: int, seed: int | torch.Generator) -> DomainBatch:
        """Windows of fresh text."""
        generator, tables = generator_from(seed), self.tables
        domain = torch.randint(self.domains, (size,), generator=generator)
        if self.only is not None:
            domain = torch.full_like(domain, self.only)
        words = torch.stack([self.words(d) for d in range(self.domains)])
        back = torch.tensor(self.distances)[domain]
        first = max(self.distances)
        start = torch.randint(self.shared + self.own, (size, first), generator=generator)
        tokens = words[domain].gather(1, start)
        for place in range(first, first + self.length + 1):
            deciding = tokens.gather(1, (place - back)[:, None])[:, 0]
            following = torch.multinomial(tables[domain, deciding], 1, generator=generator)
            tokens = torch.cat((tokens, following), dim=1)
        deciding = (torch.arange(first + 1, first + self.length + 1) - back[:, None]).clamp(min=0)
        now, then = tokens[:, first:-1], tokens[:, first + 1 :]
        chances = tables[domain[:, None], tokens.gather(1, deciding), then]
        return DomainBatch(now, then, chances, domain)


def best_loss(batch: DomainBatch) -> float:
    """The loss of a reader who knows the tables and the domain: the mean of -log p (nats).

    The words before the window count as known to that reader.
    """
    return float(-batch.probabilities.log().mean())
