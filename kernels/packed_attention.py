"""Attention over packed sequences as a kernel: flash attention without padding.

A batch of sequences of different lengths, laid end to end along one axis. The equation is that of
flash attention within each sequence: S_i are the keys of query i's own sequence, and of these the
ones that causality or a window leaves.

    s_ij = scale q_i . k_j        l_i = log sum_{j in S_i} exp(s_ij)
    p_ij = exp(s_ij - l_i)        o_i = sum_{j in S_i} p_ij v_j

Backward, with g_i for the gradient dL/do_i that arrives at row i and delta_i = g_i . o_i:

    dL/dv_j  = sum_i p_ij g_i
    dL/ds_ij = p_ij (g_i . v_j - delta_i)
    dL/dq_i  = scale sum_j dL/ds_ij k_j
    dL/dk_j  = scale sum_i dL/ds_ij q_i

The picture. The table of all queries and all keys has one rectangle of N_s x M_s pairs for each
sequence s, down its diagonal. All else is never visited:

    a a a . . . .         Each rectangle is cut into tiles by itself, from its own first row and
    a a a . . . .         column on, so no tile holds two sequences: what a row sees is a band of
    . . . b . . .         its own sequence, and flash attention's full and partial tiles are found
    . . . . c c c         as there.
    . . . . c c c

What one program does. Forward: one query block of one sequence of one head. It reads from a list
which one (packed_attention_blocks.py), then does what a program of flash attention does. Backward:
the same for dL/dq; for dL/dk and dL/dv one key block of one sequence, over the queries of its
sequence and of all heads that share it. Each output has one writer.

What it must move, per head with b bytes a number and N, M the totals: forward reads q, k, v and
writes o, b (N + M)(D + E) in all, and 4 N for l. Backward reads those and g, and writes three
gradients. The same batch, padded to its longest sequence, moves as much for each row of padding.

What it computes: 4 N_s M_s D operations a sequence forward (D = E), summed over the sequences, and
backward 10 (ours 14). Causal is half. Padded, each sequence costs what the longest costs. A block
at the end of a sequence is cut: half a block is empty there on average, so a sequence shorter than
a block (128 queries) still costs a whole tile.

The bound: an H200 does about 790e12 bf16 operations a second and copies 4.3e12 bytes, so 184
operations a byte. Forward has N_s / 2 a byte for N_s = M_s (half of that if causal): sequences over
about 400 tokens are decided by products, shorter ones by bytes.

Sources: Dao, "FlashAttention-2", 2023 (the programs; the published code has this form as its
"varlen" functions); Krell et al., "Efficient Sequence Packing without Cross-contamination", 2021,
arXiv 2107.02027 (packing, and that a sequence must not see its neighbor).
"""

import torch
import triton
import triton.language as tl
from attnlib.kernels.bands import edges_of, seen_only, tile_count, tile_start
from attnlib.kernels.flash_attention import TILES
from attnlib.kernels.launch import (
    check_attention,
    check_device,
    check_flag,
    check_scale,
    check_whole,
    on_device_of,
    readable,
)
from attnlib.kernels.packed_attention_blocks import (
    Packing,
    my_block,
    packing_of,
    rows_of,
    sequence_at,
)
from attnlib.kernels.packed_attention_gradient import gradients_of, problem
from attnlib.kernels.tile_choice import tile_for
from attnlib.kernels.tiles import (
    LOG2_E,
    arithmetic_of,
    finite,
    load_rows,
    padded,
    product,
    rows_present,
    store_rows,
)
from torch import Tensor
from torch.autograd.function import once_differentiable


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    query_starts: Tensor,
    key_starts: Tensor | None = None,
    is_causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention within each sequence: o_i = sum_{j in S_i} e^{s_ij} v_j / sum e^{s_ij}.

    Shapes: query (H, N, D), key (Hkv, M, D), value (Hkv, M, E), read (H, N, E), N and M the rows of
    all sequences together; also without heads. H is a multiple of Hkv: query head h reads key head
    h // (H / Hkv). D and E are 1 to 256.

    query_starts: int32 or int64, (sequences + 1,), from 0 to N, not descending. The queries of
    sequence s are the rows from query_starts[s] to query_starts[s + 1]; a sequence may have none.
    key_starts: the same for the keys, from 0 to M; without it they are those of the queries. They
    are read on the host: given on a GPU they are waited for, given on the CPU they are not.

    Rows count from 0 in each sequence, queries and keys alike. is_causal: row i of a sequence sees
    its keys 0 to i. window=W: the last W of those. Where a sequence has more keys than queries the
    first query is so beside the first key, as everywhere in this book (top-left). The "varlen"
    functions of other libraries put the last query beside the last key (bottom-right): the two
    agree where each sequence has as many queries as keys. scale is D ** -0.5 unless given.

    A row whose support is empty reads zero and sends back zero. Finite for scores up to 1e4.
    float16 and bfloat16 are summed in float32, float32 is multiplied in full precision (no tf32).
    Gradients flow to query, key and value, once (no second derivative).

    Cost: 2 (D + E) operations a pair of a query and a key that it sees, memory linear in N + M.
    Nothing is computed for a pair of two sequences, and there is no padding.

    Raises TypeError for a wrong dtype; ValueError for shapes that do not fit, starts that do not
    ascend from 0 to the number of rows, a width over 256, numbers of a row that are not adjacent,
    devices that differ or cannot run Triton, a scale or window that is not positive, a chip whose
    shared memory holds no tile.
    """
    check_attention(query, key, value)
    if query.dim() > 3:
        raise ValueError(
            "query must have shape (heads, rows of all sequences, width), or no heads, "
            f"got {tuple(query.shape)}: packed sequences have no batch axis"
        )
    check_scale(scale)
    check_flag("is_causal", is_causal)
    if window is not None:
        check_whole("window", window, least=1)
    packing = packing_of(query, key, query_starts, key_starts, is_causal, window)
    check_device(forward_kernel, query=query, key=key, value=value)
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    with_heads = (t if t.dim() == 3 else t[None] for t in (query, key, value))
    read = PackedAttention.apply(*with_heads, packing, scale)
    return read.view(*query.shape[:-1], value.shape[-1])


@triton.jit
def forward_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    list_ptr,
    query_starts_ptr,
    key_starts_ptr,
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
    query_total, _, heads, key_heads = counts
    query_start, sequence, head = my_block(list_ptr, heads)
    first_query, query_count = rows_of(query_starts_ptr, sequence)
    first_key, key_count = rows_of(key_starts_ptr, sequence)
    first_row = head.to(tl.int64) * query_total + first_query
    query_ptr = sequence_at(query_ptr, query_steps, head, first_query)
    key_ptr = sequence_at(key_ptr, key_steps, head // (heads // key_heads), first_key)
    value_ptr = sequence_at(value_ptr, value_steps, head // (heads // key_heads), first_key)

    queries = query_start + tl.arange(0, query_block_size)
    query_present = queries < query_count
    query_block = load_rows(query_ptr, query_start, query_steps[1], query_present, width)
    running_max = tl.full([query_block_size], -float("inf"), arithmetic)
    running_sum = tl.zeros([query_block_size], arithmetic)
    accumulator = tl.zeros([query_block_size, padded(value_width)], arithmetic)

    query_stop = tl.minimum(query_start + query_block_size, query_count)
    edges = edges_of(query_start, query_stop, band, key_count, key_block_size)
    for partial in tl.static_range(2):
        for step in range(0, tile_count(edges, key_block_size, partial)):
            key_start = tile_start(edges, step, key_block_size, partial)
            keys = key_start + tl.arange(0, key_block_size)
            present = rows_present(None, keys, key_count, partial)
            key_block = load_rows(key_ptr, key_start, key_steps[1], present, width)
            scores = product(query_block, tl.trans(key_block))
            scores = seen_only(
                scores, queries[:, None], keys[None, :], present[None, :], band, partial
            )

            new_max = tl.maximum(running_max, tl.max(scores, 1) * (scale * LOG2_E))
            weights = tl.exp2(scores * (scale * LOG2_E) - finite(new_max)[:, None])
            shrink = tl.exp2(running_max - finite(new_max))
            running_sum = running_sum * shrink + tl.sum(weights, 1)
            value_block = load_rows(value_ptr, key_start, value_steps[1], present, value_width)
            accumulator = accumulator * shrink[:, None]
            accumulator += product(weights.to(value_block.dtype), value_block)
            running_max = new_max

    normalizer = tl.where(running_sum == 0.0, 1.0, running_sum)  # empty support: 0 / 1
    log_sum = running_max + tl.log2(normalizer)
    tl.store(log_sum_ptr + first_row + queries, log_sum, mask=query_present)
    read_ptr += first_row * value_width
    store_rows(read_ptr, query_start, accumulator / normalizer[:, None], query_present, value_width)


class PackedAttention(torch.autograd.Function):
    """The three kernels as one differentiable operation on tensors (H, N, D)."""

    @staticmethod
    def forward(ctx, query, key, value, packing, scale) -> Tensor:
        ctx.dtype = query.dtype
        query, key, value = (readable(forward_kernel, tensor) for tensor in (query, key, value))
        read, log_sum = read_and_log_sum(query, key, value, packing, scale)
        ctx.save_for_backward(query, key, value, read, log_sum)
        ctx.packing, ctx.scale = packing, scale
        return read.to(ctx.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_read: Tensor) -> tuple[Tensor | None, ...]:
        grad_read = readable(forward_kernel, grad_read.contiguous())
        gradients = gradients_of(grad_read, *ctx.saved_tensors, ctx.packing, ctx.scale)
        return *(gradient.to(ctx.dtype) for gradient in gradients), None, None


def read_and_log_sum(query, key, value, packing: Packing, scale: float) -> tuple[Tensor, Tensor]:
    """o, and l in base 2: minus infinity for a row whose support is empty."""
    choices = tile_for(TILES, "forward", query, value)
    read = torch.empty((*query.shape[:-1], value.shape[-1]), dtype=query.dtype, device=query.device)
    log_sum = torch.empty(query.shape[:-1], dtype=arithmetic_of(query.dtype), device=query.device)
    blocks = packing.query_blocks(choices["query_block_size"]).to(query.device)
    with on_device_of(query):
        forward_kernel[(query.shape[0] * len(blocks),)](
            *(query, key, value, blocks),
            **problem(query, key, value, packing, scale),
            read_ptr=read,
            log_sum_ptr=log_sum,
            **choices,
        )
    return read, log_sum
