"""What a kernel on grids settles before it starts: its axes, what fits, the shapes of its tiles.

A grid of one or two axes becomes one of three: the axes it lacks come first and have one place.
"""

from functools import lru_cache
from itertools import product
from math import gcd, prod

import triton
from attnlib.kernels.launch import check_dtype, check_whole
from torch import Tensor

Axes = tuple[int, int, int]
MOST_AXES = 3


def for_each_axis(name: str, given: object, axes: int) -> tuple:
    """The window, stride, dilation or is_causal of three axes, from one for all or one for each.

    Raises unless there is one for each axis: bools for is_causal, numbers of at least 1 for others.
    """
    of_each = tuple(given) if isinstance(given, tuple | list) else (given,) * axes
    if not 1 <= len(of_each) <= MOST_AXES:
        raise ValueError(f"{name} must be for one to three axes, got {given!r}")
    if len(of_each) != axes:
        raise ValueError(
            f"{name} must be one for all axes or one for each of the {axes} that window names, "
            f"got {given!r}"
        )
    for one in of_each:
        if name != "is_causal":
            check_whole(name, one, least=1)
        elif not isinstance(one, bool):
            raise TypeError(f"is_causal must be a bool or a tuple of bools, got {given!r}")
    absent = False if name == "is_causal" else 1
    return (absent,) * (MOST_AXES - axes) + of_each


def check_grid(name: str, tensor: Tensor, query: Tensor, axes: int) -> None:
    """Raise unless the tensor is (*batch, heads, *grid, width) with the grid of query."""
    check_dtype(name, tensor)
    shape = tuple(tensor.shape)
    if len(shape) < axes + 2:
        raise ValueError(
            f"{name} must have shape (*batch, heads, *grid, width) with a grid of {axes} axes, as "
            f"window says, got {shape}"
        )
    if shape[-1 - axes : -1] != tuple(query.shape[-1 - axes : -1]):
        raise ValueError(
            f"{name} must have the grid of query, {tuple(query.shape[-1 - axes : -1])}, "
            f"got {shape[-1 - axes : -1]} in a tensor of shape {shape}"
        )


def check_windows(query: Tensor, axes: int, rule: dict[str, tuple]) -> None:
    """Raise unless each window, times its dilation, fits into its axis, and each stride into it."""
    lengths = tuple(query.shape[-1 - axes : -1])
    windows, strides, dilations = (
        rule[name][MOST_AXES - axes :] for name in ("window", "stride", "dilation")
    )
    for axis, (length, window, dilation) in enumerate(
        zip(lengths, windows, dilations, strict=True)
    ):
        if window * dilation > length:
            raise ValueError(
                f"window times dilation must fit into the grid {lengths}, "
                f"got window {window} and dilation {dilation} on axis {axis} of {length} places"
            )
    for axis, (window, stride) in enumerate(zip(windows, strides, strict=True)):
        if stride > window:
            raise ValueError(
                f"stride must be at most the window, got stride {stride} and window {window} "
                f"on axis {axis}: keys between two windows would be seen by no query"
            )


def one_line(tensor: Tensor, axes: int) -> Tensor:
    """The first line of a grid, (*batch, heads, length, width): it has what all lines have."""
    return tensor[(..., *(0,) * (axes - 1), slice(None), slice(None))]


def batch_heads_and_grid(tensor: Tensor, axes: int) -> Tensor:
    """(..., H, *grid, D) as (B, H, three axes, D): a view where the batch axes fold into one."""
    heads, *grid, width = tensor.shape[-2 - axes :]
    batch = prod(tensor.shape[: -2 - axes])
    return tensor.reshape(batch, heads, *(1,) * (MOST_AXES - axes), *grid, width)


def programs(held: Tensor, shape: Axes, rule: dict[str, tuple]) -> tuple[int]:
    """One program for each tile of each residue, head and batch entry of (B, H, three axes, D)."""
    tiles = map(triton.cdiv, axis_lengths(held.shape[2:5], rule), shape)
    return (prod(held.shape[:2]) * prod(rule["dilation"]) * prod(tiles),)


def axis_lengths(grid: tuple[int, ...], rule: dict[str, tuple]) -> Axes:
    """How many places of one residue each axis has, at most."""
    return tuple(map(triton.cdiv, grid, rule["dilation"]))


def with_shapes(kernel: str, choices: dict, grid: tuple[int, ...], rule: dict[str, tuple]) -> dict:
    """The choices of a tile, with the shapes that cost the least on this grid for block sizes."""
    walk = axis_lengths(grid, rule), rule["window"], rule["stride"]
    queries, keys = choices["query_block_size"], choices["key_block_size"]
    if kernel == "key gradient":
        key_shape, query_shape = tile_shapes(keys, queries, *walk)
    else:
        query_shape, key_shape = tile_shapes(queries, keys, *walk)
    rest = {name: choices[name] for name in ("arithmetic", "num_warps", "num_stages")}
    return rest | {"query_shape": query_shape, "key_shape": key_shape}


@lru_cache(maxsize=4096)
def tile_shapes(
    held: int, walked: int, lengths: Axes, window: Axes, stride: Axes
) -> tuple[Axes, Axes]:
    """Shapes of the tile that a program holds and of those it walks over, for the least work.

    `held` and `walked` are how many places these tiles have. Where a window is 13 x 13, a row of
    128 queries sees 13 x 140 keys, 8 x 16 queries see 20 x 28. Of equal shapes the one that is
    longest on the last axis is taken: its rows lie together.
    """

    def box_on_axis(length: int, reach: int, step: int, size: int) -> int:
        # Tiles start at multiples of their size; count the groups that the worst of them meets.
        more_groups = (size - 1 + step - gcd(size, step)) // step
        return min(length, reach + more_groups * step)

    def work(shapes: tuple[Axes, Axes]) -> tuple[int, ...]:
        ours, theirs = shapes
        programs = prod(map(triton.cdiv, lengths, ours))
        tiles = prod(map(triton.cdiv, map(box_on_axis, lengths, window, stride, ours), theirs))
        return programs * tiles, -ours[2], -theirs[2], *ours, *theirs

    return min(product(shapes_with(held, lengths), shapes_with(walked, lengths)), key=work)


def shapes_with(places: int, lengths: Axes) -> list[Axes]:
    """Shapes of three powers of two with so many places, the last axis as long as need be."""
    first, second = (
        [2**power for power in range(triton.next_power_of_2(length).bit_length())]
        for length in lengths[:2]
    )
    return [(a, b, places // (a * b)) for a, b in product(first, second) if a * b <= places]
