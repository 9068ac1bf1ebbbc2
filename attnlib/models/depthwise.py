"""Depthwise convolution of tokens on a grid: what is near, which a global read cannot tell."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnlib.checks import check_count


class DepthwiseConvolution(nn.Module):
    """Each channel is convolved by itself over the grid on which the tokens lie.

    `grid` is (rows, columns), read row by row; `size` the odd width of the square kernel. The grid
    is padded with zeros. At the start the convolution is small and random.

    Shapes: x (batch, rows * columns, width) -> the same. Cost: time N width size^2.
    Source: part of agent attention (size 3), of RALA (5) and of L2ViT's module (7).
    """

    def __init__(self, width: int, grid: tuple[int, int], size: int = 3):
        super().__init__()
        check_count("width", width, least=1)
        check_count("size", size, least=1)
        if size % 2 == 0:
            raise ValueError(f"size must be odd, got {size}")
        self.grid = check_grid(grid)
        self.convolution = nn.Conv2d(width, width, size, padding=size // 2, groups=width)

    def forward(self, x: Float[Tensor, "batch N width"]) -> Float[Tensor, "batch N width"]:
        """The convolved tokens, in the same order."""
        return to_tokens(self.convolution(to_grid(x, self.grid)))


def check_grid(grid: tuple[int, int]) -> tuple[int, int]:
    """Check that a grid is a pair (rows, columns) of positive integers."""
    if not isinstance(grid, tuple) or len(grid) != 2:
        raise TypeError(f"grid must be a pair (rows, columns), got {grid!r}")
    for number in grid:
        check_count("grid", number, least=1)
    return grid


def to_grid(
    x: Float[Tensor, "batch N width"], grid: tuple[int, int]
) -> Float[Tensor, "batch width rows columns"]:
    """Tokens, row by row, as an image with `width` channels."""
    rows, columns = grid
    if x.dim() != 3 or x.shape[1] != rows * columns:
        raise ValueError(
            f"x must have shape (batch, {rows} * {columns}, width), got {tuple(x.shape)}"
        )
    return x.mT.unflatten(-1, grid)


def to_tokens(image: Float[Tensor, "batch width rows columns"]) -> Float[Tensor, "batch N width"]:
    """An image with `width` channels as tokens, row by row."""
    return torch.flatten(image, start_dim=-2).mT
