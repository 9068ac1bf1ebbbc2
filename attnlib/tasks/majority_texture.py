"""Images of striped tiles: what texture a tile has is near, how often it comes up is far."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attnlib.choices import check_choice
from attnlib.tasks.task import Task, check_sizes, generator_from

TILE = 4
ASKED = ("majority", "texture")


class TileBatch(NamedTuple):
    """Images, the answer for every pixel, and which tiles have horizontal stripes."""

    images: Float[Tensor, "batch 1 size size"]
    targets: Int[Tensor, "batch N"]
    horizontal: Bool[Tensor, "batch tiles tiles"]


@dataclass(frozen=True)
class MajorityTexture(Task):
    """Each tile of 4 x 4 pixels has stripes one pixel wide, of -1 and 1: lying or standing.

    To be told for every pixel, with "majority": do most tiles of the image have lying stripes? With
    "texture" (the control): does its own tile? Neither can be told from one pixel; the control can
    be told within a tile. The rarer texture has between a quarter and three eighths of the tiles,
    so that who knows but one tile is right about the majority in 11 of 16 images. Which stripe is
    the first is random in each tile, and pixels have Gaussian noise of standard deviation `noise`.
    Shapes: images (batch, 1, size, size), targets (batch, size * size) of 0 and 1, row by row.
    """

    size: int = 16
    noise: float = 0.2
    asked: str = "majority"

    def __post_init__(self):
        check_sizes(size=self.size)
        check_choice("asked", self.asked, ASKED)
        if self.size % TILE or self.size < 2 * TILE:
            raise ValueError(
                f"size must be a multiple of {TILE}, at least {2 * TILE}, got {self.size}"
            )
        if self.noise < 0:
            raise ValueError(f"noise must be at least 0, got {self.noise}")

    def batch(self, size: int, seed: int | torch.Generator) -> TileBatch:
        """Images with the answers of all pixels."""
        generator = generator_from(seed)
        side = self.size // TILE
        tiles = side**2
        rare = torch.randint(tiles // 4, 3 * tiles // 8 + 1, (size, 1), generator=generator)
        is_rare = torch.rand(size, tiles, generator=generator).argsort(-1).argsort(-1) < rare
        lying_is_common = torch.rand(size, 1, generator=generator) < 0.5
        horizontal = (is_rare ^ lying_is_common).unflatten(1, (side, side))
        first = torch.randint(2, (size, tiles), generator=generator).unflatten(1, (side, side))

        lying, begins = (upscaled(tile) for tile in (horizontal, first))
        line = torch.arange(self.size)
        number = torch.where(lying, line[:, None], line[None, :])
        images = (1 - 2 * ((number + begins) % 2)).float()[:, None]
        images = images + self.noise * torch.randn(images.shape, generator=generator)
        most = lying_is_common[:, None].expand_as(lying)
        answer = most if self.asked == "majority" else lying
        return TileBatch(images, answer.flatten(1).long(), horizontal)


def upscaled(tiles: Tensor) -> Tensor:
    """Every entry (batch, side, side) repeated over the 4 x 4 pixels of its tile."""
    return tiles.repeat_interleave(TILE, dim=1).repeat_interleave(TILE, dim=2)
