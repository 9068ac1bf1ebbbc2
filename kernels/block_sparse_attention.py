"""Block-sparse attention as a kernel: flash attention over a list of key blocks a query block.

The equation is that of flash attention. Only the support is another: B_i are the key blocks that
the list of query i's block names, S_i the keys in them that causality and key_mask leave.

    s_ij = scale q_i . k_j        l_i = log sum_{j in S_i} exp(s_ij)
    p_ij = exp(s_ij - l_i)        o_i = sum_{j in S_i} p_ij v_j

Backward, with g_i for the gradient dL/do_i that arrives at row i and delta_i = g_i . o_i:

    dL/dv_j  = sum_i p_ij g_i
    dL/ds_ij = p_ij (g_i . v_j - delta_i)
    dL/dq_i  = scale sum_j dL/ds_ij k_j
    dL/dk_j  = scale sum_i dL/ds_ij q_i

The picture. Flash attention walks over a stretch of key blocks, one after the other. Here a program
reads from a list which block comes next; the tiles between are neither loaded nor multiplied:

    query block 3, causal:    listed 0 2 3      full | ---- | full | partial

The list ascends, so the edges of the causal band lie in it as they lie in the row of tiles: entries
before one number are full, those after it partial. `edges_in_list` finds them once a program.

What one program does. What a program of flash attention does, with the next tile taken from the
list. For dL/dk and dL/dv a program holds a key block and walks over the transposed list: the query
blocks that read it, head after head of those that share it. So each output has one writer. A block
of the list may be larger than the tile that fits a chip: then it is read as a few tiles.

What it moves and computes. The share of the tiles that is listed (the density) times what flash
attention computes: 4 D operations a pair forward, 10 backward (ours 14). Queries, keys, values and
reads still move once at least: b (N + M)(D + E) bytes a head with b bytes a number, and 4 bytes a
list entry.

The bound: an H200 multiplies about 790e12 bf16 operations a second and copies 4.3e12 bytes, so 184
operations a byte. At N = M = 8192, D = 128 and a density of 1/4, forward has 1024 a byte: products
decide, and a quarter of the tiles takes a quarter of the time at best.

`log_skip_below` makes the forward kernel leave out the values of tiles whose weights are all small:
see block_sparse_filter.py. It is None here, and the condition is gone when the kernel is compiled.

Sources: Dao et al., "FlashAttention", 2022, section 3.3 and algorithm 5 (block-sparse); Dao,
"FlashAttention-2", 2023 (one program a query block; l alone is kept).
"""

import math

import torch
import triton
import triton.language as tl
from attnlib.kernels.bands import band_of, edges_of, seen_only
from attnlib.kernels.block_lists import (
    BlockLists,
    block_lists,
    check_block_size,
    check_blocks,
    every_head,
)
from attnlib.kernels.block_sparse_gradient import gradients_of
from attnlib.kernels.block_sparse_tiles import (
    edges_in_list,
    list_of,
    listed_count,
    listed_start,
    problem,
    tile_for,
)
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


def block_sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: Tensor | BlockLists,
    *,
    block_size: int | tuple[int, int],
    is_causal: bool = False,
    query_offset: int = 0,
    key_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention over the listed blocks: o_i = sum_{j in S_i} e^{s_ij} v_j / sum e^{s_ij}.

    Shapes: query (*batch, H, N, D), key (*batch, Hkv, M, D), value (*batch, Hkv, M, E), read
    (*batch, H, N, E); also without heads. H is a multiple of Hkv: query head h reads key head
    h // (H / Hkv). D and E are 1 to 256.

    blocks: bool (*#batch, #H, ceil(N / Bq), ceil(M / Bk)), True where a tile is read; axes before
    the last two broadcast, and what is shared is not copied. Or the result of `block_lists` of
    such a table: make it once where the table is used again. block_size: (Bq, Bk) or one number
    for both, each 16, 32, 64 or 128.

    Row i stands at position i + query_offset. is_causal: of the listed blocks it sees the keys up
    to its position. key_mask is bool, True where a key may be read, and broadcasts to (*batch, M).
    scale is D ** -0.5 unless given.

    A row whose support is empty, by an empty list or by the masks, reads zero and sends back zero.
    Keys of tiles that are not listed, and keys that key_mask hides, are never loaded. Finite for
    scores up to 1e4. float16 and bfloat16 are summed in float32, float32 is multiplied in full
    precision (no tf32). Gradients flow to query, key and value, once (no second derivative).

    Cost: 2 (D + E) operations a pair in the listed tiles, memory linear in N + M and the lists.
    A table is sorted into lists and checked in each call, which waits for the GPU; lists are not.

    Raises TypeError for a wrong dtype; ValueError for shapes that do not fit, a width over 256,
    a block size that is none of the four, lists that were written to, numbers of a row that are not
    adjacent, devices that differ or cannot run Triton, a scale that is not positive, a chip whose
    shared memory holds no tile. `BlockLists` itself refuses wrong lists.
    """
    inputs = checked(
        query, key, value, blocks, block_size, is_causal, query_offset, key_mask, scale
    )
    read = BlockSparseAttention.apply(*inputs)
    return read.view(*query.shape[:-1], value.shape[-1])


def checked(
    query, key, value, blocks, block_size, is_causal, query_offset, key_mask, scale
) -> tuple:
    """What the kernels take, or an error: tensors (B, H, N, D), lists, sizes, mask, band, scale."""
    check_attention(query, key, value)
    check_scale(scale)
    check_flag("is_causal", is_causal)
    check_whole("query_offset", query_offset)
    block_size = check_block_size(block_size)
    check_blocks(blocks, query, key, block_size)
    tensors = {"query": query, "key": key, "value": value}
    tensors["blocks"] = blocks.key_blocks if isinstance(blocks, BlockLists) else blocks
    if key_mask is not None:
        check_key_mask(key_mask, key)
        tensors["key_mask"] = key_mask
    check_device(forward_kernel, **tensors)
    if key_mask is not None:
        batch, keys = math.prod(key.shape[:-3]), key.shape[-2]
        key_mask = key_mask.expand(*key.shape[:-3], keys).reshape(batch, keys).contiguous()
    lists = blocks if isinstance(blocks, BlockLists) else block_lists(blocks)
    lists = every_head(lists, query)
    band = band_of(query.shape[-2], key.shape[-2], is_causal, query_offset, None)
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    folded = (batch_and_heads(tensor) for tensor in (query, key, value))
    return *folded, lists, block_size, key_mask, band, scale


@triton.jit
def reaches(tile_max, new_max, query_present, log_skip_below):
    """Whether a weight of the tile reaches skip_below, relative to the running maximum."""
    below = tl.where(query_present, tile_max - finite(new_max), -float("inf"))
    return tl.max(below, 0) >= log_skip_below


@triton.jit
def forward_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    list_ptr,
    count_ptr,
    key_mask_ptr,
    read_ptr,
    log_sum_ptr,
    skipped_ptr,
    visited_ptr,
    query_steps,
    key_steps,
    value_steps,
    list_steps,
    count_steps,
    counts,
    band,
    log_skip_below,
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
    if key_mask_ptr is not None:
        key_mask_ptr += batch.to(tl.int64) * key_count

    queries = query_start + tl.arange(0, query_block_size)
    query_present = queries < query_count
    query_block = load_rows(query_ptr, query_start, query_steps[2], query_present, width)
    running_max = tl.full([query_block_size], -float("inf"), arithmetic)
    running_sum = tl.zeros([query_block_size], arithmetic)
    accumulator = tl.zeros([query_block_size, padded(value_width)], arithmetic)
    skipped = 0

    block = query_start // queries_a_block
    list_ptr, count = list_of(list_ptr, list_steps, count_ptr, count_steps, batch, head, block)
    query_stop = tl.minimum(query_start + query_block_size, query_count)
    edges = edges_of(query_start, query_stop, band, key_count, keys_a_block)
    entries = edges_in_list(list_ptr, count, edges, keys_a_block)
    for partial in tl.static_range(2):
        ahead = listed_start(list_ptr, entries, 0, keys_a_block, key_block_size, partial)
        for step in range(0, listed_count(entries, keys_a_block, key_block_size, partial)):
            key_start = ahead
            ahead = listed_start(list_ptr, entries, step + 1, keys_a_block, key_block_size, partial)
            keys = key_start + tl.arange(0, key_block_size)
            present = rows_present(key_mask_ptr, keys, key_count, partial)
            key_block = load_rows(key_ptr, key_start, key_steps[2], present, width)
            scores = product(query_block, tl.trans(key_block))
            scores = seen_only(
                scores, queries[:, None], keys[None, :], present[None, :], band, partial
            )

            tile_max = tl.max(scores, 1) * (scale * LOG2_E)
            new_max = tl.maximum(running_max, tile_max)
            weights = tl.exp2(scores * (scale * LOG2_E) - finite(new_max)[:, None])
            shrink = tl.exp2(running_max - finite(new_max))
            running_sum = running_sum * shrink + tl.sum(weights, 1)
            accumulator = accumulator * shrink[:, None]
            if log_skip_below is None or reaches(tile_max, new_max, query_present, log_skip_below):
                value_block = load_rows(value_ptr, key_start, value_steps[2], present, value_width)
                accumulator += product(weights.to(value_block.dtype), value_block)
            else:
                skipped += 1
            running_max = new_max

    normalizer = tl.where(running_sum == 0.0, 1.0, running_sum)  # empty support: 0 / 1
    log_sum = running_max + tl.log2(normalizer)
    tl.store(log_sum_ptr + first_row + queries, log_sum, mask=query_present)
    read_ptr += first_row * value_width
    store_rows(read_ptr, query_start, accumulator / normalizer[:, None], query_present, value_width)
    if log_skip_below is not None:
        blocks = tl.cdiv(query_count, queries_a_block) * (queries_a_block // query_block_size)
        place = (batch * heads + head).to(tl.int64) * blocks + query_start // query_block_size
        visited = listed_count(entries, keys_a_block, key_block_size, False)
        visited += listed_count(entries, keys_a_block, key_block_size, True)
        tl.store(skipped_ptr + place, skipped)
        tl.store(visited_ptr + place, visited)


class BlockSparseAttention(torch.autograd.Function):
    """The three kernels as one differentiable operation on tensors (B, H, N, D)."""

    @staticmethod
    def forward(ctx, query, key, value, lists, block_size, key_mask, band, scale) -> Tensor:
        ctx.dtype = query.dtype
        query, key, value = (readable(forward_kernel, tensor) for tensor in (query, key, value))
        read, log_sum, *_ = read_and_log_sum(
            query, key, value, lists, block_size, key_mask, band, scale
        )
        ctx.save_for_backward(query, key, value, key_mask, read, log_sum, *lists)
        ctx.block_size, ctx.band, ctx.scale = block_size, band, scale
        return read.to(ctx.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_read: Tensor) -> tuple[Tensor | None, ...]:
        grad_read = readable(forward_kernel, grad_read.contiguous())
        tensors, lists = ctx.saved_tensors[:6], ctx.saved_tensors[6:]
        gradients = gradients_of(grad_read, *tensors, lists, ctx.block_size, ctx.band, ctx.scale)
        return *(gradient.to(ctx.dtype) for gradient in gradients), *(None,) * 5


def read_and_log_sum(
    query, key, value, lists, block_size, key_mask, band, scale, skip_below=None
) -> tuple[Tensor | None, ...]:
    """o, l in base 2 (minus infinity where the support is empty); with skip_below the tiles
    skipped and visited, (B, H, query blocks)."""
    batch, heads, queries, _ = query.shape
    choices = tile_for("forward", query, value, block_size)
    read = torch.empty((*query.shape[:-1], value.shape[-1]), dtype=query.dtype, device=query.device)
    log_sum = torch.empty(query.shape[:-1], dtype=arithmetic_of(query.dtype), device=query.device)
    skipped = visited = None
    if skip_below is not None:
        tiles_a_block = block_size[0] // choices["query_block_size"]
        shape = batch, heads, triton.cdiv(queries, block_size[0]), tiles_a_block
        skipped, visited = torch.zeros((2, *shape), dtype=torch.int32, device=query.device)
    with on_device_of(query):
        forward_kernel[(batch * heads * triton.cdiv(queries, choices["query_block_size"]),)](
            *(query, key, value, *lists[:2], key_mask, read, log_sum, skipped, visited),
            log_skip_below=None if skip_below is None else math.log2(skip_below),
            **problem(query, key, value, lists[:2], block_size, band, scale),
            **choices,
        )
    if skip_below is not None:
        skipped, visited = (count.sum(-1, dtype=torch.int32) for count in (skipped, visited))
    return read, log_sum, skipped, visited
