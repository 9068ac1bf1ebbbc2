"""A text that needs no attention: each word depends on the word before it and on nothing else.

The negative control of claims about attention in language models: the token that a model stands on
holds all that can be known of the next one, so no way of looking back can help.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attnlib.tasks.task import Task, check_sizes, generator_from


class MarkovBatch(NamedTuple):
    """Windows of text with the next words as targets, and the chain's chance of each target."""

    tokens: Int[Tensor, "batch N"]
    targets: Int[Tensor, "batch N"]
    probabilities: Float[Tensor, "batch N"]


@dataclass(frozen=True)
class Markov(Task):
    r"""A Markov chain of first order: p(t_{i+1} | t_1 ... t_i) = P[t_i, t_{i+1}].

    The table P is drawn once, from `table_seed`: the logarithms of its entries are normal, up to
    each row's normalization. Shapes: tokens and targets (batch, length).
    """

    length: int = 64
    symbols: int = 48
    table_seed: int = 0

    def __post_init__(self):
        check_sizes(length=self.length, symbols=self.symbols)

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return self.symbols

    @property
    def table(self) -> Float[Tensor, "symbols symbols"]:
        """P: the chance of each next token in the row of the present one."""
        generator = torch.Generator().manual_seed(self.table_seed)
        return torch.softmax(2 * torch.randn(self.symbols, self.symbols, generator=generator), -1)

    def batch(self, size: int, seed: int | torch.Generator) -> MarkovBatch:
        """Windows of fresh text; the first token is any with the same chance."""
        generator, table = generator_from(seed), self.table
        tokens = torch.randint(self.symbols, (size, 1), generator=generator)
        for _ in range(self.length):
            following = torch.multinomial(table[tokens[:, -1]], 1, generator=generator)
            tokens = torch.cat((tokens, following), dim=1)
        now, then = tokens[:, :-1], tokens[:, 1:]
        return MarkovBatch(now, then, table[now, then])
