"""Windows on grids of one, two or three axes: who sees whom, and tiles of places.

All here is for three axes; a grid of fewer has leading axes of one place. With dilation d an axis
falls into d classes that never meet: the places of residue r are r, r + d, r + 2d, ... Below, a
*place* is counted within its class, and L is how many places the class has on that axis.

On each axis query i sees a stretch of W keys. With a stride s the queries of a group (s in a row)
share the stretch of their leader, the middle one, or the right one of two middles:

    leader_i = min(floor(i / s) s + floor(s / 2), L - 1)
    first_i  = clamp(leader_i - floor(W / 2), 0, L - W)       keys first_i ... first_i + W - 1

An even window reaches one place further back than ahead. Near a border the stretch is shifted, not
cut. On a causal axis the leader is the last of the group, and each query sees the keys up to
itself. Here the stretch is cut at the start:

    leader_i = min(floor(i / s) s + s - 1, L - 1)
    first_i  = max(leader_i - W + 1, 0)                       keys first_i ... i

As i grows, neither end of the stretch moves back. So the queries that see key j are one stretch
too, and a box of queries sees a box of keys: from the first key of its first query to the last
key of its last query, on each axis. A query sees a key if it does so on every axis.
"""

import triton
import triton.language as tl
from attnlib.kernels.tiles import head_at, padded


@triton.jit
def keys_on_axis(query, length, window: tl.constexpr, stride: tl.constexpr, causal: tl.constexpr):
    """The first key that a query sees on one axis, and the place after the last."""
    group = query // stride * stride
    if causal:
        leader = tl.minimum(group + stride - 1, length - 1)
        first = tl.maximum(leader - window + 1, 0)
        stop = query + 1
    else:
        leader = tl.minimum(group + stride // 2, length - 1)
        first = tl.minimum(tl.maximum(leader - window // 2, 0), length - window)
        stop = first + window
    return first, stop


@triton.jit
def queries_on_axis(key, length, window: tl.constexpr, stride: tl.constexpr, causal: tl.constexpr):
    """The first query that sees a key on one axis, and the place after the last.

    It is keys_on_axis solved for the group: the first whose stretch ends behind the key, the last
    whose stretch begins at the key or before it.
    """
    if causal:
        first = key
        stop = tl.where(key + window >= length, length, (key + window) // stride * stride)
    else:
        back = window // 2 - stride // 2  # a stretch begins so far before its group
        ahead = window - 1 - back
        first = tl.where(key < window, 0, tl.cdiv(key - ahead, stride) * stride)
        last_group = (key + back) // stride
        stop = tl.where(
            key >= length - window, length, tl.minimum(last_group * stride + stride, length)
        )
    return first, stop


@triton.jit
def keys_of(
    queries,
    lengths,
    window: tl.constexpr,
    stride: tl.constexpr,
    is_causal: tl.constexpr,
):
    """On each axis the first key of each query, and the place after its last key."""
    first_0, stop_0 = keys_on_axis(queries[0], lengths[0], window[0], stride[0], is_causal[0])
    first_1, stop_1 = keys_on_axis(queries[1], lengths[1], window[1], stride[1], is_causal[1])
    first_2, stop_2 = keys_on_axis(queries[2], lengths[2], window[2], stride[2], is_causal[2])
    return (first_0, first_1, first_2), (stop_0, stop_1, stop_2)


@triton.jit
def queries_of(
    keys,
    lengths,
    window: tl.constexpr,
    stride: tl.constexpr,
    is_causal: tl.constexpr,
):
    """On each axis the first query that sees each key, and the place after the last."""
    first_0, stop_0 = queries_on_axis(keys[0], lengths[0], window[0], stride[0], is_causal[0])
    first_1, stop_1 = queries_on_axis(keys[1], lengths[1], window[1], stride[1], is_causal[1])
    first_2, stop_2 = queries_on_axis(keys[2], lengths[2], window[2], stride[2], is_causal[2])
    return (first_0, first_1, first_2), (stop_0, stop_1, stop_2)


@triton.jit
def my_tile(grid, heads, dilation: tl.constexpr, shape: tl.constexpr):
    """Where the tile of this program starts, how long its axes are, and its part of the tensor.

    The part is the batch entry, the head and a residue for each axis.
    """
    number = tl.program_id(0)
    tiles_0 = tl.cdiv(tl.cdiv(grid[0], dilation[0]), shape[0])
    tiles_1 = tl.cdiv(tl.cdiv(grid[1], dilation[1]), shape[1])
    tiles_2 = tl.cdiv(tl.cdiv(grid[2], dilation[2]), shape[2])
    start_2, number = number % tiles_2 * shape[2], number // tiles_2
    start_1, number = number % tiles_1 * shape[1], number // tiles_1
    start_0, number = number % tiles_0 * shape[0], number // tiles_0
    residue_2, number = number % dilation[2], number // dilation[2]
    residue_1, number = number % dilation[1], number // dilation[1]
    residue_0, number = number % dilation[0], number // dilation[0]
    lengths = (
        tl.cdiv(grid[0] - residue_0, dilation[0]),
        tl.cdiv(grid[1] - residue_1, dilation[1]),
        tl.cdiv(grid[2] - residue_2, dilation[2]),
    )
    part = (number // heads, number % heads, residue_0, residue_1, residue_2)
    return (start_0, start_1, start_2), lengths, part


@triton.jit
def last_place(start, lengths, shape: tl.constexpr):
    """The last place of a tile on each axis."""
    return (
        tl.minimum(start[0] + shape[0], lengths[0]) - 1,
        tl.minimum(start[1] + shape[1], lengths[1]) - 1,
        tl.minimum(start[2] + shape[2], lengths[2]) - 1,
    )


@triton.jit
def box_of_keys(
    start,
    lengths,
    shape: tl.constexpr,
    window: tl.constexpr,
    stride: tl.constexpr,
    is_causal: tl.constexpr,
):
    """The keys that some query of a tile sees: the first, and the place after the last."""
    first, _ = keys_of(start, lengths, window, stride, is_causal)
    _, stop = keys_of(last_place(start, lengths, shape), lengths, window, stride, is_causal)
    return first, stop


@triton.jit
def box_of_queries(
    start,
    lengths,
    shape: tl.constexpr,
    window: tl.constexpr,
    stride: tl.constexpr,
    is_causal: tl.constexpr,
):
    """The queries that see some key of a tile: the first, and the place after the last."""
    first, _ = queries_of(start, lengths, window, stride, is_causal)
    _, stop = queries_of(last_place(start, lengths, shape), lengths, window, stride, is_causal)
    return first, stop


@triton.jit
def tiles_in_box(first, stop, shape: tl.constexpr):
    """How many tiles cover a box, on each axis."""
    return (
        tl.cdiv(tl.maximum(stop[0] - first[0], 0), shape[0]),
        tl.cdiv(tl.maximum(stop[1] - first[1], 0), shape[1]),
        tl.cdiv(tl.maximum(stop[2] - first[2], 0), shape[2]),
    )


@triton.jit
def tile_of_box(number, first, tiles, shape: tl.constexpr):
    """Where the tile of this number starts; one loop over all tiles lets loads run ahead."""
    return (
        first[0] + number // (tiles[1] * tiles[2]) * shape[0],
        first[1] + number // tiles[2] % tiles[1] * shape[1],
        first[2] + number % tiles[2] * shape[2],
    )


@triton.jit
def places_of(start, shape: tl.constexpr):
    """The places of a tile on each axis, row by row."""
    number = tl.arange(0, shape[0] * shape[1] * shape[2])
    return (
        start[0] + number // (shape[1] * shape[2]),
        start[1] + number // shape[2] % shape[1],
        start[2] + number % shape[2],
    )


@triton.jit
def places_present(places, stop):
    """Which places of a tile lie before the end of the grid, or of a box, on each axis."""
    return (places[0] < stop[0]) & (places[1] < stop[1]) & (places[2] < stop[2])


@triton.jit
def in_sight(first, stop, places, shape: tl.constexpr, their_shape: tl.constexpr):
    """Rows are places with a stretch, columns are places: is the column in the row's stretch?

    On an axis where both tiles are one place wide, the box that is walked is the stretch itself.
    """
    seen = tl.full([first[0].shape[0], places[0].shape[0]], True, tl.int1)
    for axis in tl.static_range(3):
        if shape[axis] > 1 or their_shape[axis] > 1:
            column = places[axis][None, :]
            seen = seen & (column >= first[axis][:, None]) & (column < stop[axis][:, None])
    return seen


@triton.jit
def part_at(ptr, steps, part):
    """Where the places of one batch entry, one head and one residue of each axis start."""
    ptr = head_at(ptr, steps, part[0], part[1])
    ptr += tl.cast(part[2], tl.int64) * steps[2]
    ptr += tl.cast(part[3], tl.int64) * steps[3]
    return ptr + tl.cast(part[4], tl.int64) * steps[4]


@triton.jit
def axis_steps(steps, dilation: tl.constexpr):
    """How far places lie apart on each axis: between them are those of other residues."""
    return (
        tl.cast(steps[2], tl.int64) * dilation[0],
        tl.cast(steps[3], tl.int64) * dilation[1],
        tl.cast(steps[4], tl.int64) * dilation[2],
    )


@triton.jit
def rows_at(places, steps):
    """How far the places of a tile lie from the start of their part."""
    return places[0] * steps[0] + places[1] * steps[1] + places[2] * steps[2]


@triton.jit
def row_numbers(places, part, grid_shape, heads, dilation: tl.constexpr):
    """Which rows of a contiguous tensor (batch, heads, *grid_shape) the places of a tile are."""
    head = tl.cast(part[0], tl.int64) * heads + part[1]
    row = head * grid_shape[0] + (places[0] * dilation[0] + part[2])
    row = row * grid_shape[1] + (places[1] * dilation[1] + part[3])
    return row * grid_shape[2] + (places[2] * dilation[2] + part[4])


@triton.jit
def load_places(ptr, rows, present, width: tl.constexpr):
    """The rows so far from ptr as a tile: zero where one is not present, and in the padding."""
    columns = tl.arange(0, padded(width))[None, :]
    inside = present[:, None]
    if width < padded(width):
        inside = inside & (columns < width)
    return tl.load(ptr + rows[:, None] + columns, mask=inside, other=0.0)


@triton.jit
def store_places(ptr, rows, tile, present, width: tl.constexpr):
    """Write the rows of a tile that are present."""
    columns = tl.arange(0, padded(width))[None, :]
    inside = present[:, None]
    if width < padded(width):
        inside = inside & (columns < width)
    tl.store(ptr + rows[:, None] + columns, tile.to(ptr.dtype.element_ty), mask=inside)
