"""Needles in a haystack: facts at chosen depths among filler, and a question at the end.

Tokens 0 ... keys * values - 1 are needles: needle k * values + v says "the value of k is v". The
next `keys` tokens are questions, the rest are filler. A needle is one token, so that finding it is
all there is to do: no position has to be known, and the task is the same at every length.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attnlib.tasks.task import IGNORE, Task, TokenBatch, check_sizes, distinct, generator_from


@dataclass(frozen=True)
class NeedleRetrieval(Task):
    """... filler, needle, filler ... then the keys: which value had each?

    Every example has `needles` needles with different keys at random places among the filler. The
    last `questions` places ask for that many of them; the target there is the needle's value, a
    number below `values`. With `depth` the needle of the first question stands at that share of the
    haystack: 0 is its first place, 1 its last. A longer haystack with all else as it was: `at`.
    Shapes: tokens and targets (batch, length).
    """

    length: int = 64
    needles: int = 4
    questions: int = 4
    keys: int = 8
    values: int = 8
    filler: int = 16
    depth: float | None = None

    def __post_init__(self):
        check_sizes(
            length=self.length,
            needles=self.needles,
            questions=self.questions,
            keys=self.keys,
            values=self.values,
            filler=self.filler,
        )
        for name, least in (("needles", self.questions), ("keys", self.needles)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.length < self.needles + self.questions:
            raise ValueError(
                f"length must be at least needles + questions = "
                f"{self.needles + self.questions}, got {self.length}"
            )
        if self.depth is not None and not 0 <= self.depth <= 1:
            raise ValueError(f"depth must lie between 0 and 1, got {self.depth}")

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return self.keys * self.values + self.keys + self.filler

    @property
    def haystack(self) -> int:
        """How many places come before the first question."""
        return self.length - self.questions

    @property
    def chance(self) -> float:
        """Accuracy of guessing any value."""
        return 1 / self.values

    @property
    def optimum(self) -> float:
        """Accuracy of reading the value of the needle that is asked for."""
        return 1.0

    def at(self, length: int, depth: float | None = None) -> "NeedleRetrieval":
        """The same task in a haystack of another length, its first needle at this depth."""
        return replace(self, length=length, depth=depth)

    def batch(self, size: int, seed: int | torch.Generator) -> TokenBatch:
        """Examples; needle number i of a row is asked for by question number i."""
        generator = generator_from(seed)
        key = distinct(size, self.needles, self.keys, generator)
        value = torch.randint(self.values, (size, self.needles), generator=generator)
        first_filler = self.keys * self.values + self.keys
        shape = size, self.length
        tokens = torch.randint(first_filler, self.vocabulary, shape, generator=generator)
        tokens.scatter_(1, self.places(size, generator), key * self.values + value)
        tokens[:, self.haystack :] = self.keys * self.values + key[:, : self.questions]
        targets = torch.full_like(tokens, IGNORE)
        targets[:, self.haystack :] = value[:, : self.questions]
        return TokenBatch(tokens, targets)

    def places(self, size: int, generator: torch.Generator) -> Tensor:
        """Where the needles stand: (size, needles), all different in a row."""
        places = distinct(size, self.needles, self.haystack, generator)
        if self.depth is None:
            return places
        wanted = round(self.depth * (self.haystack - 1))
        # Whoever stands at the wanted place changes with the first needle.
        places = torch.where(places == wanted, places[:, :1], places)
        places[:, 0] = wanted
        return places
