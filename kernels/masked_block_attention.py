"""Attention over any support as a kernel: block-sparse attention with masks in its partial tiles.

The equation is that of flash attention. S_i is any set of keys that predicates give, here already
sorted into tiles by tiled_support.py: full ones, partial ones with one bit a pair, and the rest.

    s_ij = scale q_i . k_j        l_i = log sum_{j in S_i} exp(s_ij)
    p_ij = exp(s_ij - l_i)        o_i = sum_{j in S_i} p_ij v_j

Backward, with g_i for the gradient dL/do_i that arrives at row i and delta_i = g_i . o_i:

    dL/dv_j  = sum_i p_ij g_i
    dL/ds_ij = p_ij (g_i . v_j - delta_i)
    dL/dq_i  = scale sum_j dL/ds_ij k_j
    dL/dk_j  = scale sum_i dL/ds_ij q_i

The picture. Block-sparse attention walks over a list of blocks and finds the edges of the causal
band in it. Here the host has sorted the list: its full blocks first, its partial ones after them,
each with the number of a mask.

    query block 3:    listed 1 2 | 0 3       full | full | mask 7 | mask 8

What one program does. What a program of block-sparse attention does. In a full tile nothing is
asked of a pair. In a partial tile each pair looks up its bit, and its score is minus infinity
without it. For dL/dk and dL/dv a program walks over the list of its key block and reads the same
masks, rows and columns changed over. Each output has one writer.

What it moves and computes. The share of the tiles that is listed times what flash attention
computes: 4 D operations a pair forward, 10 backward (ours 14), in partial tiles for all of their
pairs. Queries, keys, values and reads move once at least: b (N + M)(D + E) bytes a head with b
bytes a number. A partial tile of 128 x 128 adds 2 kB of mask, where its keys and values are 64 kB
(D = E = 128, b = 2).

The bound: an H200 multiplies about 790e12 bf16 operations a second and copies 4.3e12 bytes, so 184
operations a byte. A causal window of 1024 at N = M = 8192, D = 128 lists 540 of 4096 tiles, 120 of
them partial: 540 a byte, so products decide, and 13 % of the dense time is the best there is.

Sources: Dao et al., "FlashAttention", 2022, section 3.3 (block-sparse); Dong et al., "Flex
Attention", 2024, arXiv 2412.05496 (predicates as lists of full and partial blocks; it calls the
predicate in the kernel where we read bits).
"""

import math

import torch
import triton
import triton.language as tl
from attnlib.kernels.block_sparse_tiles import listed_count, listed_start
from attnlib.kernels.launch import (
    check_attention,
    check_device,
    check_scale,
    on_device_of,
    readable,
)
from attnlib.kernels.masked_block_attention_gradient import gradients_of
from attnlib.kernels.masked_block_attention_tiles import (
    lists_of_block,
    marked_only,
    mask_number,
    problem,
    tile_for,
)
from attnlib.kernels.tiled_support import TiledSupport, check_unchanged
from attnlib.kernels.tiles import (
    LOG2_E,
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


def masked_block_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    support: TiledSupport,
    *,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention over the pairs of a support: o_i = sum_{j in S_i} e^{s_ij} v_j / sum e^s.

    Shapes: query (*batch, H, N, D), key (*batch, Hkv, M, D), value (*batch, Hkv, M, E), read
    (*batch, H, N, E); also without heads. H is a multiple of Hkv: query head h reads key head
    h // (H / Hkv). D and E are 1 to 256.

    support: the result of `tiled_support` for N queries, M keys, and as many batch entries and
    heads as the tensors have, or one of each for all. Several batch axes count through as one.
    scale is D ** -0.5 unless given.

    A row whose support is empty reads zero and sends back zero. Keys of tiles that are skipped are
    never loaded; keys that a mask hides are loaded and weigh zero, so they must be finite numbers.
    Finite for scores up to 1e4. float16 and bfloat16 are summed in float32, float32 is multiplied
    in full precision (no tf32). Gradients flow to query, key and value, once (no second
    derivative).

    Cost: 2 (D + E) operations a pair in the listed tiles, memory linear in N + M, beside the
    support's own.

    Raises TypeError for a wrong dtype or a support that is none; ValueError for shapes that do not
    fit, a support that was written to, a width over 256, numbers of a row that are not adjacent,
    devices that differ or cannot run Triton, a scale that is not positive, a chip whose shared
    memory holds no tile.
    """
    check_attention(query, key, value)
    check_scale(scale)
    check_fits(support, query, key)
    check_device(forward_kernel, query=query, key=key, value=value, support=support.masks)
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    folded = (batch_and_heads(tensor) for tensor in (query, key, value))
    read = MaskedBlockAttention.apply(*folded, support, scale)
    return read.view(*query.shape[:-1], value.shape[-1])


def check_fits(support: TiledSupport, query: Tensor, key: Tensor) -> None:
    """Raise unless the support is one, of these queries and keys, and as it was made."""
    if not isinstance(support, TiledSupport):
        raise TypeError(
            "support must be a TiledSupport, the result of tiled_support, "
            f"got {type(support).__name__}"
        )
    check_unchanged(support)
    lengths = query.shape[-2], key.shape[-2]
    if (support.queries, support.keys) != lengths:
        raise ValueError(
            f"support must be of the {lengths[0]} queries and {lengths[1]} keys, "
            f"got one of {support.queries} and {support.keys}"
        )
    lead = math.prod(query.shape[:-3]), query.shape[-3] if query.dim() > 2 else 1
    if any(have not in (1, want) for have, want in zip(support.lead, lead, strict=True)):
        raise ValueError(
            f"support must be of {lead[0]} batch entries and {lead[1]} heads, or of one for all, "
            f"got {support.lead[0]} and {support.lead[1]}"
        )


@triton.jit
def forward_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    list_ptr,
    mask_list_ptr,
    count_ptr,
    mask_ptr,
    read_ptr,
    log_sum_ptr,
    query_steps,
    key_steps,
    value_steps,
    list_steps,
    count_steps,
    counts,
    scale: tl.constexpr,
    width: tl.constexpr,
    value_width: tl.constexpr,
    arithmetic: tl.constexpr,
    queries_a_block: tl.constexpr,
    keys_a_block: tl.constexpr,
    query_block_size: tl.constexpr,
    key_block_size: tl.constexpr,
):
    query_count, key_count, heads, key_heads = counts
    query_start, batch, head = my_query_block(query_count, heads, query_block_size)
    first_row = (batch * heads + head).to(tl.int64) * query_count
    query_ptr = head_at(query_ptr, query_steps, batch, head)
    key_ptr = head_at(key_ptr, key_steps, batch, head // (heads // key_heads))
    value_ptr = head_at(value_ptr, value_steps, batch, head // (heads // key_heads))

    queries = query_start + tl.arange(0, query_block_size)
    query_present = queries < query_count
    query_block = load_rows(query_ptr, query_start, query_steps[2], query_present, width)
    running_max = tl.full([query_block_size], -float("inf"), arithmetic)
    running_sum = tl.zeros([query_block_size], arithmetic)
    accumulator = tl.zeros([query_block_size, padded(value_width)], arithmetic)

    block = query_start // queries_a_block
    list_ptr, mask_list_ptr, entries = lists_of_block(
        list_ptr, mask_list_ptr, count_ptr, list_steps, count_steps, batch, head, block
    )
    for partial in tl.static_range(2):
        ahead = listed_start(list_ptr, entries, 0, keys_a_block, key_block_size, partial)
        for step in range(0, listed_count(entries, keys_a_block, key_block_size, partial)):
            key_start = ahead
            ahead = listed_start(list_ptr, entries, step + 1, keys_a_block, key_block_size, partial)
            keys = key_start + tl.arange(0, key_block_size)
            present = rows_present(None, keys, key_count, partial)
            key_block = load_rows(key_ptr, key_start, key_steps[2], present, width)
            scores = product(query_block, tl.trans(key_block))
            if partial:
                number = mask_number(mask_list_ptr, entries, step, keys_a_block // key_block_size)
                scores = marked_only(
                    scores,
                    mask_ptr,
                    number,
                    queries[:, None],
                    keys[None, :],
                    key_start,
                    key_block_size,
                    queries_a_block,
                    keys_a_block,
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


class MaskedBlockAttention(torch.autograd.Function):
    """The three kernels as one differentiable operation on tensors (B, H, N, D)."""

    @staticmethod
    def forward(ctx, query, key, value, support, scale) -> Tensor:
        ctx.dtype = query.dtype
        query, key, value = (readable(forward_kernel, tensor) for tensor in (query, key, value))
        read, log_sum = read_and_log_sum(query, key, value, support, scale)
        ctx.save_for_backward(query, key, value, read, log_sum)
        ctx.support, ctx.scale = support, scale
        return read.to(ctx.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_read: Tensor) -> tuple[Tensor | None, ...]:
        check_unchanged(ctx.support)
        grad_read = readable(forward_kernel, grad_read.contiguous())
        gradients = gradients_of(grad_read, *ctx.saved_tensors, ctx.support, ctx.scale)
        return *(gradient.to(ctx.dtype) for gradient in gradients), None, None


def read_and_log_sum(
    query: Tensor, key: Tensor, value: Tensor, support: TiledSupport, scale: float
) -> tuple[Tensor, Tensor]:
    """o, and l in base 2: minus infinity for a row whose support is empty."""
    batch, heads, queries, _ = query.shape
    choices = tile_for("forward", query, value, support.block_size)
    read = torch.empty((*query.shape[:-1], value.shape[-1]), dtype=query.dtype, device=query.device)
    log_sum = torch.empty(query.shape[:-1], dtype=arithmetic_of(query.dtype), device=query.device)
    with on_device_of(query):
        forward_kernel[(batch * heads * triton.cdiv(queries, choices["query_block_size"]),)](
            *(query, key, value),
            **problem(query, key, value, support, support.by_query, scale),
            read_ptr=read,
            log_sum_ptr=log_sum,
            **choices,
        )
    return read, log_sum
