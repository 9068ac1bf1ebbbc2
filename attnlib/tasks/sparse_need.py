"""Texts in which most tokens need their neighbors only, and a few need one token far back.

Tokens 0 ... keys * values - 1 are facts: fact k * values + v says "the value of k is v". The next
`keys` tokens are questions, the last `values` tokens are words. How far a question reaches hangs on
its key, as a pronoun and a name differ in how far back they point: keys are dealt out evenly to the
`reaches`.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from attnlib.tasks.task import IGNORE, Task, check_sizes, generator_from


class NeedBatch(NamedTuple):
    """Sequences, the answer at each place or IGNORE, and how far back the answer stands."""

    tokens: Int[Tensor, "batch N"]
    targets: Int[Tensor, "batch N"]
    distance: Int[Tensor, "batch N"]
    """0 where nothing is asked; with the last W keys in view an answer at distance < W is seen."""


@dataclass(frozen=True)
class SparseNeed(Task):
    """word word fact word ... question word: repeat the word before you, or the value asked for.

    At a word that follows a word the target is the word before it (distance 1). At a question it is
    the value of the fact with its key, which stands at a distance drawn evenly from the reach
    (first, last) of that key. Each row asks one question for each reach. Both targets are numbers
    below `values`. Everywhere else nothing is asked. In a longer text the far reaches grow: `at`.
    Shapes: tokens, targets and distance (batch, length).
    """

    length: int = 64
    reaches: tuple[tuple[int, int], ...] = ((1, 3), (4, 7), (16, 31), (32, 48))
    keys_each: int = 2
    values: int = 8

    def __post_init__(self):
        check_sizes(length=self.length, keys_each=self.keys_each, values=self.values)
        if not self.reaches:
            raise ValueError("reaches must hold at least one pair (first, last), got none")
        for first, last in self.reaches:
            if not 1 <= first <= last < self.length:
                raise ValueError(
                    f"reaches must hold pairs 1 <= first <= last < length = {self.length}, "
                    f"got {(first, last)}"
                )
        if self.length < 4 * len(self.reaches):
            raise ValueError(
                f"length must be at least 4 for each of the {len(self.reaches)} reaches, "
                f"got {self.length}"
            )

    @property
    def keys(self) -> int:
        """How many keys there are."""
        return self.keys_each * len(self.reaches)

    @property
    def vocabulary(self) -> int:
        """How many tokens there are: facts, questions, words."""
        return self.keys * self.values + self.keys + self.values

    @property
    def chance(self) -> float:
        """Accuracy of guessing any value."""
        return 1 / self.values

    @property
    def optimum(self) -> float:
        """Accuracy of reading the word or the fact."""
        return 1.0

    def at(self, length: int) -> "SparseNeed":
        """The same task in texts of another length: reaches from a tenth of the text on grow."""
        check_sizes(length=length)
        grown = tuple(
            (first * length // self.length, last * length // self.length)
            if 10 * first >= self.length
            else (first, last)
            for first, last in self.reaches
        )
        return replace(self, length=length, reaches=grown)

    def needs(self, window: int) -> float:
        """The share of all tokens whose answer lies outside a window of so many keys."""
        outside = [
            max(0, last - max(first, window) + 1) / (last - first + 1)
            for first, last in self.reaches
        ]
        return sum(outside) / self.length

    def batch(self, size: int, seed: int | torch.Generator) -> NeedBatch:
        """Examples with one question for each reach."""
        generator = generator_from(seed)
        shape = size, self.length
        words = torch.randint(self.values, shape, generator=generator)
        tokens = words + self.keys * self.values + self.keys
        targets = torch.full(shape, IGNORE)
        distance = torch.zeros(shape, dtype=torch.long)
        is_word = torch.ones(shape, dtype=torch.bool)
        rows = torch.arange(size)
        for reach in reversed(range(len(self.reaches))):  # the farthest first: they fit worst
            key = self.keys_each * reach
            key = key + torch.randint(self.keys_each, (size,), generator=generator)
            value = torch.randint(self.values, (size,), generator=generator)
            fact, question = self._free_pair(is_word, self.reaches[reach], generator)
            tokens[rows, fact] = key * self.values + value
            tokens[rows, question] = self.keys * self.values + key
            targets[rows, question] = value
            distance[rows, question] = question - fact
            is_word[rows, fact] = is_word[rows, question] = False
        repeats = is_word[:, 1:] & is_word[:, :-1]
        targets[:, 1:] = torch.where(repeats, words[:, :-1], targets[:, 1:])
        distance[:, 1:] = torch.where(repeats, 1, distance[:, 1:])
        return NeedBatch(tokens, targets, distance)

    def _free_pair(self, is_word: Tensor, reach: tuple[int, int], generator) -> tuple[Tensor, ...]:
        """Two free places a row: a distance drawn evenly from the reach, then such a pair."""
        apart = torch.randint(reach[0], reach[1] + 1, (len(is_word), 1), generator=generator)
        fact = torch.arange(self.length)
        question = fact + apart
        inside = question < self.length
        free = is_word & inside & is_word.gather(1, question.clamp(max=self.length - 1))
        drawn = torch.multinomial(free.float(), 1, generator=generator)
        return drawn[:, 0], (drawn + apart)[:, 0]
