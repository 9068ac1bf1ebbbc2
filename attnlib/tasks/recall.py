"""Recall: a list of keys with their values, then keys whose values are asked for.

Tokens 0 ... keys - 1 are keys, the next `values` tokens are values; multi-query recall adds one
filler token at the end of the vocabulary. In every example keys and values are drawn without
repetition, so each key has one value and each value one key.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from attnlib.tasks.task import IGNORE, Task, TokenBatch, check_sizes, distinct, generator_from


@dataclass(frozen=True)
class KeyedRecall(Task):
    """k1 v1 k2 v2 ... kn vn q: which value stood behind the key q?

    The one target is at the last position. Shapes: tokens and targets (batch, 2 pairs + 1).
    """

    pairs: int = 8
    keys: int = 16
    values: int = 16

    def __post_init__(self):
        _check_pairs(self.pairs, self.keys, self.values)

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return self.keys + self.values

    @property
    def chance(self) -> float:
        """Accuracy of guessing any value."""
        return 1 / self.values

    @property
    def unbound(self) -> float:
        """Accuracy of knowing which values were listed, but not with which key."""
        return 1 / self.pairs

    @property
    def optimum(self) -> float:
        """Accuracy of reading the value behind the key."""
        return 1.0

    def batch(self, size: int, seed: int | torch.Generator) -> TokenBatch:
        """Examples with one query each."""
        generator = generator_from(seed)
        key, value = _pairs(self, size, generator)
        asked = torch.randint(self.pairs, (size, 1), generator=generator)
        tokens = torch.cat((_interleave(key, value), key.gather(1, asked)), dim=1)
        targets = torch.full_like(tokens, IGNORE)
        targets[:, -1:] = value.gather(1, asked)
        return TokenBatch(tokens, targets)


@dataclass(frozen=True)
class MultiQueryRecall(Task):
    """k1 v1 ... kn vn, then every key once more, in random order and at random places.

    The target stands at each repeated key: its value. The places after the list that hold no query
    hold the filler token; a query stands g places after the list with a chance that falls as
    g^(power - 1), so near places are likelier for small `power`, and all alike for power 1.
    Shapes: tokens and targets (batch, length).
    Source: the multi-query associative recall of Arora et al. (2024, "Zoology");
    there a query may stand only at every second place.
    """

    pairs: int = 8
    keys: int = 16
    values: int = 16
    length: int = 32
    power: float = 0.1

    def __post_init__(self):
        _check_pairs(self.pairs, self.keys, self.values)
        if self.length < 3 * self.pairs:
            raise ValueError(
                f"length must be at least 3 * pairs = {3 * self.pairs} to hold the list and "
                f"the queries, got {self.length}"
            )

    @property
    def vocabulary(self) -> int:
        """How many tokens there are, with the filler."""
        return self.keys + self.values + 1

    @property
    def filler(self) -> int:
        """The token that stands where nothing is asked."""
        return self.keys + self.values

    @property
    def chance(self) -> float:
        """Accuracy of guessing any value."""
        return 1 / self.values

    @property
    def unbound(self) -> float:
        """Accuracy of knowing which values were listed, but not with which key."""
        return 1 / self.pairs

    @property
    def optimum(self) -> float:
        """Accuracy of reading the value behind the key."""
        return 1.0

    def batch(self, size: int, seed: int | torch.Generator) -> TokenBatch:
        """Examples with one query for each pair."""
        generator = generator_from(seed)
        key, value = _pairs(self, size, generator)
        listed = _interleave(key, value)
        tokens = torch.full((size, self.length), self.filler)
        targets = torch.full((size, self.length), IGNORE)
        tokens[:, : 2 * self.pairs] = listed

        order = distinct(size, self.pairs, self.pairs, generator)
        gaps = torch.arange(1, self.length - 2 * self.pairs + 1, dtype=torch.float64)
        chances = (gaps ** (self.power - 1)).expand(size, -1)
        places = torch.multinomial(chances, self.pairs, generator=generator) + 2 * self.pairs
        tokens.scatter_(1, places, key.gather(1, order))
        targets.scatter_(1, places, value.gather(1, order))
        return TokenBatch(tokens, targets)


def _pairs(task: KeyedRecall | MultiQueryRecall, size: int, generator) -> tuple[Tensor, Tensor]:
    key = distinct(size, task.pairs, task.keys, generator)
    value = distinct(size, task.pairs, task.values, generator) + task.keys
    return key, value


def _interleave(key: Tensor, value: Tensor) -> Tensor:
    return torch.stack((key, value), dim=-1).flatten(1)


def _check_pairs(pairs: int, keys: int, values: int) -> None:
    check_sizes(pairs=pairs, keys=keys, values=values)
    for name, size in (("keys", keys), ("values", values)):
        if size < pairs:
            raise ValueError(f"{name} must be at least pairs = {pairs}, got {size}")
