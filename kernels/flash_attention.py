"""Flash attention as a kernel: softmax attention without the N x M matrix, forward and backward.

The equation. Query i attends to the keys j of its support S_i:

    s_ij = scale q_i . k_j        l_i = log sum_{j in S_i} exp(s_ij)
    p_ij = exp(s_ij - l_i)        o_i = sum_{j in S_i} p_ij v_j

Backward, with g_i for the gradient dL/do_i that arrives at row i and delta_i = g_i . o_i:

    dL/dv_j  = sum_i p_ij g_i
    dL/ds_ij = p_ij (g_i . v_j - delta_i)
    dL/dq_i  = scale sum_j dL/ds_ij k_j
    dL/dk_j  = scale sum_i dL/ds_ij q_i

The picture. Queries are rows, keys are columns. Cut the rows into query blocks and the columns
into key blocks: the N x M table falls into tiles. The supports here are bands: query i sees the
keys from i + lowest to i + highest. A band meets each row of tiles in one stretch:

    skipped | partial | full  full  full | partial | skipped

Skipped tiles are never visited, so causal attention costs half and a window of W keys costs
N W. Only a partial tile needs a mask. Sums do not mind their order, so a program visits its full
tiles first and the partial ones of both edges after them: `for partial in (0, 1)`.

What one program does. Forward: one query block of one head. It holds its queries, walks over the
key blocks and folds each tile into running_max, running_sum and accumulator (the sum of values so
far, each weighted relative to running_max). When a tile raises the maximum, what was summed
before shrinks by exp(old maximum - new maximum). It leaves o_i and l_i, nothing else.
Backward: p is computed again from l, tile by tile, in two kernels. One holds a query block and
walks over keys for dL/dq. The other holds a key block and walks over the queries of all heads
that share it for dL/dk and dL/dv. Each gradient has one writer, so no sum depends on which
program came first, and a run repeats to the last bit.

What it must move, per head with b bytes a number: forward reads q, k, v and writes o, b (N + M)
(D + E) in all, and 4 N for l. Backward reads those and g, and writes three gradients. Keys and
values are asked for again by every query block; as long as those of a head fit in the chip's cache
(50 MB), they come from there. Without it they would cost b M (D + E) for each query block. The
N x M table stays in registers.

What it computes: forward two products of 2 N M D operations (D = E), backward five (ours
computes s and dL/dp in both kernels: seven). Causal is half. And one exponential a score.

The bound: an H200 does about 790e12 bf16 operations a second and copies 4.3e12 bytes (measured with
large products and copies; its data sheet says 990 and 4.8), so 184 operations a byte. At N = M =
8192, D = 128 forward has 4096 a byte: products decide.

Exponents are base 2: the chip computes 2^x, so exp(x) costs a product with log2(e). It is folded
into the scale, once. running_max and l are kept in base 2 too.

Sources: Dao et al., "FlashAttention", 2022 (algorithms 1 and 4); Dao, "FlashAttention-2", 2023
(one program a query block; l alone is kept); Milakov and Gimelshein, 2018 (the running maximum).
"""

import math

import torch
import triton
import triton.language as tl
from attnlib.kernels.bands import band_of, edges_of, seen_only, tile_count, tile_start
from attnlib.kernels.launch import (
    check_attention,
    check_device,
    check_flag,
    check_key_mask,
    check_scale,
    check_whole,
    on_device_of,
    readable,
)
from attnlib.kernels.tile_choice import tile_for
from attnlib.kernels.tiles import (
    LOG2_E,
    arithmetic_of,
    batch_and_heads,
    finite,
    head_at,
    load_rows,
    my_key_block,
    my_query_block,
    padded,
    product,
    rows_present,
    store_rows,
)
from torch import Tensor
from torch.autograd.function import once_differentiable


def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    is_causal: bool = False,
    query_offset: int = 0,
    window: int | None = None,
    key_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention: o_i = sum_{j in S_i} e^{s_ij} v_j / sum_{j in S_i} e^{s_ij}.

    Shapes: query (*batch, H, N, D), key (*batch, Hkv, M, D), value (*batch, Hkv, M, E), read
    (*batch, H, N, E); also without heads. H is a multiple of Hkv: query head h reads key head
    h // (H / Hkv). D and E are 1 to 256. key_mask is bool, True where a key may be read, and
    broadcasts to (*batch, M): one row for all heads and queries.

    Row i stands at position i + query_offset. is_causal: it sees the keys up to its position.
    window=W: the last W of those. scale is D ** -0.5 unless given.

    A row whose support is empty reads zero and sends back zero. A key that key_mask hides is never
    loaded, so nothing in it, NaN included, reaches a result. Finite for scores up to 1e4; a
    float32 weight then has a relative error near 1e4 * 2^-24. float16 and bfloat16 are summed in
    float32, float32 is multiplied in full precision (no tf32). Gradients flow to query, key and
    value, once (no second derivative).

    Cost: 2 (D + E) operations a pair of a query and a key that it sees, memory linear in N + M.
    Batch axes that do not fold into one are copied; all other layouts are read where they are.

    Raises TypeError for a wrong dtype; ValueError for shapes that do not fit, a width over 256,
    numbers of a row that are not adjacent, devices that differ or cannot run Triton, a scale or
    window that is not positive, a chip whose shared memory holds no tile.
    """
    check_attention(query, key, value)
    check_scale(scale)
    check_flag("is_causal", is_causal)
    check_whole("query_offset", query_offset)
    if window is not None:
        check_whole("window", window, least=1)
    tensors = {"query": query, "key": key, "value": value}
    if key_mask is not None:
        check_key_mask(key_mask, key)
        tensors["key_mask"] = key_mask
    check_device(forward_kernel, **tensors)
    if key_mask is not None:
        batch, keys = math.prod(key.shape[:-3]), key.shape[-2]
        key_mask = key_mask.expand(*key.shape[:-3], keys).reshape(batch, keys).contiguous()
    band = band_of(query.shape[-2], key.shape[-2], is_causal, query_offset, window)
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    folded = (batch_and_heads(tensor) for tensor in (query, key, value))
    read = FlashAttention.apply(*folded, key_mask, band, scale)
    return read.view(*query.shape[:-1], value.shape[-1])


@triton.jit
def forward_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    key_mask_ptr,
    read_ptr,
    log_sum_ptr,
    query_steps,
    key_steps,
    value_steps,
    counts,
    band,
    scale: tl.constexpr,
    width: tl.constexpr,
    value_width: tl.constexpr,
    arithmetic: tl.constexpr,
    query_block_size: tl.constexpr,
    key_block_size: tl.constexpr,
):
    query_count, key_count, heads, key_heads = counts
    query_start, batch, head = my_query_block(query_count, heads, query_block_size)
    first_row = (batch * heads + head).to(tl.int64) * query_count
    query_ptr = head_at(query_ptr, query_steps, batch, head)
    key_ptr = head_at(key_ptr, key_steps, batch, head // (heads // key_heads))
    value_ptr = head_at(value_ptr, value_steps, batch, head // (heads // key_heads))
    if key_mask_ptr is not None:
        key_mask_ptr += batch.to(tl.int64) * key_count

    queries = query_start + tl.arange(0, query_block_size)
    query_present = queries < query_count
    query_block = load_rows(query_ptr, query_start, query_steps[2], query_present, width)
    running_max = tl.full([query_block_size], -float("inf"), arithmetic)
    running_sum = tl.zeros([query_block_size], arithmetic)
    accumulator = tl.zeros([query_block_size, padded(value_width)], arithmetic)

    query_stop = tl.minimum(query_start + query_block_size, query_count)
    edges = edges_of(query_start, query_stop, band, key_count, key_block_size)
    for partial in tl.static_range(2):
        for step in range(0, tile_count(edges, key_block_size, partial)):
            key_start = tile_start(edges, step, key_block_size, partial)
            keys = key_start + tl.arange(0, key_block_size)
            present = rows_present(key_mask_ptr, keys, key_count, partial)
            key_block = load_rows(key_ptr, key_start, key_steps[2], present, width)
            scores = product(query_block, tl.trans(key_block))
            scores = seen_only(
                scores, queries[:, None], keys[None, :], present[None, :], band, partial
            )

            new_max = tl.maximum(running_max, tl.max(scores, 1) * (scale * LOG2_E))
            weights = tl.exp2(scores * (scale * LOG2_E) - finite(new_max)[:, None])
            shrink = tl.exp2(running_max - finite(new_max))
            running_sum = running_sum * shrink + tl.sum(weights, 1)
            value_block = load_rows(value_ptr, key_start, value_steps[2], present, value_width)
            accumulator = accumulator * shrink[:, None]
            accumulator += product(weights.to(value_block.dtype), value_block)
            running_max = new_max

    normalizer = tl.where(running_sum == 0.0, 1.0, running_sum)  # empty support: 0 / 1
    log_sum = running_max + tl.log2(normalizer)
    tl.store(log_sum_ptr + first_row + queries, log_sum, mask=query_present)
    read_ptr += first_row * value_width
    store_rows(read_ptr, query_start, accumulator / normalizer[:, None], query_present, value_width)


@triton.jit
def query_gradient_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    key_mask_ptr,
    read_ptr,
    log_sum_ptr,
    grad_read_ptr,
    delta_ptr,
    grad_query_ptr,
    query_steps,
    key_steps,
    value_steps,
    counts,
    band,
    scale: tl.constexpr,
    width: tl.constexpr,
    value_width: tl.constexpr,
    arithmetic: tl.constexpr,
    query_block_size: tl.constexpr,
    key_block_size: tl.constexpr,
):
    query_count, key_count, heads, key_heads = counts
    query_start, batch, head = my_query_block(query_count, heads, query_block_size)
    first_row = (batch * heads + head).to(tl.int64) * query_count
    query_ptr = head_at(query_ptr, query_steps, batch, head)
    key_ptr = head_at(key_ptr, key_steps, batch, head // (heads // key_heads))
    value_ptr = head_at(value_ptr, value_steps, batch, head // (heads // key_heads))
    if key_mask_ptr is not None:
        key_mask_ptr += batch.to(tl.int64) * key_count

    queries = query_start + tl.arange(0, query_block_size)
    query_present = queries < query_count
    query_block = load_rows(query_ptr, query_start, query_steps[2], query_present, width)
    read_ptr += first_row * value_width
    grad_read_ptr += first_row * value_width
    read = load_rows(read_ptr, query_start, value_width, query_present, value_width)
    grad_read = load_rows(grad_read_ptr, query_start, value_width, query_present, value_width)
    delta = tl.sum(grad_read.to(arithmetic) * read.to(arithmetic), 1)
    tl.store(delta_ptr + first_row + queries, delta, mask=query_present)
    log_sum = tl.load(log_sum_ptr + first_row + queries, mask=query_present, other=0.0)
    grad_query = tl.zeros([query_block_size, padded(width)], arithmetic)

    query_stop = tl.minimum(query_start + query_block_size, query_count)
    edges = edges_of(query_start, query_stop, band, key_count, key_block_size)
    for partial in tl.static_range(2):
        for step in range(0, tile_count(edges, key_block_size, partial)):
            key_start = tile_start(edges, step, key_block_size, partial)
            keys = key_start + tl.arange(0, key_block_size)
            present = rows_present(key_mask_ptr, keys, key_count, partial)
            key_block = load_rows(key_ptr, key_start, key_steps[2], present, width)
            value_block = load_rows(value_ptr, key_start, value_steps[2], present, value_width)
            scores = product(query_block, tl.trans(key_block))
            scores = seen_only(
                scores, queries[:, None], keys[None, :], present[None, :], band, partial
            )
            weights = tl.exp2(scores * (scale * LOG2_E) - finite(log_sum)[:, None])
            grad_weights = product(grad_read, tl.trans(value_block))
            grad_scores = weights * (grad_weights - delta[:, None])
            grad_query += product(grad_scores.to(key_block.dtype), key_block)

    grad_query_ptr += first_row * width
    store_rows(grad_query_ptr, query_start, grad_query * scale, query_present, width)


@triton.jit
def key_gradient_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    key_mask_ptr,
    log_sum_ptr,
    grad_read_ptr,
    delta_ptr,
    grad_key_ptr,
    grad_value_ptr,
    query_steps,
    key_steps,
    value_steps,
    counts,
    band,
    scale: tl.constexpr,
    width: tl.constexpr,
    value_width: tl.constexpr,
    arithmetic: tl.constexpr,
    query_block_size: tl.constexpr,
    key_block_size: tl.constexpr,
):
    query_count, key_count, heads, key_heads = counts
    key_start, batch, key_head = my_key_block(key_count, key_heads, key_block_size)
    key_ptr = head_at(key_ptr, key_steps, batch, key_head)
    value_ptr = head_at(value_ptr, value_steps, batch, key_head)
    if key_mask_ptr is not None:
        key_mask_ptr += batch.to(tl.int64) * key_count

    keys = key_start + tl.arange(0, key_block_size)
    present = rows_present(key_mask_ptr, keys, key_count, partial=True)
    key_block = load_rows(key_ptr, key_start, key_steps[2], present, width)
    value_block = load_rows(value_ptr, key_start, value_steps[2], present, value_width)
    grad_key = tl.zeros([key_block_size, padded(width)], arithmetic)
    grad_value = tl.zeros([key_block_size, padded(value_width)], arithmetic)

    # Key j is seen by the queries from j - highest to j - lowest.
    key_stop = tl.minimum(key_start + key_block_size, key_count)
    edges = edges_of(key_start, key_stop, (-band[1], -band[0]), query_count, query_block_size)
    group = heads // key_heads
    for partial in tl.static_range(2):
        tiles = tile_count(edges, query_block_size, partial)
        for step in range(0, group * tiles):
            head = key_head * group + step // tiles
            query_start = tile_start(edges, step % tiles, query_block_size, partial)
            queries = query_start + tl.arange(0, query_block_size)
            query_present = rows_present(None, queries, query_count, partial)
            head_ptr = head_at(query_ptr, query_steps, batch, head)
            query_block = load_rows(head_ptr, query_start, query_steps[2], query_present, width)
            first_row = (batch * heads + head).to(tl.int64) * query_count
            grad_ptr = grad_read_ptr + first_row * value_width
            grad_read = load_rows(grad_ptr, query_start, value_width, query_present, value_width)
            log_sum = tl.load(log_sum_ptr + first_row + queries, mask=query_present, other=0.0)
            delta = tl.load(delta_ptr + first_row + queries, mask=query_present, other=0.0)

            scores = product(key_block, tl.trans(query_block))
            scores = seen_only(
                scores, queries[None, :], keys[:, None], present[:, None], band, partial
            )
            weights = tl.exp2(scores * (scale * LOG2_E) - finite(log_sum)[None, :])
            grad_value += product(weights.to(grad_read.dtype), grad_read)
            grad_weights = product(value_block, tl.trans(grad_read))
            grad_scores = weights * (grad_weights - delta[None, :])
            grad_key += product(grad_scores.to(query_block.dtype), query_block)

    first_key = (batch * key_heads + key_head).to(tl.int64) * key_count
    in_tensor = keys < key_count
    store_rows(grad_key_ptr + first_key * width, key_start, grad_key * scale, in_tensor, width)
    store_rows(
        grad_value_ptr + first_key * value_width, key_start, grad_value, in_tensor, value_width
    )


class FlashAttention(torch.autograd.Function):
    """The three kernels as one differentiable operation on tensors (B, H, N, D)."""

    @staticmethod
    def forward(ctx, query, key, value, key_mask, band, scale) -> Tensor:
        ctx.dtype = query.dtype
        query, key, value = (readable(forward_kernel, tensor) for tensor in (query, key, value))
        read, log_sum = read_and_log_sum(query, key, value, key_mask, band, scale)
        ctx.save_for_backward(query, key, value, key_mask, read, log_sum)
        ctx.band, ctx.scale = band, scale
        return read.to(ctx.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_read: Tensor) -> tuple[Tensor | None, ...]:
        grad_read = readable(forward_kernel, grad_read.contiguous())
        gradients = gradients_of(grad_read, *ctx.saved_tensors, ctx.band, ctx.scale)
        return *(gradient.to(ctx.dtype) for gradient in gradients), None, None, None


def read_and_log_sum(query, key, value, key_mask, band, scale) -> tuple[Tensor, Tensor]:
    """o, and l in base 2: minus infinity for a row whose support is empty."""
    batch, heads, queries, _ = query.shape
    choices = tile_for(TILES, "forward", query, value)
    read = torch.empty((*query.shape[:-1], value.shape[-1]), dtype=query.dtype, device=query.device)
    log_sum = torch.empty(query.shape[:-1], dtype=arithmetic_of(query.dtype), device=query.device)
    with on_device_of(query):
        forward_kernel[(batch * heads * triton.cdiv(queries, choices["query_block_size"]),)](
            *(query, key, value, key_mask, read, log_sum),
            **problem(query, key, value, band, scale),
            **choices,
        )
    return read, log_sum


def gradients_of(grad_read, query, key, value, key_mask, read, log_sum, band, scale):
    """The gradients of query, key and value."""
    batch, heads, queries, _ = query.shape
    grad_query, grad_key, grad_value = (
        torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        for tensor in (query, key, value)
    )
    delta = torch.empty_like(log_sum)
    for_queries = tile_for(TILES, "query gradient", query, value)
    for_keys = tile_for(TILES, "key gradient", query, value)
    shared = problem(query, key, value, band, scale)
    with on_device_of(query):
        blocks = triton.cdiv(queries, for_queries["query_block_size"])
        query_gradient_kernel[(batch * heads * blocks,)](
            *(query, key, value, key_mask, read, log_sum, grad_read, delta, grad_query),
            **shared,
            **for_queries,
        )
        blocks = triton.cdiv(key.shape[-2], for_keys["key_block_size"])
        key_gradient_kernel[(batch * key.shape[1] * blocks,)](
            *(query, key, value, key_mask, log_sum, grad_read, delta, grad_key, grad_value),
            **shared,
            **for_keys,
        )
    return grad_query, grad_key, grad_value


def problem(query: Tensor, key: Tensor, value: Tensor, band: tuple[int, int], scale: float) -> dict:
    """What all three kernels are told of the layout and the support."""
    return {
        "query_steps": query.stride()[:3],
        "key_steps": key.stride()[:3],
        "value_steps": value.stride()[:3],
        "counts": (query.shape[2], key.shape[2], query.shape[1], key.shape[1]),
        "band": band,
        "scale": scale,
        "width": query.shape[3],
        "value_width": value.shape[3],
    }


# As `tile_choice` reads them. Those for 2 bytes a number are the largest tried that spill no
# registers when compiled for Hopper (232,448) and Ampere (101,376).
TILES = {
    ("forward", 2): [
        (232_448, 128, 128, 128, 8, 3),
        (232_448, 256, 128, 32, 8, 2),
        (101_376, 64, 128, 64, 8, 3),
        (101_376, 128, 128, 32, 8, 2),
        (101_376, 256, 64, 32, 8, 2),
    ],
    ("query gradient", 2): [
        (232_448, 64, 128, 64, 8, 3),
        (232_448, 128, 128, 64, 8, 2),
        (232_448, 256, 128, 32, 8, 2),
        (101_376, 64, 128, 64, 8, 3),
        (101_376, 128, 128, 32, 8, 2),
        (101_376, 256, 32, 32, 4, 2),
    ],
    ("key gradient", 2): [
        (232_448, 64, 64, 128, 8, 3),
        (232_448, 128, 32, 128, 8, 2),
        (101_376, 64, 32, 128, 8, 2),
        (101_376, 128, 32, 64, 8, 2),
        (101_376, 256, 32, 32, 8, 2),
    ],
    ("forward", 4): [(101_376, 64, 64, 32, 8, 2), (101_376, 256, 16, 16, 4, 1)],
    ("query gradient", 4): [(101_376, 64, 64, 32, 8, 2), (101_376, 256, 16, 16, 8, 1)],
    ("key gradient", 4): [(101_376, 64, 32, 32, 8, 1), (101_376, 256, 16, 16, 8, 1)],
    ("forward", 8): [(101_376, 64, 32, 32, 4, 1), (101_376, 256, 16, 16, 4, 1)],
    ("query gradient", 8): [(101_376, 64, 32, 32, 4, 1), (166_912, 256, 16, 16, 8, 1)],
    ("key gradient", 8): [(101_376, 64, 32, 32, 8, 1), (166_912, 256, 16, 16, 8, 1)],
}
