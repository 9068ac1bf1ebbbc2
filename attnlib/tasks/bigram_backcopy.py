"""Bigram-Backcopy: a text in which most words need no look back, and a few need exactly one.

Most tokens are followed by what a bigram table says, so that nothing before them matters. After a
trigger the token before the trigger comes again. A head that copies is needed after triggers and
has nothing to do anywhere else: a place to watch what an idle head does with its weight.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attnlib.tasks.task import Task, check_sizes, generator_from

START = 0
"""The token that every sequence begins with, and that never comes again."""


class BigramBackcopyBatch(NamedTuple):
    """Sequences with the next tokens as targets, and the chance of each target."""

    tokens: Int[Tensor, "batch N"]
    targets: Int[Tensor, "batch N"]
    probabilities: Float[Tensor, "batch N"]


@dataclass(frozen=True)
class BigramBackcopy(Task):
    r"""After a trigger its predecessor, after any other token a draw from its row of a table.

    .. math:: t_{i+1} = t_{i-1} \text{ if } t_i \in T, \qquad
        t_{i+1} \sim P[t_i, \cdot] \text{ otherwise}

    Token 0 is the start token, tokens 1 ... `triggers` are the triggers T, the others are plain;
    there are `symbols` of both together. A plain token is followed by a trigger with
    `trigger_chance`, the start token never, so that no trigger follows a trigger. The table P is
    drawn once, from `table_seed`: among plain tokens the logarithms of its entries are normal with
    deviation `sharpness`, so that zero makes all plain tokens equally likely.
    Shapes: tokens and targets (batch, length), the first token being the start.
    Source: Guo et al. (2024), section 2; there P counts the letters of a text, T are its three
    most frequent letters, and the length is 256.
    """

    length: int = 64
    symbols: int = 32
    triggers: int = 3
    trigger_chance: float = 0.25
    sharpness: float = 1.0
    table_seed: int = 0

    def __post_init__(self):
        check_sizes(length=self.length, symbols=self.symbols, triggers=self.triggers)
        if self.symbols < self.triggers + 2:
            raise ValueError(
                f"symbols must be at least 2 more than the {self.triggers} triggers, "
                f"got {self.symbols}"
            )
        if not 0 < self.trigger_chance < 1:
            raise ValueError(f"trigger_chance must lie in (0, 1), got {self.trigger_chance}")
        if not 0 <= self.sharpness < math.inf:
            raise ValueError(f"sharpness must be at least 0 and finite, got {self.sharpness}")

    @property
    def vocabulary(self) -> int:
        """How many tokens there are, the start token with them."""
        return self.symbols + 1

    @property
    def table(self) -> Float[Tensor, "vocabulary vocabulary"]:
        """P: the chance of each next token in the row of the present one.

        A trigger has a row of zeros: what follows it does not come from the table.
        """
        first = 1 + self.triggers
        generator = torch.Generator().manual_seed(self.table_seed)
        plain = self.symbols - self.triggers
        logits = self.sharpness * torch.randn(self.vocabulary, plain, generator=generator)
        table = torch.zeros(self.vocabulary, self.vocabulary)
        table[:, first:] = torch.softmax(logits, -1)
        table[first:, first:] *= 1 - self.trigger_chance
        table[first:, 1:first] = self.trigger_chance / self.triggers
        table[1:first] = 0
        return table

    def is_trigger(self, tokens: Int[Tensor, "*batch N"]) -> Bool[Tensor, "*batch N"]:
        """Where the next token is a copy of the one before."""
        return (tokens >= 1) & (tokens <= self.triggers)

    def batch(self, size: int, seed: int | torch.Generator) -> BigramBackcopyBatch:
        """Fresh sequences."""
        generator, table = generator_from(seed), self.table
        rows = table.clone()
        rows[1 : 1 + self.triggers] = 1.0  # never used, but multinomial wants a sum above zero
        before = torch.full((size,), START)
        now = before
        tokens, probabilities = [now], []
        for _ in range(self.length):
            drawn = torch.multinomial(rows[now], 1, generator=generator)[:, 0]
            copies = self.is_trigger(now)
            following = torch.where(copies, before, drawn)
            probabilities.append(torch.where(copies, 1.0, table[now, following]))
            tokens.append(following)
            before, now = now, following
        whole = torch.stack(tokens, dim=1)
        return BigramBackcopyBatch(whole[:, :-1], whole[:, 1:], torch.stack(probabilities, dim=1))
