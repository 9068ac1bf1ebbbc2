"""What tiles cost: how many tiles of keys a tile of queries visits, and the speed-up that allows.

Hardware multiplies tiles, not pairs. A tile of queries visits every tile of keys that holds a key
for one of its queries, and computes all of it. So a window saves time only where it saves tiles.
A *fully block-sparse* case is one whose visited tiles hold nothing but pairs that are needed: there
the tiles save as much as the pairs do.

Source: Hassani et al. (2025), Generalized Neighborhood Attention, the simulator. Derived in
chapter 8.1.
"""

import math

import torch
from jaxtyping import Int
from torch import Tensor

from attnlib.checks import check_count
from attnlib.choices import check_choice
from attnlib.patterns.grid import Axes, for_each_axis, neighborhood_rule, window_of
from attnlib.support import Predicate

TILINGS = ("static", "dynamic")


def key_tiles(
    grid: int | Axes,
    window: int | Axes,
    stride: int | Axes = 1,
    *,
    query_tile: int | Axes,
    key_tile: int | Axes,
    tiling: str = "static",
) -> Int[Tensor, "*query_tiles"]:
    """How many tiles of keys each tile of queries visits, for tiles that are boxes of the grid.

    Both tiles have one side for each axis, or one for all. tiling="static": tiles of keys begin at
    multiples of their side. tiling="dynamic": they begin at the first key that a query of the tile
    sees. The support is `attnlib.patterns.neighborhood(grid, window, stride=stride)`.

    Shapes: one count for each tile of queries, (ceil(length / side) for each axis).
    Raises ValueError for what does not fit the grid, and for an unknown tiling.
    """
    check_choice("tiling", tiling, TILINGS)
    grid, windows, _, strides, _ = neighborhood_rule(grid, window, 1, stride)
    sides = for_each_axis("query_tile", query_tile, grid)
    key_sides = for_each_axis("key_tile", key_tile, grid)
    counts = torch.ones((), dtype=torch.long)
    for length, *rule in zip(grid, windows, strides, sides, key_sides, strict=True):
        counts = counts[..., None] * tiles_on_axis(length, *rule, tiling)
    return counts


def tiles_on_axis(
    length: int, window: int, stride: int, query_tile: int, key_tile: int, tiling: str
) -> Int[Tensor, " query_tiles"]:
    """How many tiles of keys cover what each tile of queries sees on one axis."""
    start = torch.arange(0, length, query_tile)
    last = (start + query_tile - 1).clamp(max=length - 1)
    first, _ = window_of(start, length, window, stride, is_causal=False)
    _, stop = window_of(last, length, window, stride, is_causal=False)
    if tiling == "dynamic":
        return (stop - first + key_tile - 1) // key_tile
    return (stop - 1) // key_tile - first // key_tile + 1


def flop_bound(grid: int | Axes, window: int | Axes) -> float:
    """How many times fewer pairs a window has than dense attention: N / n."""
    grid, windows, *_ = neighborhood_rule(grid, window)
    return math.prod(grid) / math.prod(windows)


def tile_bound(
    grid: int | Axes,
    window: int | Axes,
    stride: int | Axes = 1,
    *,
    query_tile: int | Axes,
    key_tile: int | Axes,
    tiling: str = "static",
) -> float:
    """How many times fewer tiles a window visits than dense attention: the most it can speed up.

    Dense attention visits every tile of keys from every tile of queries. Arguments as in
    `key_tiles`.
    """
    options = {"query_tile": query_tile, "key_tile": key_tile, "tiling": tiling}
    visited = key_tiles(grid, window, stride, **options)
    axes = tuple(grid) if isinstance(grid, tuple | list) else (grid,)
    sides = for_each_axis("key_tile", key_tile, axes)
    in_all = math.prod(-(-length // side) for length, side in zip(axes, sides, strict=True))
    return in_all * visited.numel() / visited.sum().item()


def touched_tiles(
    support: Predicate, places: int, *, query_tile: int, key_tile: int
) -> Int[Tensor, " query_tiles"]:
    """How many tiles of `key_tile` keys in a row each `query_tile` queries in a row touch.

    For any support, with places in the order of their numbers: on a grid of several axes a tile is
    a piece of a row. Cost: all places^2 pairs are asked for, a tile of queries at a time.
    """
    check_count("places", places, least=1)
    check_count("query_tile", query_tile, least=1)
    check_count("key_tile", key_tile, least=1)
    zero = torch.zeros((), dtype=torch.long)
    keys = torch.arange(places)
    counts = []
    for start in range(0, places, query_tile):
        queries = torch.arange(start, min(start + query_tile, places))[:, None]
        seen = support(zero, zero, queries, keys[None, :]).any(0)
        seen = torch.nn.functional.pad(seen, (0, -places % key_tile))
        counts.append(seen.unflatten(0, (-1, key_tile)).any(-1).sum())
    return torch.stack(counts)
