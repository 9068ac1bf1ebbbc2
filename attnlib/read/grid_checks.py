"""Checks that queries and keys lie on the grid that a call names."""

import math

from torch import Tensor

from attnlib.patterns.grid import check_grid

Grid = tuple[int, ...]


def grid_or_line(grid: int | Grid | None, query: Tensor) -> Grid:
    """The axes of a grid; without one the queries are a line."""
    return check_grid(query.shape[-2] if grid is None else grid)


def check_places(query: Tensor, key: Tensor, grid: Grid, query_grid: Grid | None = None) -> None:
    """Raise ValueError unless queries and keys are as many as their grids have places.

    The queries have the grid of the keys, or `query_grid`. Both must have one width.
    """
    query_grid = grid if query_grid is None else query_grid
    for name, tensor, places in (("query", query, query_grid), ("key", key, grid)):
        if tensor.shape[-2] != math.prod(places):
            raise ValueError(
                f"{name} must have one row for each place of the grid {places}, "
                f"{math.prod(places)} in all, got {tensor.shape[-2]}"
            )
    if key.shape[-1] != query.shape[-1]:
        raise ValueError(
            f"key must have the width of query, {query.shape[-1]}, got {key.shape[-1]}"
        )
