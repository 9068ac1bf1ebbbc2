"""Sigmoid attention as a kernel: each weight is decided alone, so a row has nothing to add up.

The equation. Query i reads the n_i keys j of its support S_i:

    x_ij = scale q_i . k_j + b_i       b_i = -log n_i, or one number given for all rows
    p_ij = 1 / (1 + exp(-x_ij))        o_i = sum_{j in S_i} p_ij v_j

Backward, with g_i for the gradient dL/do_i that arrives at row i:

    dL/dv_j  = sum_i p_ij g_i
    dL/dx_ij = p_ij (1 - p_ij) (g_i . v_j)
    dL/dq_i  = scale sum_j dL/dx_ij k_j
    dL/dk_j  = scale sum_i dL/dx_ij q_i

The picture. Lay this file beside `flash_attention.py`. The N x M table of scores is cut into the
same tiles, and the band of supports meets each row of tiles in one stretch:

    skipped | partial | full  full  full | partial | skipped

Softmax compares a score with all others of its row, so a tile has to pass on running_max and
running_sum, shrink what was summed before, divide at the end and keep log_sum for backward.
Here none of that exists. A tile adds its weights times its values, and is done. What a row needs
to know of itself, n_i, follows from the band and the padding before any score: the host counts it.

What one program does. Forward: one query block of one head walks over the key blocks it sees and
adds up o_i. Backward: p is computed again, tile by tile, in two kernels. One holds a query block
and walks over keys for dL/dq. The other holds a key block and walks over the queries of all heads
that share it for dL/dk and dL/dv. Neither needs o, or a number from the other. Each gradient has
one writer, so a run repeats to the last bit.

What it must move, per head with b bytes a number: forward reads q, k, v and writes o, b (N + M)
(D + E) in all, and one number b_i a row for all heads. Backward reads q, k, v and g and writes
three gradients. Keys and values are asked for again by every query block, and come from the chip's
cache.

What it computes: forward two products of 2 N M D operations (D = E), backward five (ours computes
s and dL/dp in both kernels: seven). Causal is half. And for each score an exponential and a
reciprocal in the chip's special-function units, where softmax needs the exponential alone.

The bound: an H200 does about 790e12 bf16 operations a second, copies 4.3e12 bytes and takes about
3.9e12 special functions (16 a clock in each of its 132 processors). A score is 4 D operations and
2 special functions: 0.65 and 0.51 ps at D = 128, where products decide; 0.32 and 0.51 ps at
D = 64, where special functions do.

Sources: Ramapuram et al., "Theory, Analysis, and Best Practices for Sigmoid Self-Attention", 2024
(section 2: the equation; section 4: FlashSigmoid); Dao, "FlashAttention-2", 2023 (one program a
query block). FlashSigmoid takes 1/2 + tanh(x / 2) / 2 with the chip's approximate tanh: one special
function instead of two, but the sum of 1/2 and -1/2 leaves few digits of a weight near 0.
"""

import math

import torch
import triton
import triton.language as tl
from attnlib.kernels.bands import band_of, edges_of, seen_only, tile_count, tile_start
from attnlib.kernels.launch import (
    LARGEST_NUMBER,
    check_attention,
    check_device,
    check_flag,
    check_key_mask,
    check_scale,
    check_whole,
    on_device_of,
    readable,
    shortened,
)
from attnlib.kernels.tile_choice import tile_for
from attnlib.kernels.tiles import (
    LOG2_E,
    arithmetic_of,
    batch_and_heads,
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


def sigmoid_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    bias: float | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    window: int | None = None,
    key_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Sigmoid attention: o_i = sum_{j in S_i} sigmoid(scale q_i . k_j + bias_i) v_j.

    Shapes: query (*batch, H, N, D), key (*batch, Hkv, M, D), value (*batch, Hkv, M, E), read
    (*batch, H, N, E); also without heads. H is a multiple of Hkv: query head h reads key head
    h // (H / Hkv). D and E are 1 to 256. key_mask is bool, True where a key may be read, and
    broadcasts to (*batch, M): one row for all heads and queries.

    bias_i is -log n_i unless a bias is given, n_i the number of keys that row i sees. n weights of
    sigmoid(-log n) = 1 / (n + 1) weigh about 1 together, as softmax weights do. Causal rule, window
    and padding are counted, so a prefix, a cache that grows and a padded batch read the same as the
    tokens alone. The paper's own kernel has one constant for all rows, -log of the length: give it.

    Row i stands at position i + query_offset. is_causal: it sees the keys up to its position.
    window=W: the last W of those. scale is D ** -0.5 unless given.

    A row whose support is empty reads zero and sends back zero. A key that key_mask hides is never
    loaded, so nothing in it, NaN included, reaches a result. Finite for scores up to 1e4, of either
    sign; a weight near 0 and the slope of a weight near 1 keep their digits. float16 and bfloat16
    are summed in float32, float32 is multiplied in full precision (no tf32). Gradients flow to
    query, key and value, once (no second derivative).

    Cost: 2 (D + E) operations a pair of a query and a key that it sees, memory linear in N + M;
    the inputs and one number a row are kept for the gradient. Batch axes that do not fold into one
    are copied; all other layouts are read where they are.

    Raises TypeError for a wrong dtype or a bias that is no number; ValueError for shapes that do
    not fit, a width over 256, numbers of a row that are not adjacent, devices that differ or cannot
    run Triton, a scale or window that is not positive, a bias that is not finite, a chip whose
    shared memory holds no tile.
    """
    check_attention(query, key, value)
    check_bias(bias)
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
    folded = [batch_and_heads(tensor) for tensor in (query, key, value)]
    shift = row_shift(*folded[:2], key_mask, band, bias)
    read = SigmoidAttention.apply(*folded, key_mask, shift, band, scale)
    return read.view(*query.shape[:-1], value.shape[-1])


def check_bias(bias: float | None) -> None:
    """Raise unless the bias is None (the default) or a finite number."""
    if bias is None:
        return
    if isinstance(bias, bool) or not isinstance(bias, int | float):
        raise TypeError(f"bias must be a number, got {type(bias).__name__}")
    if not -LARGEST_NUMBER <= bias <= LARGEST_NUMBER:
        raise ValueError(
            f"bias must be a finite number, got {shortened(bias)} "
            "(it has to lie between -1e30 and 1e30)"
        )


def row_shift(
    query: Tensor, key: Tensor, key_mask: Tensor | None, band: tuple[int, int], bias: float | None
) -> Tensor:
    """The bias of each row (B, N) for exponents of two: -log2 n_i, or log2(e) bias."""
    (batch, _, queries, _), keys, device = query.shape, key.shape[2], query.device
    dtype = arithmetic_of(query.dtype)
    if bias is not None:
        return torch.full((batch, queries), bias * LOG2_E.value, dtype=dtype, device=device)
    row = torch.arange(queries, device=device)
    start, stop = (row + band[0]).clamp(0, keys), (row + band[1] + 1).clamp(0, keys)
    seen = (stop - start).expand(batch, queries)
    if key_mask is not None:  # before[:, j]: how many of the first j keys may be read
        before = torch.nn.functional.pad(key_mask.cumsum(-1), (1, 0))
        seen = before[:, stop] - before[:, start]
    return -seen.clamp(min=1).to(dtype).log2()


@triton.jit
def sigmoid_and_slope(exponent):
    """p = 1 / (1 + 2^-x) and p (1 - p), both with all their digits, for x of any size.

    With e = 2^-|x|, which is at most 1: p is 1 / (1 + e) for x >= 0 and e / (1 + e) below it, and
    p (1 - p) is e / (1 + e)^2 for both. Nothing overflows, and no 1 - p loses the digits of a p
    near 1. A hidden score, minus infinity, has p = 0 and slope 0. What a kernel does not use of
    the two, the compiler leaves out.
    """
    small = tl.exp2(-1.0 * tl.abs(exponent))  # e; -1.0 * costs nothing, a minus one instruction
    root = tl.rsqrt(1.0 + small)
    larger = root * root  # 1 / (1 + e): a division guards its range, for three instructions more
    smaller = small * larger
    return tl.where(exponent >= 0.0, larger, smaller), smaller * larger


@triton.jit
def forward_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    key_mask_ptr,
    shift_ptr,
    read_ptr,
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
    shift_ptr += batch.to(tl.int64) * query_count

    queries = query_start + tl.arange(0, query_block_size)
    query_present = queries < query_count
    query_block = load_rows(query_ptr, query_start, query_steps[2], query_present, width)
    shift = tl.load(shift_ptr + queries, mask=query_present, other=0.0)[:, None]
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

            weights, _ = sigmoid_and_slope(scores * (scale * LOG2_E) + shift)
            value_block = load_rows(value_ptr, key_start, value_steps[2], present, value_width)
            accumulator += product(weights.to(value_block.dtype), value_block)

    read_ptr += first_row * value_width
    store_rows(read_ptr, query_start, accumulator, query_present, value_width)


@triton.jit
def query_gradient_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    key_mask_ptr,
    shift_ptr,
    grad_read_ptr,
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
    shift_ptr += batch.to(tl.int64) * query_count

    queries = query_start + tl.arange(0, query_block_size)
    query_present = queries < query_count
    query_block = load_rows(query_ptr, query_start, query_steps[2], query_present, width)
    grad_read_ptr += first_row * value_width
    grad_read = load_rows(grad_read_ptr, query_start, value_width, query_present, value_width)
    shift = tl.load(shift_ptr + queries, mask=query_present, other=0.0)[:, None]
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
            _, slope = sigmoid_and_slope(scores * (scale * LOG2_E) + shift)
            grad_weights = product(grad_read, tl.trans(value_block))
            grad_scores = slope * grad_weights
            grad_query += product(grad_scores.to(key_block.dtype), key_block)

    grad_query_ptr += first_row * width
    store_rows(grad_query_ptr, query_start, grad_query * scale, query_present, width)


@triton.jit
def key_gradient_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    key_mask_ptr,
    shift_ptr,
    grad_read_ptr,
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
    shift_ptr += batch.to(tl.int64) * query_count

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

            scores = product(key_block, tl.trans(query_block))
            scores = seen_only(
                scores, queries[None, :], keys[:, None], present[:, None], band, partial
            )
            shift = tl.load(shift_ptr + queries, mask=query_present, other=0.0)[None, :]
            weights, slope = sigmoid_and_slope(scores * (scale * LOG2_E) + shift)
            grad_value += product(weights.to(grad_read.dtype), grad_read)
            grad_weights = product(value_block, tl.trans(grad_read))
            grad_scores = slope * grad_weights
            grad_key += product(grad_scores.to(query_block.dtype), query_block)

    first_key = (batch * key_heads + key_head).to(tl.int64) * key_count
    in_tensor = keys < key_count
    store_rows(grad_key_ptr + first_key * width, key_start, grad_key * scale, in_tensor, width)
    store_rows(
        grad_value_ptr + first_key * value_width, key_start, grad_value, in_tensor, value_width
    )


class SigmoidAttention(torch.autograd.Function):
    """The three kernels as one differentiable operation on tensors (B, H, N, D)."""

    @staticmethod
    def forward(ctx, query, key, value, key_mask, shift, band, scale) -> Tensor:
        ctx.dtype = query.dtype
        query, key, value = (readable(forward_kernel, tensor) for tensor in (query, key, value))
        ctx.save_for_backward(query, key, value, key_mask, shift)
        ctx.support_and_score = band, scale
        return read_of(query, key, value, key_mask, shift, band, scale).to(ctx.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_read: Tensor) -> tuple[Tensor | None, ...]:
        grad_read = readable(forward_kernel, grad_read.contiguous())
        gradients = gradients_of(grad_read, *ctx.saved_tensors, *ctx.support_and_score)
        return *(gradient.to(ctx.dtype) for gradient in gradients), None, None, None, None


def read_of(query, key, value, key_mask, shift, band, scale) -> Tensor:
    """o: all that forward leaves."""
    batch, heads, queries, _ = query.shape
    choices = tile_for(TILES, "forward", query, value)
    read = torch.empty((*query.shape[:-1], value.shape[-1]), dtype=query.dtype, device=query.device)
    with on_device_of(query):
        forward_kernel[(batch * heads * triton.cdiv(queries, choices["query_block_size"]),)](
            *(query, key, value, key_mask, shift, read),
            **problem(query, key, value, band, scale),
            **choices,
        )
    return read


def gradients_of(grad_read, query, key, value, key_mask, shift, band, scale):
    """The gradients of query, key and value."""
    batch, heads, queries, _ = query.shape
    grad_query, grad_key, grad_value = (
        torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        for tensor in (query, key, value)
    )
    for_queries = tile_for(TILES, "query gradient", query, value)
    for_keys = tile_for(TILES, "key gradient", query, value)
    shared = problem(query, key, value, band, scale)
    with on_device_of(query):
        blocks = triton.cdiv(queries, for_queries["query_block_size"])
        query_gradient_kernel[(batch * heads * blocks,)](
            *(query, key, value, key_mask, shift, grad_read, grad_query),
            **shared,
            **for_queries,
        )
        blocks = triton.cdiv(key.shape[-2], for_keys["key_block_size"])
        key_gradient_kernel[(batch * key.shape[1] * blocks,)](
            *(query, key, value, key_mask, shift, grad_read, grad_key, grad_value),
            **shared,
            **for_keys,
        )
    return grad_query, grad_key, grad_value


def problem(query, key, value, band: tuple[int, int], scale: float) -> dict:
    """What all three kernels are told of the layout, the support and the score."""
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
        (101_376, 128, 128, 64, 8, 3),
        (101_376, 256, 64, 32, 8, 2),
    ],
    ("query gradient", 2): [
        (232_448, 64, 128, 128, 8, 3),
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
        (101_376, 128, 64, 64, 8, 2),
        (101_376, 256, 32, 32, 8, 2),
    ],
    ("forward", 4): [(101_376, 64, 64, 32, 4, 2), (101_376, 256, 16, 16, 4, 1)],
    ("query gradient", 4): [(101_376, 64, 64, 32, 8, 2), (101_376, 256, 16, 16, 8, 1)],
    ("key gradient", 4): [(101_376, 64, 32, 32, 8, 1), (101_376, 256, 16, 16, 8, 1)],
    ("forward", 8): [(101_376, 64, 32, 32, 4, 1), (101_376, 256, 16, 16, 4, 1)],
    ("query gradient", 8): [(101_376, 64, 32, 32, 4, 1), (166_912, 256, 16, 16, 8, 1)],
    ("key gradient", 8): [(101_376, 64, 32, 32, 8, 1), (166_912, 256, 16, 16, 8, 1)],
}
