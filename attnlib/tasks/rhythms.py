"""Long-range classification: strings of two signs that differ in rhythm, or in their count."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from attnlib.tasks.task import IGNORE, Task, TokenBatch, check_sizes, generator_from


@dataclass(frozen=True)
class Rhythms(Task):
    r"""Signs 0 and 1 whose chance rises and falls: which of `classes` periods is it?

    .. math:: P(\text{sign}_t = 1) = \tfrac12 + \tfrac{1}{2} c \sin(2 \pi t / T_k + \varphi)

    with contrast c, periods T_k between 4 and 16 tokens, equal steps in 1 / T, and a random phase.
    No sign and no count says anything; the rhythm of the whole string does. The target is at the
    last token. Shapes: tokens and targets (batch, length).
    """

    classes: int = 4
    length: int = 64
    contrast: float = 0.9

    def __post_init__(self):
        _check(self)

    @property
    def vocabulary(self) -> int:
        """Two signs, and as many answers as there are classes."""
        return 2 + self.classes

    @property
    def chance(self) -> float:
        """Accuracy of guessing a class."""
        return 1 / self.classes

    def batch(self, size: int, seed: int | torch.Generator) -> TokenBatch:
        """Strings with their class at the end."""
        generator = generator_from(seed)
        label = torch.randint(self.classes, (size,), generator=generator)
        phase = 2 * math.pi * torch.rand(size, 1, generator=generator)
        frequency = torch.linspace(1 / 16, 1 / 4, self.classes)[label, None]
        wave = torch.sin(2 * math.pi * frequency * torch.arange(self.length) + phase)
        return _signs(0.5 + 0.5 * self.contrast * wave, label, generator)


@dataclass(frozen=True)
class Counts(Task):
    """The control of `Rhythms`: the chance of a sign is the same at every token of a string.

    Class k has P(sign = 1) from (1 - contrast) / 2 to (1 + contrast) / 2 in equal steps, so the
    count of signs is all there is. Shapes: tokens and targets (batch, length).
    """

    classes: int = 4
    length: int = 64
    contrast: float = 0.9

    def __post_init__(self):
        _check(self)

    @property
    def vocabulary(self) -> int:
        """Two signs, and as many answers as there are classes."""
        return 2 + self.classes

    @property
    def chance(self) -> float:
        """Accuracy of guessing a class."""
        return 1 / self.classes

    def batch(self, size: int, seed: int | torch.Generator) -> TokenBatch:
        """Strings with their class at the end."""
        generator = generator_from(seed)
        label = torch.randint(self.classes, (size,), generator=generator)
        level = torch.linspace(-1, 1, self.classes)[label, None].expand(size, self.length)
        return _signs(0.5 + 0.5 * self.contrast * level, label, generator)


def _signs(chance: Tensor, label: Int[Tensor, " batch"], generator) -> TokenBatch:
    tokens = (torch.rand(chance.shape, generator=generator) < chance).long()
    targets = torch.full_like(tokens, IGNORE)
    targets[:, -1] = label + 2
    return TokenBatch(tokens, targets)


def _check(task: Rhythms | Counts) -> None:
    check_sizes(classes=task.classes, length=task.length)
    if task.classes < 2:
        raise ValueError(f"classes must be at least 2, got {task.classes}")
    if not 0 < task.contrast <= 1:
        raise ValueError(f"contrast must lie above 0 and at most at 1, got {task.contrast}")
