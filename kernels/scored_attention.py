"""Softmax attention whose scores are changed before the softmax, and whose rows may have a sink.

The equation. Query i stands at position p_i = i + query_offset and sees the keys of S_i. Each score
may be capped, and may have a bias that depends on the distance; h is the head:

    s_ij = scale q_i . k_j
    x_ij = c tanh(s_ij / c) - m_h |j - p_i| + t_h[clip(j - p_i, -K, K) + K]
    l_i  = log (exp(a_h) + sum_{j in S_i} exp(x_ij))
    p_ij = exp(x_ij - l_i)        o_i = sum_{j in S_i} p_ij v_j

c is the soft cap, m the slopes of ALiBi, t the relative bias, a the sink: the logit of one more key
whose value is zero. It takes its share of the softmax and adds nothing, so the weights of a row sum
to less than one. Each of the four is there only where it is asked for.

Backward, with g_i for the gradient dL/do_i that arrives at row i and delta_i = g_i . o_i:

    dL/dv_j  = sum_i p_ij g_i
    dL/dx_ij = p_ij (g_i . v_j - delta_i)
    dL/ds_ij = dL/dx_ij (1 - tanh(s_ij / c)^2)
    dL/dq_i  = scale sum_j dL/ds_ij k_j
    dL/dk_j  = scale sum_i dL/ds_ij q_i
    dL/da_h  = - sum_i exp(a_h - l_i) delta_i
    dL/dt_h[d] = sum over the pairs with clip(j - p_i, -K, K) + K = d of dL/dx_ij

The sink is a key, so its line is that of dL/dx with the value zero: p (g . 0 - delta), summed over
all rows, which share it. A bias is added to x, so its gradient is the sum of dL/dx over the pairs
that share it.

The picture. Lay this file beside `flash_attention.py`: the tiles, the walk and the three kernels
are the same. `changed_scores` (`scored_attention_changes.py`) stands between the product and the
softmax, and a row with a sink starts its walk as if it had seen a first key: running_max is a, and
running_sum is 1. In the gradients (`scored_attention_gradient.py`) there is one kernel more: a
diagonal of the table of scores is one distance, so a program that owns a stretch of diagonals walks
down the table and sums dL/dx along each. Far distances share an entry of t and are added after it.

What one program does, what it must move and compute: as flash attention. m, a and t are a few
numbers a head. A cap costs an exponential and a division a score, ALiBi a subtraction and a product
of the vector units. A relative bias is one load a score, from the chip's first cache. The gradient
of t costs four products of 2 N M D operations more (s and dL/dp, and half of each of its tiles lies
beside its stretch), and writes N + M numbers a head.

The bound: an H200 does about 790e12 bf16 operations a second, and takes about 3.9e12 special
functions (16 a clock in each of its 132 processors). A score is 4 D operations: 0.65 ps at D = 128.
One exponential takes 0.26 ps; with a cap there are three special functions, 0.77 ps, and they
decide instead of the products.

Sources, in the order in which they act. Cap: Gemma Team, "Gemma 2", 2024 (section 2, logit
soft-capping). ALiBi: Press et al., 2022 (section 3; causal there, where |j - i| = i - j). Relative
bias: Raffel et al., 2020 (section 2.1: one scalar a head and distance), with the clipped distance
of Shaw et al., 2018. Sink: the gpt-oss model card (OpenAI, 2025: a learned bias in the denominator
of each head); with a_h = 0 Miller, "Attention is off by one", 2023. No source has a cap and a bias
at once. FlashAttention-2's CUDA kernel caps first and adds the ALiBi term after it; so do we. A
bias is then not bent, and reaches the softmax whole.
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
from attnlib.kernels.scored_attention_changes import changed_scores, check_changes, in_base_2
from attnlib.kernels.scored_attention_gradient import gradients_of
from attnlib.kernels.scored_attention_tiles import problem, tile_for
from attnlib.kernels.tiles import (
    arithmetic_of,
    batch_and_heads,
    finite,
    head_at,
    load_rows,
    my_query_block,
    padded,
    product,
    rows_present,
    store_rows,
)
from torch import Tensor
from torch.autograd.function import once_differentiable

LARGEST_OFFSET = 2**30  # positions are 32-bit numbers


def scored_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    sink_logit: Tensor | None = None,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    relative_bias: Tensor | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    window: int | None = None,
    key_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention with changed scores: o_i = sum_j e^{x_ij} v_j / (e^{a_h} + sum_j e^{x_ij}).

    x_ij = c tanh(s_ij / c) - m_h |j - p_i| + t_h[clip(j - p_i, -K, K) + K], in this order, with
    s_ij = scale q_i . k_j and the position p_i = i + query_offset. What is None is left out.

    Shapes: query (*batch, H, N, D), key (*batch, Hkv, M, D), value (*batch, Hkv, M, E), read
    (*batch, H, N, E); also without heads, then H is 1. H is a multiple of Hkv: query head h reads
    key head h // (H / Hkv). D and E are 1 to 256. key_mask is bool, True where a key may be read,
    and broadcasts to (*batch, M): one row for all heads and queries.

    sink_logit (H): a, the logit of a key with the value zero, one a query head; minus infinity is
    no sink. softcap: c, a number from 1e-6 to 1e6. alibi_slopes (H): m, fixed; one that requires a
    gradient is refused. relative_bias (H, 2 K + 1): t; its middle entry is distance 0, those before
    it are keys that lie behind the query. The tables may have another floating dtype than query.

    is_causal: row i sees the keys up to its position. window=W: the last W of those. scale is
    D ** -0.5 unless given.

    A row whose support is empty reads zero and sends back zero, with a sink and without. A key that
    key_mask hides is never loaded, so nothing in it, NaN included, reaches a result. Finite for
    scores, sinks and biases up to 1e4; a float32 weight then has a relative error near 1e4 * 2^-24.
    A cap rounds each score by up to c * 2^-24 in float32. float16 and bfloat16 are summed in
    float32, float32 is multiplied in full precision (no tf32). Gradients flow to query, key, value,
    sink_logit and relative_bias, once (no second derivative); a run repeats to the last bit.

    Cost: 2 (D + E) operations a pair of a query and a key that it sees, memory linear in N + M.
    Batch axes that do not fold into one are copied; all other layouts are read where they are.

    Raises TypeError for a wrong dtype; ValueError for shapes that do not fit, a width over 256,
    numbers of a row that are not adjacent, devices that differ or cannot run Triton, a scale,
    softcap or window out of range, slopes that require a gradient, a chip whose shared memory holds
    no tile.
    """
    check_attention(query, key, value)
    check_changes(query, sink_logit, softcap, alibi_slopes, relative_bias)
    check_scale(scale)
    check_flag("is_causal", is_causal)
    check_whole("query_offset", query_offset, least=-LARGEST_OFFSET, most=LARGEST_OFFSET)
    if window is not None:
        check_whole("window", window, least=1)
    if key_mask is not None:
        check_key_mask(key_mask, key)
    options = {
        "sink_logit": sink_logit,
        "alibi_slopes": alibi_slopes,
        "relative_bias": relative_bias,
        "key_mask": key_mask,
    }
    given = {name: tensor for name, tensor in options.items() if tensor is not None}
    check_device(forward_kernel, query=query, key=key, value=value, **given)
    if key_mask is not None:
        batch, keys = math.prod(key.shape[:-3]), key.shape[-2]
        key_mask = key_mask.expand(*key.shape[:-3], keys).reshape(batch, keys).contiguous()
    band = band_of(query.shape[-2], key.shape[-2], is_causal, query_offset, window)
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    softcap = None if softcap is None else float(softcap)
    folded = (batch_and_heads(tensor) for tensor in (query, key, value))
    read = ScoredAttention.apply(
        *(*folded, sink_logit, relative_bias, alibi_slopes, key_mask),
        *(band, query_offset, softcap, scale),
    )
    return read.view(*query.shape[:-1], value.shape[-1])


@triton.jit
def before_any_key(sink_ptr, head, rows: tl.constexpr, arithmetic: tl.constexpr):
    """running_max and running_sum of rows that have seen nothing but their sink, if there is one.

    A sink is one key with the weight 1 relative to itself; nothing is minus infinity and 0.
    """
    running_max = tl.full([rows], -float("inf"), arithmetic)
    running_sum = tl.zeros([rows], arithmetic)
    if sink_ptr is not None:
        running_max = tl.load(sink_ptr + head) + running_sum
        running_sum += 1.0
    return running_max, running_sum


@triton.jit
def forward_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    key_mask_ptr,
    sink_ptr,
    slope_ptr,
    bias_ptr,
    read_ptr,
    log_sum_ptr,
    query_steps,
    key_steps,
    value_steps,
    counts,
    band,
    query_offset,
    reach,
    softcap: tl.constexpr,
    scale: tl.constexpr,
    width: tl.constexpr,
    value_width: tl.constexpr,
    arithmetic: tl.constexpr,
    query_block_size: tl.constexpr,
    key_block_size: tl.constexpr,
):
    query_count, key_count, heads, key_heads = counts
    changes = softcap, slope_ptr, bias_ptr, reach, query_offset
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
    running_max, running_sum = before_any_key(sink_ptr, head, query_block_size, arithmetic)
    accumulator = tl.zeros([query_block_size, padded(value_width)], arithmetic)

    query_stop = tl.minimum(query_start + query_block_size, query_count)
    edges = edges_of(query_start, query_stop, band, key_count, key_block_size)
    for partial in tl.static_range(2):
        for step in range(0, tile_count(edges, key_block_size, partial)):
            key_start = tile_start(edges, step, key_block_size, partial)
            keys = key_start + tl.arange(0, key_block_size)
            present = rows_present(key_mask_ptr, keys, key_count, partial)
            key_block = load_rows(key_ptr, key_start, key_steps[2], present, width)
            products = product(query_block, tl.trans(key_block))
            scores, _ = changed_scores(
                products, queries[:, None], keys[None, :], head, changes, scale
            )
            scores = seen_only(
                scores, queries[:, None], keys[None, :], present[None, :], band, partial
            )

            new_max = tl.maximum(running_max, tl.max(scores, 1))
            weights = tl.exp2(scores - finite(new_max)[:, None])
            shrink = tl.exp2(running_max - finite(new_max))
            running_sum = running_sum * shrink + tl.sum(weights, 1)
            value_block = load_rows(value_ptr, key_start, value_steps[2], present, value_width)
            accumulator = accumulator * shrink[:, None]
            accumulator += product(weights.to(value_block.dtype), value_block)
            running_max = new_max

    normalizer = tl.where(running_sum == 0.0, 1.0, running_sum)  # no key and no sink: 0 / 1
    log_sum = running_max + tl.log2(normalizer)
    tl.store(log_sum_ptr + first_row + queries, log_sum, mask=query_present)
    read_ptr += first_row * value_width
    store_rows(read_ptr, query_start, accumulator / normalizer[:, None], query_present, value_width)


class ScoredAttention(torch.autograd.Function):
    """The kernels as one differentiable operation on tensors (B, H, N, D)."""

    @staticmethod
    def forward(ctx, query, key, value, sink_logit, relative_bias, slopes, key_mask, *score):
        ctx.dtypes = [None if t is None else t.dtype for t in (query, sink_logit, relative_bias)]
        query, key, value = (readable(forward_kernel, tensor) for tensor in (query, key, value))
        arithmetic = arithmetic_of(query.dtype)
        tables = [in_base_2(numbers, arithmetic) for numbers in (sink_logit, relative_bias, slopes)]
        read, log_sum = read_and_log_sum(query, key, value, *tables, key_mask, *score)
        ctx.save_for_backward(query, key, value, *tables, key_mask, read, log_sum)
        ctx.score = score
        return read.to(ctx.dtypes[0])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_read: Tensor) -> tuple[Tensor | None, ...]:
        grad_read = readable(forward_kernel, grad_read.contiguous())
        wants_bias = ctx.needs_input_grad[4]
        gradients = gradients_of(grad_read, ctx.saved_tensors, ctx.score, wants_bias)
        dtypes = [ctx.dtypes[0]] * 3 + ctx.dtypes[1:]
        returned = (
            None if gradient is None else gradient.to(dtype)
            for gradient, dtype in zip(gradients, dtypes, strict=True)
        )
        return *returned, *(None,) * 6


def read_and_log_sum(
    query, key, value, sink, bias, slopes, key_mask, *score
) -> tuple[Tensor, Tensor]:
    """o, and l in base 2: minus infinity for a row with an empty support and no sink.

    `score` is band, query_offset, softcap and scale.
    """
    batch, heads, queries, _ = query.shape
    choices = tile_for("forward", query, value, bias)
    read = torch.empty((*query.shape[:-1], value.shape[-1]), dtype=query.dtype, device=query.device)
    log_sum = torch.empty(query.shape[:-1], dtype=arithmetic_of(query.dtype), device=query.device)
    with on_device_of(query):
        forward_kernel[(batch * heads * triton.cdiv(queries, choices["query_block_size"]),)](
            *(query, key, value, key_mask, sink, slopes, bias, read, log_sum),
            **problem(query, key, value, bias, *score),
            **choices,
        )
    return read, log_sum
