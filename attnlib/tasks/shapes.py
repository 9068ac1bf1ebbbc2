"""Colored shapes on a dark ground, drawn pixel by pixel: images about which all is known."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attnlib.tasks.task import Task, check_sizes, distinct, generator_from

SHAPES = ("disk", "square", "triangle", "cross")
COLORS = {
    "red": (0.9, 0.2, 0.2),
    "green": (0.2, 0.8, 0.3),
    "blue": (0.25, 0.4, 0.95),
    "yellow": (0.95, 0.85, 0.2),
}


class ShapeBatch(NamedTuple):
    """Images, the shape of the object in each, and everything else that was drawn."""

    images: Float[Tensor, "batch 3 size size"]
    labels: Int[Tensor, " batch"]  # the shape of object 0, a place in SHAPES
    shapes: Int[Tensor, "batch objects"]
    colors: Int[Tensor, "batch objects"]  # places in COLORS
    centers: Int[Tensor, "batch objects 2"]  # row and column
    radii: Int[Tensor, "batch objects"]
    masks: Bool[Tensor, "batch objects size size"]  # the pixels of each object


@dataclass(frozen=True)
class ColoredShapes(Task):
    """One or more shapes of random kind, color, size and place; the label is the first one's kind.

    Objects do not overlap: each lies in its own square cell of the image, which has as many cells
    as needed. `clutter` is the share of the remaining pixels that take a random color, `noise` the
    standard deviation of gray noise on every channel. With one object and no noise the label can be
    read off exactly. Shapes: images (batch, 3, size, size).
    """

    size: int = 16
    objects: int = 1
    clutter: float = 0.0
    noise: float = 0.0

    def __post_init__(self):
        check_sizes(size=self.size, objects=self.objects)
        if self.cell < 7:
            raise ValueError(
                f"size must be at least 7 pixels for each of {self.cells} cells in a row, "
                f"got {self.size}"
            )
        if not 0 <= self.clutter < 1:
            raise ValueError(f"clutter must lie in [0, 1), got {self.clutter}")
        if self.noise < 0:
            raise ValueError(f"noise must be at least 0, got {self.noise}")

    @property
    def cells(self) -> int:
        """How many cells there are in a row of the image: the smallest c with c^2 >= objects."""
        return next(c for c in range(1, self.objects + 1) if c * c >= self.objects)

    @property
    def cell(self) -> int:
        """How many pixels a cell is wide."""
        return self.size // self.cells

    @property
    def classes(self) -> int:
        """How many kinds of shapes there are."""
        return len(SHAPES)

    @property
    def chance(self) -> float:
        """Accuracy of guessing any kind."""
        return 1 / len(SHAPES)

    @property
    def optimum(self) -> float:
        """Accuracy of comparing with every shape in every place, for one object without noise."""
        return 1.0

    def batch(self, size: int, seed: int | torch.Generator) -> ShapeBatch:
        """Images with what is in them."""
        generator = generator_from(seed)
        draw = (size, self.objects)
        shapes = torch.randint(len(SHAPES), draw, generator=generator)
        colors = torch.randint(len(COLORS), draw, generator=generator)
        radii = torch.randint(3, (self.cell - 1) // 2 + 1, draw, generator=generator)
        cells = distinct(size, self.objects, self.cells**2, generator)
        corner = torch.stack((cells // self.cells, cells % self.cells), dim=-1) * self.cell
        room = (self.cell - 2 * radii)[..., None]
        shift = (torch.rand(*draw, 2, generator=generator) * room).long()
        centers = corner + radii[..., None] + shift

        drawn = draw_shapes(centers, radii, self.size)
        masks = drawn.take_along_dim(shapes[:, None, :, None, None], dim=1)[:, 0]
        images = self._paint(masks, colors, generator)
        return ShapeBatch(images, shapes[:, 0], shapes, colors, centers, radii, masks)

    def _paint(self, masks: Tensor, colors: Tensor, generator: torch.Generator) -> Tensor:
        """The image of the masks in their colors, with clutter between them and noise on top."""
        palette = torch.tensor(list(COLORS.values()))
        images = (masks[:, :, None] * palette[colors][..., None, None]).sum(1)
        free = ~masks.any(1)
        cluttered = free & (torch.rand(free.shape, generator=generator) < self.clutter)
        speckle = palette[torch.randint(len(COLORS), free.shape, generator=generator)]
        images = torch.where(cluttered[:, None], speckle.movedim(-1, 1), images)
        return images + self.noise * torch.randn(images.shape, generator=generator)


def draw_shapes(
    centers: Int[Tensor, "batch objects 2"], radii: Int[Tensor, "batch objects"], size: int
) -> Bool[Tensor, "batch kinds objects size size"]:
    """The masks of all four kinds (dimension 1) at the given places."""
    grid = torch.arange(size)
    down = grid[:, None] - centers[..., 0, None, None]
    right = grid[None, :] - centers[..., 1, None, None]
    radius = radii[..., None, None]
    inside = (down.abs() <= radius) & (right.abs() <= radius)
    disk = down**2 + right**2 <= radius**2 + 1
    triangle = inside & (2 * right.abs() <= down + radius)
    cross = inside & ((3 * down.abs() <= radius) | (3 * right.abs() <= radius))
    return torch.stack((disk, inside, triangle, cross), dim=1)
