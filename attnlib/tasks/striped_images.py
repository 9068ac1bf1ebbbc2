"""Noisy striped images to clean, and a control whose gray values have no direction."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import avg_pool2d

from attnlib.choices import check_choice
from attnlib.tasks.task import Task, check_sizes, generator_from

KINDS = ("stripes", "patches")


class StripedBatch(NamedTuple):
    """Noisy images, the clean ones, and which of them have horizontal stripes."""

    images: Float[Tensor, "batch 1 size size"]
    clean: Float[Tensor, "batch 1 size size"]
    horizontal: Bool[Tensor, " batch"]


@dataclass(frozen=True)
class StripedImages(Task):
    """Images to be cleaned of Gaussian noise of standard deviation `noise`.

    "stripes": each row of an image has one gray value, or each column, at even odds; the values are
    independent and normal. All pixels of the line tell of its value, and no others do.
    "patches" (the control): independent normal values, averaged over 4 x 4 pixels at every place
    and scaled to variance one: the pixels near by tell, in no direction more than in another.
    Shapes: images, clean (batch, 1, size, size).
    """

    size: int = 16
    noise: float = 1.0
    kind: str = "stripes"

    def __post_init__(self):
        check_sizes(size=self.size)
        check_choice("kind", self.kind, KINDS)
        if not self.noise > 0:
            raise ValueError(f"noise must be positive, got {self.noise}")

    def batch(self, size: int, seed: int | torch.Generator) -> StripedBatch:
        """Noisy and clean images."""
        generator = generator_from(seed)
        horizontal = torch.rand(size, generator=generator) < 0.5
        if self.kind == "stripes":
            lines = torch.randn(size, 1, self.size, 1, generator=generator)
            rows = lines.expand(size, 1, self.size, self.size)
            clean = torch.where(horizontal[:, None, None, None], rows, rows.mT)
        else:
            wide = torch.randn(size, 1, self.size + 3, self.size + 3, generator=generator)
            clean = 4 * avg_pool2d(wide, 4, stride=1)
        noise = self.noise * torch.randn(clean.shape, generator=generator)
        return StripedBatch(clean + noise, clean, horizontal)
