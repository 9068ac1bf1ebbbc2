"""Figures that differ from the ground by texture alone, so that no pixel shows where it lies."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attnlib.choices import check_choice
from attnlib.tasks.shapes import SHAPES, draw_shapes
from attnlib.tasks.task import Task, check_sizes, generator_from


class TextureBatch(NamedTuple):
    """Images, and for each cell of 2 x 2 pixels whether it belongs to the figure."""

    images: Float[Tensor, "batch 1 height width"]
    labels: Int[Tensor, "batch cells"]


@dataclass(frozen=True)
class TextureBorders(Task):
    """Say of every cell of 2 x 2 pixels whether it is figure (1) or ground (0).

    The pixels are 1 or -1 at random, but in a cell of the figure the two pixels above one another
    are equal, and in a cell of the ground the two side by side. Half of all cells are of one sign
    and so tell nothing; of those, only the cells around them do, and they may lie across a border.
    `noise` is the share of pixels whose sign is changed afterwards.

    With `figure="shapes"` two shapes of random kind, size and place (which may overlap) are the
    figure. With `figure="blocks"` each block of `block` x `block` cells is figure or ground by
    itself: whatever can be known of a cell lies in its own block.
    Shapes: images (batch, 1, 2 * cells, 2 * cells), labels (batch, cells * cells), row by row.
    """

    cells: int = 12
    figure: str = "shapes"
    block: int = 4
    noise: float = 0.0

    def __post_init__(self):
        check_sizes(cells=self.cells, block=self.block)
        check_choice("figure", self.figure, ("shapes", "blocks"))
        if self.cells % self.block:
            raise ValueError(f"block must divide cells {self.cells}, got {self.block}")
        if self.cells < 2 * RADII[1] + 1:
            raise ValueError(f"cells must be at least {2 * RADII[1] + 1}, got {self.cells}")
        if not 0 <= self.noise <= 0.5:
            raise ValueError(f"noise must lie in [0, 0.5], got {self.noise}")

    @property
    def classes(self) -> int:
        """Ground and figure."""
        return 2

    @property
    def chance(self) -> float:
        """Accuracy of always naming the more frequent of the two."""
        share = self.batch(256, 0).labels.double().mean().item()
        return max(share, 1 - share)

    @property
    def optimum(self) -> float:
        """Accuracy of the best reader, known for blocks without noise.

        A block whose b^2 cells are all of one sign, chance 2^(-b^2), is guessed.
        """
        if self.figure != "blocks" or self.noise:
            raise ValueError(
                "optimum is known for figure='blocks' and noise=0, "
                f"got {self.figure!r} and {self.noise}"
            )
        return 1 - 0.5 ** (self.block**2 + 1)

    def batch(self, size: int, seed: int | torch.Generator) -> TextureBatch:
        """Images and labels."""
        generator = generator_from(seed)
        draw = self._shapes if self.figure == "shapes" else self._blocks
        figure = draw(size, generator)
        first, second = _signs((2, size, self.cells, self.cells), generator)
        upright = torch.stack((first, second, first, second), dim=-1)  # columns of equal pixels
        lying = torch.stack((first, first, second, second), dim=-1)
        pixels = torch.where(figure[..., None], upright, lying)
        images = pixels.unflatten(-1, (2, 2)).permute(0, 1, 3, 2, 4).flatten(1, 2).flatten(2)
        flipped = torch.rand(images.shape, generator=generator) < self.noise
        return TextureBatch(
            torch.where(flipped, -images, images)[:, None], figure.flatten(1).long()
        )

    def _shapes(self, size: int, generator: torch.Generator) -> Tensor:
        """Two shapes, each wholly inside the image."""
        draw = (size, 2)
        radii = torch.randint(RADII[0], RADII[1] + 1, draw, generator=generator)
        room = (self.cells - 2 * radii)[..., None]
        places = torch.rand(*draw, 2, generator=generator)
        centers = radii[..., None] + (places * room).long()
        kinds = torch.randint(len(SHAPES), draw, generator=generator)
        masks = draw_shapes(centers, radii, self.cells)
        return masks.take_along_dim(kinds[:, None, :, None, None], dim=1)[:, 0].any(1)

    def _blocks(self, size: int, generator: torch.Generator) -> Tensor:
        """Each block for itself."""
        side = self.cells // self.block
        chosen = torch.rand(size, side, side, generator=generator) < 0.5
        return chosen.repeat_interleave(self.block, 1).repeat_interleave(self.block, 2)


RADII = (2, 4)
"""The least and the largest radius of a shape, in cells."""


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """1 or -1 at random."""
    return 2.0 * torch.randint(2, shape, generator=generator) - 1
