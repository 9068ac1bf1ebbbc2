"""What all tasks share: batches from a seed, and targets that are not asked for."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

IGNORE = -100
"""The target of a position that is not asked for (PyTorch's own convention)."""


class TokenBatch(NamedTuple):
    """Sequences, and at each position the token to be answered there, or IGNORE."""

    tokens: Int[Tensor, "batch N"]
    targets: Int[Tensor, "batch N"]


class Task(ABC):
    """A source of labeled data: the same seed gives the same batches."""

    @abstractmethod
    def batch(self, size: int, seed: int | torch.Generator) -> tuple[Tensor, ...]:
        """One batch of `size` examples: a named tuple, inputs first."""

    def batches(self, size: int, seed: int | torch.Generator) -> Iterator[tuple[Tensor, ...]]:
        """Fresh batches without end."""
        generator = generator_from(seed)
        while True:
            yield self.batch(size, generator)


def generator_from(seed: int | torch.Generator) -> torch.Generator:
    """A generator that starts at `seed`, or the one that was given."""
    if isinstance(seed, torch.Generator):
        return seed
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an int or a torch.Generator, got {type(seed).__name__}")
    return torch.Generator().manual_seed(seed)


def distinct(size: int, count: int, among: int, generator: torch.Generator) -> Tensor:
    """For each of `size` rows, `count` different numbers below `among`, in random order."""
    return torch.rand(size, among, generator=generator).argsort(-1)[:, :count]


def check_sizes(**sizes: int) -> None:
    """Raise unless every size is an int of at least 1."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"{name} must be an int, got {type(size).__name__}")
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
