"""Supports on a grid as modules that need the width of a head alone: operators of a model.

A model says how many places there are and not how they lie: these take the grid (rows, columns)
that is nearest to a square. Where the grid is known, give the functions of `attnlib.read` theirs.
"""

from jaxtyping import Float
from torch import Tensor, nn

from attnlib.checks import check_count
from attnlib.read.disc_attention import disc_attention, near_square
from attnlib.read.foveal_attention import foveal_attention
from attnlib.read.rectangle_attention import rectangle_attention

Query = Float[Tensor, "*batch heads N D"]
Value = Float[Tensor, "*batch heads N E"]


class NearDisc(nn.Module):
    """Disc attention with its radius; it learns nothing of its own."""

    def __init__(self, head_width: int, *, radius: float = 2):
        super().__init__()
        self.radius = radius

    def forward(self, query: Query, key: Query, value: Value) -> Value:
        """The read of `attnlib.disc_attention`."""
        grid = near_square(query.shape[-2])
        return disc_attention(query, key, value, grid=grid, radius=self.radius)


class NearFovea(nn.Module):
    """A window of 3 x 3 places and the mean of each row of the grid, under one softmax."""

    def __init__(self, head_width: int):
        super().__init__()

    def forward(self, query: Query, key: Query, value: Value) -> Value:
        """The read of `attnlib.foveal_attention`."""
        grid = near_square(query.shape[-2])
        window = 3 if min(grid) > 1 else 1
        return foveal_attention(query, key, value, grid=grid, window=window, pool=(grid[0], 1))


class RowWindows(nn.Module):
    """Rectangle windows of one row, cut into `pieces` where that divides it."""

    def __init__(self, head_width: int, *, pieces: int = 2):
        super().__init__()
        check_count("pieces", pieces, least=1)
        self.pieces = pieces

    def forward(self, query: Query, key: Query, value: Value) -> Value:
        """The read of `attnlib.rectangle_attention`."""
        grid = near_square(query.shape[-2])
        width = grid[1] if grid[1] % self.pieces else grid[1] // self.pieces
        return rectangle_attention(query, key, value, grid=grid, height=1, width=width)
