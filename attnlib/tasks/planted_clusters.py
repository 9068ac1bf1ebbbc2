"""Planted clusters: tokens of a few kinds, of which each kind has one hidden value to be told.

Token (kind, shown value) shows the value of its kind; token (kind, ?) asks for it. What a question
needs is any earlier token of its kind that shows, and nothing else: where the kinds are mixed,
that is far away, and where they stand in runs it is near.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from attnlib.choices import check_choice
from attnlib.tasks.task import IGNORE, Task, TokenBatch, check_sizes, generator_from

ARRANGEMENTS = ("interleaved", "contiguous")


@dataclass(frozen=True)
class PlantedClusters(Task):
    """Which value has my kind? Every kind has length / kinds tokens in a sequence.

    In each sequence every kind draws a value. Its first `shown` tokens show it, its others ask, and
    their target is the value. `arrangement` is "interleaved" (all tokens in random order) or
    "contiguous" (each kind in one run, the runs in random order).
    Token kind * (values + 1) + v shows value v, kind * (values + 1) + values asks.
    Shapes: tokens and targets (batch, length).
    """

    length: int = 144
    kinds: int = 12
    values: int = 8
    shown: int = 2
    arrangement: str = "interleaved"

    def __post_init__(self):
        check_sizes(length=self.length, kinds=self.kinds, values=self.values, shown=self.shown)
        check_choice("arrangement", self.arrangement, ARRANGEMENTS)
        if self.length % self.kinds:
            raise ValueError(f"kinds must divide length {self.length}, got {self.kinds}")
        if self.shown >= self.length // self.kinds:
            raise ValueError(
                f"shown must be less than the {self.length // self.kinds} tokens of a kind, "
                f"got {self.shown}"
            )

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return self.kinds * (self.values + 1)

    @property
    def chance(self) -> float:
        """Accuracy of guessing any value."""
        return 1 / self.values

    @property
    def optimum(self) -> float:
        """Accuracy of reading the value that was shown."""
        return 1.0

    def batch(self, size: int, seed: int | torch.Generator) -> TokenBatch:
        """Examples in which every kind asks length / kinds - shown times."""
        generator = generator_from(seed)
        kind = arranged(self, size, generator)
        value = torch.randint(self.values, (size, self.kinds), generator=generator)
        own = value.gather(1, kind)
        asks = nth_of_its_kind(kind, self.kinds) >= self.shown
        tokens = kind * (self.values + 1) + torch.where(asks, self.values, own)
        return TokenBatch(tokens, own.masked_fill(~asks, IGNORE))

    def kind_of(self, tokens: Tensor) -> Tensor:
        """The kind of each token."""
        return tokens // (self.values + 1)

    def shows(self, tokens: Tensor) -> Tensor:
        """Whether a token shows the value of its kind."""
        return tokens % (self.values + 1) < self.values


@dataclass(frozen=True)
class NoisyClusters(Task):
    """What is the value of my kind, if every token shows it with some chance to be wrong?

    Every kind has length / kinds tokens. In each sequence every kind draws a value; each token
    shows it with the chance `truth`, and any value otherwise. All tokens ask: to answer, a token
    reads as many tokens of its kind as it may. `arrangement` as in `PlantedClusters`.
    Token kind * values + v shows v. Shapes: tokens and targets (batch, length).
    """

    length: int = 64
    kinds: int = 8
    values: int = 8
    truth: float = 0.5
    arrangement: str = "interleaved"

    def __post_init__(self):
        check_sizes(length=self.length, kinds=self.kinds, values=self.values)
        check_choice("arrangement", self.arrangement, ARRANGEMENTS)
        if self.length % self.kinds:
            raise ValueError(f"kinds must divide length {self.length}, got {self.kinds}")
        if not 0 <= self.truth <= 1:
            raise ValueError(f"truth must lie between 0 and 1, got {self.truth}")

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return self.kinds * self.values

    @property
    def alone(self) -> float:
        """Accuracy of answering with the value that the token itself shows."""
        return self.truth + (1 - self.truth) / self.values

    def batch(self, size: int, seed: int | torch.Generator) -> TokenBatch:
        """Examples in which every token asks."""
        generator = generator_from(seed)
        kind = arranged(self, size, generator)
        value = torch.randint(self.values, (size, self.kinds), generator=generator)
        own = value.gather(1, kind)
        other = torch.randint(self.values, own.shape, generator=generator)
        honest = torch.rand(own.shape, generator=generator) < self.truth
        return TokenBatch(kind * self.values + torch.where(honest, own, other), own)

    def kind_of(self, tokens: Tensor) -> Tensor:
        """The kind of each token."""
        return tokens // self.values


def arranged(
    task: PlantedClusters | NoisyClusters, size: int, generator: torch.Generator
) -> Tensor:
    """The kind of each place, (size, length): all mixed, or in one run for each kind."""
    if task.arrangement == "contiguous":
        runs = torch.rand(size, task.kinds, generator=generator).argsort(-1)
        return runs.repeat_interleave(task.length // task.kinds, dim=-1)
    return torch.rand(size, task.length, generator=generator).argsort(-1) % task.kinds


def nth_of_its_kind(kind: Tensor, kinds: int) -> Tensor:
    """How many earlier places of a sequence have the same kind."""
    member = torch.nn.functional.one_hot(kind, kinds)
    return (member.cumsum(1) - member).gather(-1, kind[..., None])[..., 0]
