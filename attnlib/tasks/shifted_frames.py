"""Signals on a drifting level: the frames that tell the class stand higher than the others."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attnlib.tasks.task import Task, check_sizes, generator_from


class Signals(NamedTuple):
    """Signals, their classes, and the first of the frames that tell the class."""

    x: Float[Tensor, "B T C"]
    targets: Int[Tensor, " B"]
    place: Int[Tensor, " B"]


@dataclass(frozen=True)
class ShiftedFrames(Task):
    """Which class do the `told` raised frames show?

    A class is a fixed pattern of signs over the channels. In `told` neighboring frames the pattern
    of the true class is added; every other frame shows the pattern of a class drawn at random.
    The told frames are raised by `shift` in all channels; without it (0) nothing marks them. Each
    signal has an offset of its own in every channel, normal with deviation `drift`: its level is
    not stationary between signals.
    """

    frames: int = 24
    channels: int = 8
    classes: int = 4
    told: int = 4
    shift: float = 3.0
    drift: float = 2.0
    noise: float = 0.5

    def __post_init__(self):
        check_sizes(
            frames=self.frames, channels=self.channels, classes=self.classes, told=self.told
        )
        if self.told > self.frames:
            raise ValueError(f"told must be at most frames = {self.frames}, got {self.told}")

    @property
    def chance(self) -> float:
        """Accuracy of guessing."""
        return 1 / self.classes

    def patterns(self) -> Float[Tensor, "classes C"]:
        """The signs of each class: the same for every batch of every seed."""
        generator = torch.Generator().manual_seed(0)
        return torch.randint(2, (self.classes, self.channels), generator=generator) * 2.0 - 1

    def batch(self, size: int, seed: int | torch.Generator) -> Signals:
        """Signals with one raised stretch each."""
        generator = generator_from(seed)
        targets = torch.randint(self.classes, (size,), generator=generator)
        place = torch.randint(self.frames - self.told + 1, (size,), generator=generator)
        shown = torch.randint(self.classes, (size, self.frames), generator=generator)
        after = torch.arange(self.frames) - place[:, None]
        tells = (after >= 0) & (after < self.told)
        shown = torch.where(tells, targets[:, None], shown)
        noise = torch.randn(size, self.frames, self.channels, generator=generator)
        level = torch.randn(size, 1, self.channels, generator=generator)
        x = self.patterns()[shown] + self.shift * tells[..., None]
        return Signals(x + self.drift * level + self.noise * noise, targets, place)
