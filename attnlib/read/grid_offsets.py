"""Keys at fixed offsets from each query on a grid: which they are, and how they are gathered."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attnlib.checks import check_attention, check_count


def check_grid_of_places(grid: tuple[int, ...]) -> None:
    """Check that a grid is a tuple of positive integers, one for each axis."""
    if not isinstance(grid, tuple) or not grid:
        raise TypeError(f"grid must be a tuple of integers, one for each axis, got {grid!r}")
    for size in grid:
        check_count("grid", size, least=1)


def check_on_grid(
    query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, ...], before: int = 0
) -> None:
    """Check query, key and value: one row each for every place, after `before` other tokens."""
    check_attention(query, key, value)
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"key must have the width {query.shape[-1]} of query, got {key.shape[-1]}")
    check_grid_of_places(grid)
    tokens = before + math.prod(grid)
    for name, tensor in (("query", query), ("key", key)):
        if tensor.shape[-2] != tokens:
            first = f"{before} tokens and " if before else ""
            raise ValueError(
                f"{name} must have {first}one row for each place of grid {grid}, "
                f"{tokens} rows, got {tensor.shape[-2]}"
            )


def window_offsets(window: int, axes: int = 2) -> Int[Tensor, "P axes"]:
    """The offsets of a window of odd width around a place, `window ** axes` of them.

    Raises ValueError for an even window, which has no middle.
    """
    check_count("window", window, least=1)
    if window % 2 == 0:
        raise ValueError(f"window must be odd, so that the query is its middle, got {window}")
    return _offsets((window // 2,) * axes)


def disc_offsets(radius: float, grid: tuple[int, ...]) -> Int[Tensor, "P axes"]:
    """The offsets of squared length below radius squared: about pi radius^2 of them on a plane.

    Offsets that lead off the grid from every place are left out.
    Raises ValueError for a radius that is not positive and finite.
    """
    if isinstance(radius, bool) or not isinstance(radius, int | float):
        raise TypeError(f"radius must be a number, got {type(radius).__name__}")
    if not (math.isfinite(radius) and radius > 0):
        raise ValueError(f"radius must be positive and finite, got {radius}")
    box = _offsets(tuple(min(math.ceil(radius), size) - 1 for size in grid))
    return box[box.square().sum(-1) < radius**2]


def _offsets(reach: tuple[int, ...]) -> Int[Tensor, "P axes"]:
    lines = [torch.arange(-most, most + 1) for most in reach]
    return torch.cartesian_prod(*lines).view(-1, len(reach))


def places_at(
    grid: tuple[int, ...], offsets: Int[Tensor, "P axes"], rows: slice
) -> tuple[Int[Tensor, "n P"], Bool[Tensor, "n P"]]:
    """For the places `rows` of the grid: the place at each offset, and whether it is on the grid.

    Places are counted row by row. Where an offset leads off the grid, place 0 stands in.
    """
    numbers = torch.arange(rows.start, rows.stop)
    where = torch.stack(torch.unravel_index(numbers, grid), dim=-1)
    there = where[:, None] + offsets
    sizes = torch.tensor(grid)
    inside = ((there >= 0) & (there < sizes)).all(-1)
    strides = torch.tensor([math.prod(grid[axis + 1 :]) for axis in range(len(grid))])
    return ((there * strides).sum(-1) * inside), inside


def gathered(
    x: Float[Tensor, "*heads M D"], places: Int[Tensor, "n P"]
) -> Float[Tensor, "*heads n P D"]:
    """The rows of x at these places: a list of P rows for each of n queries."""
    rows = x.index_select(-2, places.flatten().to(x.device))
    return rows.unflatten(-2, tuple(places.shape))
