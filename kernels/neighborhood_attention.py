"""Neighborhood attention as a kernel: each query of a grid reads a window around it.

The equation. Places of a grid are tuples of one, two or three numbers. Query i attends to the keys
of its window S_i, which has W_a places on axis a:

    s_ij = scale q_i . k_j        l_i = log sum_{j in S_i} exp(s_ij)
    p_ij = exp(s_ij - l_i)        o_i = sum_{j in S_i} p_ij v_j
    S_i  = {j : first_i <= j <= last_i on every axis}

Where a window is on its axis (borders, stride, dilation, the causal rule): `grid_windows.py`.
Backward, with g_i for the gradient dL/do_i that arrives at row i and delta_i = g_i . o_i:

    dL/dv_j  = sum_i p_ij g_i
    dL/ds_ij = p_ij (g_i . v_j - delta_i)
    dL/dq_i  = scale sum_j dL/ds_ij k_j
    dL/dk_j  = scale sum_i dL/ds_ij q_i           sums over the i with j in S_i

The picture. Were the grid one long row, the 128 queries of a tile would lie in a line, and their
windows would cover 13 lines of 140 places where 13 x 13 = 169 is what one query needs. So a tile
is a small box of the grid, 8 x 16 queries, and the windows of its queries together are a box too:

    + - - - - - - - +
    |   +-------+   |        the 8 x 16 queries of one program, and
    |   |queries|   |        the box of (8 + 12) x (16 + 12) keys that
    |   +-------+   |        at least one of them sees, W = 13 x 13
    + - - - - - - - +

A program walks over the box in tiles of 4 x 32 keys (any shape will do: the host takes the one
with the least work) and hides from each query what is outside its own window. All that is outside
the box is never visited. Dilation costs no mask: residues are like batch entries, with steps that
are d times as long. Lines and volumes are the same code: a grid has three axes, some of length 1.

What one program does. Forward: one tile of queries of one head and one residue. It folds tile
after tile of the box into running_max, running_sum and accumulator, as in `flash_attention.py`.
Backward: two kernels. One holds a tile of queries and walks over keys for dL/dq. The other holds
a tile of keys and walks over the box of queries that see them, for dL/dk and dL/dv. Each gradient
has one writer, so a run repeats to the last bit.

What it moves, per head with b bytes a number and N places: forward b N (2 D + 2 E) and 4 N for l.
Backward reads those and g, and writes three gradients.

What it computes: with W keys in a window, forward 2 N W (D + E) operations, backward 2.5 times as
many (ours computes s and dL/dp in both kernels: 3.5 times); and those of the box that its queries
do not see: at 13 x 13, 640 keys a query for 169.

The bound: an H200 multiplies about 790e12 bf16 operations a second and copies 4.3e12 bytes. On
128 x 128 places with D = 64, B = H = 16 and a 13 x 13 window, forward moves 2.2e9 bytes (0.50 ms)
for 1.8e11 operations (0.23 ms): memory decides. With what the tiles add it is 6.9e11 operations,
0.87 ms: products decide. In one dimension, a window of 2048 is 94 % of what a tile walks over.

Exponents are base 2, as in `flash_attention.py`.

Sources: Hassani et al., "Neighborhood Attention Transformer", 2023 (the window, shifted at a
border); Hassani and Shi, "Dilated Neighborhood Attention Transformer", 2022; Hassani et al.,
"Faster Neighborhood Attention", 2024 (tiles of several axes, the causal rule by axis); Hassani et
al., "Generalized Neighborhood Attention", 2025, arXiv:2504.16922 (stride). Which query leads, and
to which side an even window leans, is what the reference mask of the package NATTEN 0.21.7 says
(csrc/include/natten/cuda/reference/mask.hpp).
"""

import torch
import triton
import triton.language as tl
from attnlib.kernels.grid_launch import (
    batch_heads_and_grid,
    check_grid,
    check_windows,
    for_each_axis,
    one_line,
    programs,
    with_shapes,
)
from attnlib.kernels.grid_windows import (
    axis_steps,
    box_of_keys,
    box_of_queries,
    in_sight,
    keys_of,
    load_places,
    my_tile,
    part_at,
    places_of,
    places_present,
    queries_of,
    row_numbers,
    rows_at,
    store_places,
    tile_of_box,
    tiles_in_box,
)
from attnlib.kernels.launch import (
    check_attention,
    check_device,
    check_scale,
    on_device_of,
    readable,
)
from attnlib.kernels.tile_choice import tile_for
from attnlib.kernels.tiles import LOG2_E, arithmetic_of, finite, padded, product
from torch import Tensor
from torch.autograd.function import once_differentiable


def neighborhood_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: int | tuple[int, ...],
    *,
    stride: int | tuple[int, ...] = 1,
    dilation: int | tuple[int, ...] = 1,
    is_causal: bool | tuple[bool, ...] = False,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention on a grid, each query over the window around it.

    o_i = sum_{j in S_i} e^{s_ij} v_j / sum_{j in S_i} e^{s_ij}, where S_i is a box of window[a]
    places on each axis a.

    Shapes: query (*batch, H, *grid, D), key (*batch, Hkv, *grid, D), value (*batch, Hkv, *grid, E),
    read (*batch, H, *grid, E). The grid has as many axes as `window` has numbers, one to three; an
    int is a grid of one axis. H is a multiple of Hkv: query head h reads key head h // (H / Hkv).
    D and E are 1 to 256. stride, dilation and is_causal are one for all axes, or one for each.

    On one axis, with W = window, s = stride and places counted among those of the same residue
    modulo dilation (L of them):
    query i sees the W keys from clamp(leader - W // 2, 0, L - W), where leader is the middle query
    of its group, min(i // s * s + s // 2, L - 1). With s = 1 the leader is i itself: the window is
    centered, an even one reaches one place further back than ahead, and at a border it is shifted.
    On a causal axis the leader is the last query of the group, min(i // s * s + s - 1, L - 1), and
    query i sees the keys from max(leader - W + 1, 0) to i. So every query sees itself, and as many
    keys as the window has unless an axis is causal. stride = window is attention within blocks.
    These are the rules of NATTEN, but for a window of 1, which NATTEN refuses.

    scale is D ** -0.5 unless given. Finite for scores up to 1e4; a float32 weight then has a
    relative error near 1e4 * 2^-24. float16 and bfloat16 are summed in float32, float32 is
    multiplied in full precision (no tf32). A key that a query does not see changes no bit of what
    the query reads, as long as it is finite. Gradients flow to query, key and value, once (there is
    no second derivative).

    Cost: 2 (D + E) operations a pair of a query and a key in the box of its tile, memory linear in
    the places. Batch axes that do not fold into one are copied; all other layouts are read where
    they are.

    Raises TypeError for a wrong dtype; ValueError for shapes that do not fit, a width over 256,
    numbers of a row that are not adjacent, devices that differ or cannot run Triton, a scale,
    window, stride or dilation that is not positive, a window that times its dilation is longer
    than its axis, a stride longer than the window, a chip whose shared memory holds no tile.
    """
    axes = len(window) if isinstance(window, tuple | list) else 1
    rule = {
        "window": for_each_axis("window", window, axes),
        "stride": for_each_axis("stride", stride, axes),
        "dilation": for_each_axis("dilation", dilation, axes),
        "is_causal": for_each_axis("is_causal", is_causal, axes),
    }
    tensors = {"query": query, "key": key, "value": value}
    for name, tensor in tensors.items():
        check_grid(name, tensor, query, axes)
    check_windows(query, axes, rule)
    check_attention(*(one_line(tensor, axes) for tensor in tensors.values()))
    check_scale(scale)
    check_device(forward_kernel, **tensors)
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    folded = (batch_heads_and_grid(tensor, axes) for tensor in (query, key, value))
    read = NeighborhoodAttention.apply(*folded, rule, scale)
    return read.view(*query.shape[:-1], value.shape[-1])


@triton.jit
def forward_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    read_ptr,
    log_sum_ptr,
    query_steps,
    key_steps,
    value_steps,
    grid_shape,
    heads,
    group,
    window: tl.constexpr,
    stride: tl.constexpr,
    dilation: tl.constexpr,
    is_causal: tl.constexpr,
    scale: tl.constexpr,
    width: tl.constexpr,
    value_width: tl.constexpr,
    arithmetic: tl.constexpr,
    query_shape: tl.constexpr,
    key_shape: tl.constexpr,
):
    start, lengths, part = my_tile(grid_shape, heads, dilation, query_shape)
    key_part = (part[0], part[1] // group, part[2], part[3], part[4])
    queries = places_of(start, query_shape)
    query_present = places_present(queries, lengths)
    query_ptr = part_at(query_ptr, query_steps, part)
    key_ptr = part_at(key_ptr, key_steps, key_part)
    value_ptr = part_at(value_ptr, value_steps, key_part)
    key_steps, value_steps = axis_steps(key_steps, dilation), axis_steps(value_steps, dilation)
    query_rows = rows_at(queries, axis_steps(query_steps, dilation))
    query_block = load_places(query_ptr, query_rows, query_present, width)
    rows = row_numbers(queries, part, grid_shape, heads, dilation)
    running_max = tl.full(rows.shape, -float("inf"), arithmetic)
    running_sum = tl.zeros(rows.shape, arithmetic)
    accumulator = tl.zeros([rows.shape[0], padded(value_width)], arithmetic)

    first, stop = keys_of(queries, lengths, window, stride, is_causal)
    box, box_stop = box_of_keys(start, lengths, query_shape, window, stride, is_causal)
    tiles = tiles_in_box(box, box_stop, key_shape)
    for number in range(0, tiles[0] * tiles[1] * tiles[2]):
        key_start = tile_of_box(number, box, tiles, key_shape)
        keys = places_of(key_start, key_shape)
        present = places_present(keys, box_stop)
        key_block = load_places(key_ptr, rows_at(keys, key_steps), present, width)
        scores = product(query_block, tl.trans(key_block))
        seen = in_sight(first, stop, keys, query_shape, key_shape)
        scores = tl.where(seen, scores, -float("inf"))

        new_max = tl.maximum(running_max, tl.max(scores, 1) * (scale * LOG2_E))
        weights = tl.exp2(scores * (scale * LOG2_E) - finite(new_max)[:, None])
        shrink = tl.exp2(running_max - finite(new_max))
        running_sum = running_sum * shrink + tl.sum(weights, 1)
        value_block = load_places(value_ptr, rows_at(keys, value_steps), present, value_width)
        accumulator = accumulator * shrink[:, None]
        accumulator += product(weights.to(value_block.dtype), value_block)
        running_max = new_max

    # A row of padding may have seen nothing; a query sees itself.
    normalizer = tl.where(running_sum == 0.0, 1.0, running_sum)
    tl.store(log_sum_ptr + rows, running_max + tl.log2(normalizer), mask=query_present)
    read = accumulator / normalizer[:, None]
    store_places(read_ptr, rows * value_width, read, query_present, value_width)


@triton.jit
def query_gradient_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    read_ptr,
    log_sum_ptr,
    grad_read_ptr,
    delta_ptr,
    grad_query_ptr,
    query_steps,
    key_steps,
    value_steps,
    grid_shape,
    heads,
    group,
    window: tl.constexpr,
    stride: tl.constexpr,
    dilation: tl.constexpr,
    is_causal: tl.constexpr,
    scale: tl.constexpr,
    width: tl.constexpr,
    value_width: tl.constexpr,
    arithmetic: tl.constexpr,
    query_shape: tl.constexpr,
    key_shape: tl.constexpr,
):
    start, lengths, part = my_tile(grid_shape, heads, dilation, query_shape)
    key_part = (part[0], part[1] // group, part[2], part[3], part[4])
    queries = places_of(start, query_shape)
    query_present = places_present(queries, lengths)
    query_ptr = part_at(query_ptr, query_steps, part)
    key_ptr = part_at(key_ptr, key_steps, key_part)
    value_ptr = part_at(value_ptr, value_steps, key_part)
    key_steps, value_steps = axis_steps(key_steps, dilation), axis_steps(value_steps, dilation)
    query_rows = rows_at(queries, axis_steps(query_steps, dilation))
    query_block = load_places(query_ptr, query_rows, query_present, width)
    rows = row_numbers(queries, part, grid_shape, heads, dilation)
    read = load_places(read_ptr, rows * value_width, query_present, value_width)
    grad_read = load_places(grad_read_ptr, rows * value_width, query_present, value_width)
    delta = tl.sum(grad_read.to(arithmetic) * read.to(arithmetic), 1)
    tl.store(delta_ptr + rows, delta, mask=query_present)
    log_sum = tl.load(log_sum_ptr + rows, mask=query_present, other=0.0)
    grad_query = tl.zeros([rows.shape[0], padded(width)], arithmetic)

    first, stop = keys_of(queries, lengths, window, stride, is_causal)
    box, box_stop = box_of_keys(start, lengths, query_shape, window, stride, is_causal)
    tiles = tiles_in_box(box, box_stop, key_shape)
    for number in range(0, tiles[0] * tiles[1] * tiles[2]):
        key_start = tile_of_box(number, box, tiles, key_shape)
        keys = places_of(key_start, key_shape)
        present = places_present(keys, box_stop)
        key_block = load_places(key_ptr, rows_at(keys, key_steps), present, width)
        value_block = load_places(value_ptr, rows_at(keys, value_steps), present, value_width)
        scores = product(query_block, tl.trans(key_block))
        seen = in_sight(first, stop, keys, query_shape, key_shape)
        scores = tl.where(seen, scores, -float("inf"))
        weights = tl.exp2(scores * (scale * LOG2_E) - log_sum[:, None])
        grad_weights = product(grad_read, tl.trans(value_block))
        grad_scores = weights * (grad_weights - delta[:, None])
        grad_query += product(grad_scores.to(key_block.dtype), key_block)

    store_places(grad_query_ptr, rows * width, grad_query * scale, query_present, width)


@triton.jit
def key_gradient_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    log_sum_ptr,
    grad_read_ptr,
    delta_ptr,
    grad_key_ptr,
    grad_value_ptr,
    query_steps,
    key_steps,
    value_steps,
    grid_shape,
    heads,
    group,
    window: tl.constexpr,
    stride: tl.constexpr,
    dilation: tl.constexpr,
    is_causal: tl.constexpr,
    scale: tl.constexpr,
    width: tl.constexpr,
    value_width: tl.constexpr,
    arithmetic: tl.constexpr,
    query_shape: tl.constexpr,
    key_shape: tl.constexpr,
):
    start, lengths, part = my_tile(grid_shape, heads // group, dilation, key_shape)
    keys = places_of(start, key_shape)
    present = places_present(keys, lengths)
    key_rows = rows_at(keys, axis_steps(key_steps, dilation))
    key_block = load_places(part_at(key_ptr, key_steps, part), key_rows, present, width)
    value_ptr = part_at(value_ptr, value_steps, part)
    value_rows = rows_at(keys, axis_steps(value_steps, dilation))
    value_block = load_places(value_ptr, value_rows, present, value_width)
    grad_key = tl.zeros([key_rows.shape[0], padded(width)], arithmetic)
    grad_value = tl.zeros([key_rows.shape[0], padded(value_width)], arithmetic)

    first, stop = queries_of(keys, lengths, window, stride, is_causal)
    box, box_stop = box_of_queries(start, lengths, key_shape, window, stride, is_causal)
    tiles = tiles_in_box(box, box_stop, query_shape)
    per_head = tiles[0] * tiles[1] * tiles[2]
    for number in range(0, group * per_head):
        head = part[1] * group + number // per_head
        query_part = (part[0], head, part[2], part[3], part[4])
        query_start = tile_of_box(number % per_head, box, tiles, query_shape)
        queries = places_of(query_start, query_shape)
        query_present = places_present(queries, box_stop)
        head_ptr = part_at(query_ptr, query_steps, query_part)
        query_rows = rows_at(queries, axis_steps(query_steps, dilation))
        query_block = load_places(head_ptr, query_rows, query_present, width)
        rows = row_numbers(queries, query_part, grid_shape, heads, dilation)
        grad_read = load_places(grad_read_ptr, rows * value_width, query_present, value_width)
        log_sum = tl.load(log_sum_ptr + rows, mask=query_present, other=0.0)
        delta = tl.load(delta_ptr + rows, mask=query_present, other=0.0)

        scores = product(key_block, tl.trans(query_block))
        seen = in_sight(first, stop, queries, key_shape, query_shape) & present[:, None]
        scores = tl.where(seen, scores, -float("inf"))
        weights = tl.exp2(scores * (scale * LOG2_E) - log_sum[None, :])
        grad_value += product(weights.to(grad_read.dtype), grad_read)
        grad_weights = product(value_block, tl.trans(grad_read))
        grad_scores = weights * (grad_weights - delta[None, :])
        grad_key += product(grad_scores.to(query_block.dtype), query_block)

    grad_rows = row_numbers(keys, part, grid_shape, heads // group, dilation)
    store_places(grad_key_ptr, grad_rows * width, grad_key * scale, present, width)
    store_places(grad_value_ptr, grad_rows * value_width, grad_value, present, value_width)


class NeighborhoodAttention(torch.autograd.Function):
    """The three kernels as one differentiable operation on tensors (B, H, three axes, D)."""

    @staticmethod
    def forward(ctx, query, key, value, rule, scale) -> Tensor:
        ctx.dtype = query.dtype
        query, key, value = (readable(forward_kernel, tensor) for tensor in (query, key, value))
        read, log_sum = read_and_log_sum(query, key, value, rule, scale)
        ctx.save_for_backward(query, key, value, read, log_sum)
        ctx.rule, ctx.scale = rule, scale
        return read.to(ctx.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_read: Tensor) -> tuple[Tensor | None, ...]:
        grad_read = readable(forward_kernel, grad_read.contiguous())
        gradients = gradients_of(grad_read, *ctx.saved_tensors, ctx.rule, ctx.scale)
        return *(gradient.to(ctx.dtype) for gradient in gradients), None, None


def read_and_log_sum(query, key, value, rule, scale) -> tuple[Tensor, Tensor]:
    """o, and l in base 2."""
    read = torch.empty((*query.shape[:-1], value.shape[-1]), dtype=query.dtype, device=query.device)
    log_sum = torch.empty(query.shape[:-1], dtype=arithmetic_of(query.dtype), device=query.device)
    choices = shaped_tile("forward", query, value, rule)
    with on_device_of(query):
        forward_kernel[programs(query, choices["query_shape"], rule)](
            *(query, key, value, read, log_sum),
            **problem(query, key, value, scale),
            **rule,
            **choices,
        )
    return read, log_sum


def gradients_of(grad_read, query, key, value, read, log_sum, rule, scale):
    """The gradients of query, key and value."""
    grad_query, grad_key, grad_value = (
        torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        for tensor in (query, key, value)
    )
    delta = torch.empty_like(log_sum)
    for_queries = shaped_tile("query gradient", query, value, rule)
    for_keys = shaped_tile("key gradient", query, value, rule)
    shared = problem(query, key, value, scale) | rule
    with on_device_of(query):
        query_gradient_kernel[programs(query, for_queries["query_shape"], rule)](
            *(query, key, value, read, log_sum, grad_read, delta, grad_query),
            **shared,
            **for_queries,
        )
        key_gradient_kernel[programs(key, for_keys["key_shape"], rule)](
            *(query, key, value, log_sum, grad_read, delta, grad_key, grad_value),
            **shared,
            **for_keys,
        )
    return grad_query, grad_key, grad_value


def problem(query: Tensor, key: Tensor, value: Tensor, scale: float) -> dict:
    """What all three kernels are told of the layout."""
    return {
        "query_steps": query.stride()[:5],
        "key_steps": key.stride()[:5],
        "value_steps": value.stride()[:5],
        "grid_shape": tuple(query.shape[2:5]),
        "heads": query.shape[1],
        "group": query.shape[1] // max(1, key.shape[1]),
        "scale": scale,
        "width": query.shape[5],
        "value_width": value.shape[5],
    }


def shaped_tile(kernel: str, query: Tensor, value: Tensor, rule: dict) -> dict:
    """The compile-time choices for one of the kernels, with shapes in place of block sizes."""
    choices = tile_for(TILES, kernel, query, value)
    return with_shapes(kernel, choices, tuple(query.shape[2:5]), rule)


# As `tile_choice` reads them: how many places a tile has; the window decides on its shape. Those
# for 2 bytes a number spill no registers for windows on one, two and three axes.
TILES = {
    ("forward", 2): [
        (232_448, 64, 128, 128, 8, 3),
        (232_448, 128, 128, 64, 8, 3),
        (232_448, 256, 128, 32, 8, 2),
        (101_376, 64, 128, 64, 8, 3),
        (101_376, 128, 128, 32, 8, 2),
        (101_376, 256, 64, 32, 8, 2),
    ],
    ("query gradient", 2): [
        (232_448, 64, 128, 64, 8, 3),
        (232_448, 128, 128, 64, 8, 2),
        (232_448, 256, 64, 32, 8, 2),
        (101_376, 64, 128, 64, 8, 3),
        (101_376, 128, 128, 32, 8, 2),
        (101_376, 256, 32, 32, 4, 2),
    ],
    ("key gradient", 2): [
        (232_448, 64, 64, 128, 8, 3),
        (232_448, 128, 32, 64, 8, 3),
        (101_376, 64, 32, 128, 8, 2),
        (101_376, 128, 32, 64, 8, 2),
        (101_376, 256, 32, 32, 8, 2),
    ],
    ("forward", 4): [(101_376, 64, 64, 32, 8, 2), (101_376, 256, 16, 16, 4, 1)],
    ("query gradient", 4): [(101_376, 64, 32, 32, 8, 2), (101_376, 256, 16, 16, 8, 1)],
    ("key gradient", 4): [(101_376, 64, 32, 32, 8, 1), (101_376, 256, 16, 16, 8, 1)],
    ("forward", 8): [(101_376, 64, 32, 32, 4, 1), (101_376, 256, 16, 16, 4, 1)],
    ("query gradient", 8): [(101_376, 64, 32, 32, 4, 1), (166_912, 256, 16, 16, 8, 1)],
    ("key gradient", 8): [(101_376, 64, 32, 32, 8, 1), (166_912, 256, 16, 16, 8, 1)],
}
