"""Copying: a sequence to be repeated, after a sign or without one.

Tokens 0 ... symbols - 1 are symbols; the target of a position is the token that follows it.
"""

from dataclasses import dataclass

import torch

from attnlib.tasks.task import IGNORE, Task, TokenBatch, check_sizes, distinct, generator_from


@dataclass(frozen=True)
class Copy(Task):
    """s1 ... sn, a sign, s1 ... sn: after the sign, say the sequence again.

    Symbols are drawn with repetition. The model sees the right tokens so far, as in any training of
    a language model. Shapes: tokens and targets (batch, 2 count).
    """

    count: int = 12
    symbols: int = 16

    def __post_init__(self):
        check_sizes(count=self.count, symbols=self.symbols)

    @property
    def vocabulary(self) -> int:
        """How many tokens there are, with the sign."""
        return self.symbols + 1

    @property
    def sign(self) -> int:
        """The token after which the copy begins."""
        return self.symbols

    @property
    def chance(self) -> float:
        """Accuracy of guessing any symbol."""
        return 1 / self.symbols

    @property
    def optimum(self) -> float:
        """Accuracy of looking n + 1 tokens ahead of the last copied one."""
        return 1.0

    def batch(self, size: int, seed: int | torch.Generator) -> TokenBatch:
        """Sequences with their copies; targets from the sign on."""
        generator = generator_from(seed)
        original = torch.randint(self.symbols, (size, self.count), generator=generator)
        sign = torch.full((size, 1), self.sign)
        whole = torch.cat((original, sign, original), dim=1)
        return _next_token(whole, first=self.count)


@dataclass(frozen=True)
class Induction(Task):
    """A random sequence without equal symbols, again and again: ... a b ... a -> b.

    The period is drawn for each example from `shortest` to `longest`, so what follows must be found
    by the token that came before, not by a fixed distance. Targets stand wherever the token was
    seen before. Shapes: tokens and targets (batch, length).
    """

    length: int = 32
    symbols: int = 16
    shortest: int = 4
    longest: int = 16

    def __post_init__(self):
        check_sizes(length=self.length, symbols=self.symbols, shortest=self.shortest)
        if not self.shortest <= self.longest <= min(self.symbols, self.length):
            raise ValueError(
                f"longest must lie between shortest = {self.shortest} and the smaller of "
                f"symbols = {self.symbols} and length = {self.length}, got {self.longest}"
            )

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return self.symbols

    @property
    def chance(self) -> float:
        """Accuracy of guessing any symbol."""
        return 1 / self.symbols

    @property
    def optimum(self) -> float:
        """Accuracy of repeating what followed the same token before."""
        return 1.0

    def batch(self, size: int, seed: int | torch.Generator) -> TokenBatch:
        """Periodic sequences; targets from the second occurrence of the first symbol on."""
        generator = generator_from(seed)
        symbols = distinct(size, self.longest, self.symbols, generator)
        period = torch.randint(self.shortest, self.longest + 1, (size, 1), generator=generator)
        place = torch.arange(self.length + 1)
        whole = symbols.gather(1, place % period)
        batch = _next_token(whole, first=0)
        seen_before = place[:-1] >= period
        return TokenBatch(batch.tokens, batch.targets.masked_fill(~seen_before, IGNORE))


def _next_token(whole: torch.Tensor, first: int) -> TokenBatch:
    """Each token with the one that follows as its target, from position `first` on."""
    targets = whole[:, 1:].clone()
    targets[:, :first] = IGNORE
    return TokenBatch(whole[:, :-1], targets)
