"""State tracking: after each token, the state of a small machine that all tokens so far moved.

Nothing can be looked up: no single token of the past holds the answer, their product does.
"""

from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor

from attnlib.tasks.task import IGNORE, Task, TokenBatch, check_sizes, distinct, generator_from


@dataclass(frozen=True)
class ModularCounter(Task):
    """Tokens 0 and 1; the target at each token is the number of ones so far, modulo `modulus`.

    Modulus 2 is parity. Each token is 1 with chance 1/2.
    Shapes: tokens and targets (batch, length).
    """

    modulus: int = 2
    length: int = 16

    def __post_init__(self):
        check_sizes(modulus=self.modulus, length=self.length)
        if self.modulus < 2:
            raise ValueError(f"modulus must be at least 2, got {self.modulus}")

    @property
    def vocabulary(self) -> int:
        """How many tokens there are: counts are answered with the same ones."""
        return self.modulus

    @property
    def chance(self) -> float:
        """Accuracy of guessing any count (the first tokens of a long sequence are a bit easier)."""
        return 1 / self.modulus

    @property
    def optimum(self) -> float:
        """Accuracy of counting."""
        return 1.0

    def batch(self, size: int, seed: int | torch.Generator) -> TokenBatch:
        """Random bits with their counts."""
        tokens = torch.randint(2, (size, self.length), generator=generator_from(seed))
        return TokenBatch(tokens, tokens.cumsum(1) % self.modulus)


@dataclass(frozen=True)
class Swaps(Task):
    """Cups in a row: a token exchanges two of them, the target is the arrangement afterwards.

    Tokens: one for each pair of `cups`, and the last one leaves everything as it is. Targets: one
    of the cups! arrangements, in the order of `itertools.permutations`.
    Shapes: tokens and targets (batch, length).
    """

    cups: int = 3
    length: int = 16

    def __post_init__(self):
        check_sizes(cups=self.cups, length=self.length)
        if not 2 <= self.cups <= 5:
            raise ValueError(f"cups must be 2, 3, 4 or 5, got {self.cups}")

    @property
    def arrangements(self) -> list[tuple[int, ...]]:
        """What can stand in the row."""
        return list(permutations(range(self.cups)))

    @property
    def swaps(self) -> Tensor:
        """Row by row, what a token makes of the row 0, 1, 2, ...: (tokens, cups)."""
        rows = []
        for i in range(self.cups):
            for j in range(i + 1, self.cups):
                row = list(range(self.cups))
                row[i], row[j] = row[j], row[i]
                rows.append(row)
        return torch.tensor([*rows, list(range(self.cups))])

    @property
    def vocabulary(self) -> int:
        """How many tokens there are, or arrangements if those are more."""
        return max(len(self.swaps), len(self.arrangements))

    @property
    def chance(self) -> float:
        """Accuracy of guessing any arrangement."""
        return 1 / len(self.arrangements)

    @property
    def optimum(self) -> float:
        """Accuracy of following the cups."""
        return 1.0

    def batch(self, size: int, seed: int | torch.Generator) -> TokenBatch:
        """Random exchanges with what they lead to."""
        tokens = torch.randint(len(self.swaps), (size, self.length), generator=generator_from(seed))
        row, known, swaps = torch.arange(self.cups), torch.tensor(self.arrangements), self.swaps
        row, numbers = row.expand(size, -1), []
        for t in range(self.length):
            row = row.gather(1, swaps[tokens[:, t]])
            numbers.append((row[:, None] == known).all(-1).long().argmax(-1))
        return TokenBatch(tokens, torch.stack(numbers, dim=1))


@dataclass(frozen=True)
class OverwrittenRecall(Task):
    """k1 v1 k2 v2 ..., where keys come again with new values; then each key is asked for its last.

    The first `keys` writes name every key once, the rest name keys at random, and the last `keys`
    tokens ask for all of them in random order. With `writes` = `keys` no key comes again.
    Tokens 0 ... keys - 1 are keys, the next `values` are values.
    Shapes: tokens and targets (batch, 2 writes + keys).
    Source: the second retrieval setting of Schlag et al. (2021), section 6.1, in tokens.
    """

    keys: int = 6
    values: int = 16
    writes: int = 18

    def __post_init__(self):
        check_sizes(keys=self.keys, values=self.values, writes=self.writes)
        if self.writes < self.keys:
            raise ValueError(f"writes must be at least keys = {self.keys}, got {self.writes}")

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return self.keys + self.values

    @property
    def length(self) -> int:
        """How many tokens a sequence has."""
        return 2 * self.writes + self.keys

    @property
    def chance(self) -> float:
        """Accuracy of guessing any value."""
        return 1 / self.values

    @property
    def optimum(self) -> float:
        """Accuracy of reading the last value of each key."""
        return 1.0

    def batch(self, size: int, seed: int | torch.Generator) -> TokenBatch:
        """Writes, and one question for each key."""
        generator = generator_from(seed)
        once = distinct(size, self.keys, self.keys, generator)
        again = torch.randint(self.keys, (size, self.writes - self.keys), generator=generator)
        key = torch.cat((once, again), dim=1)
        value = torch.randint(self.values, key.shape, generator=generator)
        asked = distinct(size, self.keys, self.keys, generator)
        age = torch.arange(self.writes).expand(size, 1, -1)
        last = age.masked_fill(key[:, None, :] != asked[:, :, None], -1).argmax(-1)
        listed = torch.stack((key, value + self.keys), dim=-1).flatten(1)
        tokens = torch.cat((listed, asked), dim=1)
        targets = torch.full_like(tokens, IGNORE)
        targets[:, -self.keys :] = value.gather(1, last) + self.keys
        return TokenBatch(tokens, targets)
