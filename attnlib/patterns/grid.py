"""Supports by place on a grid of one, two or three axes: windows, blocks, halos, discs, rectangles.

The places of a grid are numbered row by row: place p of a grid (rows, columns) lies in row
p // columns and column p % columns. Each function makes a `Support` of these numbers.
"""

import math

from torch import Tensor

from attnlib.checks import check_count
from attnlib.support import Support

Axes = tuple[int, ...]
MOST_AXES = 3


def coordinates(place: Tensor, grid: Axes) -> tuple[Tensor, ...]:
    """Where the places of these numbers lie: one tensor of coordinates for each axis."""
    found = []
    for length in reversed(grid[1:]):
        found.append(place % length)
        place = place // length
    return (place, *reversed(found))


def neighborhood(
    grid: int | Axes,
    window: int | Axes,
    dilation: int | Axes = 1,
    stride: int | Axes = 1,
    is_causal: bool | tuple[bool, ...] = False,
) -> Support:
    """The window around a query, shifted where the grid ends: as many keys for every query.

    On each axis places fall into `dilation` classes by their remainder, and places are counted
    within their class, L of them. A query at i sees the W keys from first to first + W - 1:

        leader = min(i // stride * stride + stride // 2, L - 1)
        first  = clamp(leader - W // 2, 0, L - W)

    With stride 1 the leader is the query itself. Queries of one group share the window of their
    leader, so stride = W gives blocks. An even window reaches one place further back than ahead.
    On a causal axis the leader is the last of the group, and a query sees the keys from
    max(leader - W + 1, 0) to itself. `window`, `dilation`, `stride`, `is_causal`: one for all axes,
    or one for each.

    Raises ValueError where window * dilation is longer than the axis, or stride than the window.
    Source: Hassani et al. (2023), the window; Hassani and Shi (2022), dilation; Hassani et al.
    (2024), the causal rule; Hassani et al. (2025), even windows and stride.
    """
    grid, windows, dilations, strides, causal = neighborhood_rule(
        grid, window, dilation, stride, is_causal
    )

    def seen(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        axes = zip(
            coordinates(q_idx, grid),
            coordinates(kv_idx, grid),
            zip(grid, windows, dilations, strides, causal, strict=True),
            strict=True,
        )
        return every(in_window(query, key, *rule) for query, key, rule in axes)

    return Support(seen, f"neighborhood({grid}, {windows})")


def in_window(
    query: Tensor,
    key: Tensor,
    length: int,
    window: int,
    dilation: int,
    stride: int,
    is_causal: bool,
) -> Tensor:
    """Whether a query sees a key on one axis, both given by their coordinate there."""
    in_class = (length - query % dilation + dilation - 1) // dilation
    first, stop = window_of(query // dilation, in_class, window, stride, is_causal)
    key_in_class = key // dilation
    same_class = query % dilation == key % dilation
    return same_class & (key_in_class >= first) & (key_in_class < stop)


def window_of(
    place: Tensor, length: Tensor | int, window: int, stride: int, is_causal: bool
) -> tuple[Tensor, Tensor]:
    """The first key that a query sees among `length` places, and the place after the last one."""
    group = place // stride * stride
    if is_causal:
        leader = (group + stride - 1).clamp(max=length - 1)
        return (leader - window + 1).clamp(min=0), place + 1
    leader = (group + stride // 2).clamp(max=length - 1)
    first = (leader - window // 2).clamp(min=0).clamp(max=length - window)
    return first, first + window


def neighborhood_rule(
    grid: int | Axes,
    window: int | Axes,
    dilation: int | Axes = 1,
    stride: int | Axes = 1,
    is_causal: bool | tuple[bool, ...] = False,
) -> tuple[Axes, Axes, Axes, Axes, tuple[bool, ...]]:
    """Grid, windows, dilations, strides and causal axes, one for each axis, once they fit."""
    grid = check_grid(grid)
    windows = for_each_axis("window", window, grid)
    dilations = for_each_axis("dilation", dilation, grid)
    strides = for_each_axis("stride", stride, grid)
    causal = causal_axes(is_causal, grid)
    for axis, (length, size, gap, step) in enumerate(
        zip(grid, windows, dilations, strides, strict=True)
    ):
        if size * gap > length:
            raise ValueError(
                f"window times dilation must fit into the grid {grid}, got window {size} and "
                f"dilation {gap} on axis {axis} of {length} places"
            )
        if step > size:
            raise ValueError(
                f"stride must be at most the window, got stride {step} and window {size} on axis "
                f"{axis}: keys between two windows would be seen by no query"
            )
    return grid, windows, dilations, strides, causal


def blocks(grid: int | Axes, size: int | Axes, shift: int | Axes = 0) -> Support:
    """The keys of the query's own block; blocks of `size` places begin at `shift` on each axis.

    A shifted grid of blocks ends in parts of a block, which see only themselves: nothing wraps
    around. Raises ValueError where size does not divide the grid, or shift is not less than size.
    Source: Liu et al. (2021), section 3.2.
    """
    grid = check_grid(grid)
    sizes, shifts = block_sides("size", size, shift, grid)

    def block_of(place: Tensor) -> tuple[Tensor, ...]:
        # One block more, so that no coordinate is negative.
        axes = zip(coordinates(place, grid), sizes, shifts, strict=True)
        return tuple((at + length - start) // length for at, length, start in axes)

    def seen(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        both = zip(block_of(q_idx), block_of(kv_idx), strict=True)
        return every(query == key for query, key in both) & inside(kv_idx, grid)

    return Support(seen, f"blocks({grid}, {sizes}, shift={shifts})")


def block_sides(name: str, size: int | Axes, shift: int | Axes, grid: Axes) -> tuple[Axes, Axes]:
    """The sides of a block and its shift on each axis, once blocks divide the grid."""
    sizes = dividing_sizes(name, size, grid)
    shifts = for_each_axis("shift", shift, grid, least=0)
    for axis, (length, start) in enumerate(zip(sizes, shifts, strict=True)):
        if start >= length:
            raise ValueError(
                f"shift must be less than {name}, got {start} and {length} on axis {axis}"
            )
    return sizes, shifts


def halo(grid: int | Axes, size: int | Axes, halo: int | Axes, stride: int | Axes = 1) -> Support:
    """The keys of the query's own block, and those up to `halo` places around it.

    On each axis a query of the block that starts at c sees the keys c - halo <= j < c + size + halo
    that lie on the grid. With a stride the queries are those of every stride-th place: query
    number 0, 1, ... of the smaller grid, whose axes have length / stride places.
    Raises ValueError where size does not divide the grid or stride does not divide size.
    Source: Vaswani et al. (2021), HaloNet: blocked local attention and its strided form.
    """
    grid = check_grid(grid)
    sizes = dividing_sizes("size", size, grid)
    halos = for_each_axis("halo", halo, grid, least=0)
    strides = for_each_axis("stride", stride, grid)
    query_grid = strided_grid(grid, sizes, strides)

    def seen(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        axes = zip(
            coordinates(q_idx, query_grid),
            coordinates(kv_idx, grid),
            zip(sizes, halos, strides, strict=True),
            strict=True,
        )
        near = (in_halo(query * step, key, size, reach) for query, key, (size, reach, step) in axes)
        return every(near) & inside(kv_idx, grid)

    name = f"halo({grid}, {sizes}, {halos})"
    return Support(seen, name if set(strides) == {1} else f"{name[:-1]}, stride={strides})")


def in_halo(query: Tensor, key: Tensor, size: int, reach: int) -> Tensor:
    """Whether a key lies in the query's block or at most `reach` places beside it, on one axis."""
    start = query // size * size
    return (key >= start - reach) & (key < start + size + reach)


def strided_grid(grid: Axes, sizes: Axes, strides: Axes) -> Axes:
    """The grid of every stride-th place, once each stride is sure to divide its block."""
    for axis, (size, step) in enumerate(zip(sizes, strides, strict=True)):
        if size % step:
            raise ValueError(f"stride must divide size, got {step} and {size} on axis {axis}")
    return tuple(length // step for length, step in zip(grid, strides, strict=True))


def disc(grid: int | Axes, radius: float) -> Support:
    """The keys nearer than `radius`: |p_i - p_j|^2 < radius^2, cut off where the grid ends.

    Source: Liu et al. (2025), CLEAR.
    """
    grid = check_grid(grid)
    if isinstance(radius, bool) or not isinstance(radius, int | float):
        raise TypeError(f"radius must be a number, got {type(radius).__name__}")
    if not (math.isfinite(radius) and radius > 0):
        raise ValueError(f"radius must be a positive finite number, got {radius}")

    def seen(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        both = zip(coordinates(q_idx, grid), coordinates(kv_idx, grid), strict=True)
        squared = sum((query - key) ** 2 for query, key in both)
        return (squared < radius**2) & inside(kv_idx, grid)

    return Support(seen, f"disc({grid}, {radius})")


def rectangles(
    grid: tuple[int, int], height: int, width: int, shift: int | tuple[int, int] = 0
) -> Support:
    """The keys of the query's own rectangle of height x width places: `blocks` that are no squares.

    Half of the heads may take height x width and half width x height. Shift one of the two axes
    for an axial shift.
    Source: Chen et al. (2022), Cross Aggregation Transformer.
    """
    grid = check_grid(grid)
    if len(grid) != 2:
        raise ValueError(f"grid must be (rows, columns) for rectangles, got {grid}")
    check_count("height", height, least=1)
    check_count("width", width, least=1)
    for name, size, length in (("height", height, grid[0]), ("width", width, grid[1])):
        if length % size:
            raise ValueError(f"{name} must divide the grid {grid}, got {size}")
    support = blocks(grid, (height, width), shift)
    shifts = for_each_axis("shift", shift, grid, least=0)
    return Support(support.predicate, f"rectangles({grid}, {height}, {width}, shift={shifts})")


def axial(grid: int | Axes, axis: int) -> Support:
    """The keys of the query's own line along `axis`: the same coordinate on all other axes.

    Source: Ho et al. (2019).
    """
    grid = check_grid(grid)
    check_count("axis", axis)
    if axis >= len(grid):
        raise ValueError(f"axis must be one of the {len(grid)} axes of the grid {grid}, got {axis}")

    def seen(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        both = list(zip(coordinates(q_idx, grid), coordinates(kv_idx, grid), strict=True))
        others = [pair for number, pair in enumerate(both) if number != axis]
        return every(query == key for query, key in others) & inside(kv_idx, grid) & (q_idx >= 0)

    return Support(seen, f"axial({grid}, {axis})")


def every(conditions) -> Tensor | bool:
    """Whether all conditions hold; True where there is none."""
    together = True
    for condition in conditions:
        together = condition & together
    return together


def inside(place: Tensor, grid: Axes) -> Tensor:
    """Whether the places of these numbers lie on the grid."""
    return (place >= 0) & (place < math.prod(grid))


def check_grid(grid: int | Axes) -> Axes:
    """The lengths of the one to three axes of a grid; an int is a line of so many places."""
    axes = tuple(grid) if isinstance(grid, tuple | list) else (grid,)
    if not 1 <= len(axes) <= MOST_AXES:
        raise ValueError(f"grid must have one to {MOST_AXES} axes, got {grid!r}")
    for length in axes:
        check_count("grid", length, least=1)
    return axes


def for_each_axis(name: str, given: int | Axes, grid: Axes, least: int = 1) -> Axes:
    """One number for each axis, from one for all or one for each."""
    numbers = tuple(given) if isinstance(given, tuple | list) else (given,) * len(grid)
    if len(numbers) != len(grid):
        raise ValueError(
            f"{name} must be one number or one for each of the {len(grid)} axes of the grid "
            f"{grid}, got {given!r}"
        )
    for number in numbers:
        check_count(name, number, least=least)
    return numbers


def causal_axes(given: bool | tuple[bool, ...], grid: Axes) -> tuple[bool, ...]:
    """Which axes are causal, from one bool for all or one for each."""
    causal = tuple(given) if isinstance(given, tuple | list) else (given,) * len(grid)
    if not all(isinstance(one, bool) for one in causal):
        raise TypeError(f"is_causal must be a bool or a tuple of bools, got {given!r}")
    if len(causal) != len(grid):
        raise ValueError(
            f"is_causal must be one bool or one for each of the {len(grid)} axes of the grid "
            f"{grid}, got {given!r}"
        )
    return causal


def dividing_sizes(name: str, given: int | Axes, grid: Axes) -> Axes:
    """The size of a block on each axis, once each is sure to divide its axis."""
    sizes = for_each_axis(name, given, grid)
    for axis, (length, size) in enumerate(zip(grid, sizes, strict=True)):
        if length % size:
            raise ValueError(
                f"{name} must divide the grid {grid}, got {size} for the {length} places of axis "
                f"{axis}"
            )
    return sizes
