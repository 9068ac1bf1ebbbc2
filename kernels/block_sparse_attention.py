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
from attnlib.kernels.bands import band_of, edges_of, seen_only, tile_count, tile_start
from attnlib.kernels.block_lists import (
    BlockLists,
    block_lists,
    check_block_size,
    check_blocks,
    every_head,
)
from attnlib.kernels.launch import (
    check_attention,
    check_device,
    check_key_mask,
    check_scale,
    check_whole,
    on_device_of,
    readable,
    shared_memory_of,
)
from attnlib.kernels.tile_choice import tile
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

LISTED_AT_ONCE = tl.constexpr(256)  # list entries that edges_in_list looks at together


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
def list_of(list_ptr, list_steps, count_ptr, count_steps, batch, head, block):
    """Where the list of a block starts, and how many entries it has."""
    row_ptr = head_at(list_ptr, list_steps, batch, head) + block.to(tl.int64) * list_steps[2]
    count_ptr = head_at(count_ptr, count_steps, batch, head) + block.to(tl.int64) * count_steps[2]
    return row_ptr, tl.load(count_ptr)


@triton.jit
def edges_in_list(list_ptr, count, edges, block_size: tl.constexpr):
    """The four edges of a band as entry numbers: how many listed blocks start before each."""
    first, full, full_until, last = 0, 0, 0, 0
    for start in range(0, count, LISTED_AT_ONCE):
        entries = start + tl.arange(0, LISTED_AT_ONCE)
        listed = entries < count
        starts = tl.load(list_ptr + entries, mask=listed, other=0) * block_size
        first += tl.sum((listed & (starts < edges[0])).to(tl.int32), 0)
        full += tl.sum((listed & (starts < edges[1])).to(tl.int32), 0)
        full_until += tl.sum((listed & (starts < edges[2])).to(tl.int32), 0)
        last += tl.sum((listed & (starts < edges[3])).to(tl.int32), 0)
    return first, full, full_until, last


@triton.jit
def listed_count(entries, block_size: tl.constexpr, tile_size: tl.constexpr, partial: tl.constexpr):
    """How many tiles the full entries of a list have, or the partial ones."""
    return tile_count(entries, 1, partial) * (block_size // tile_size)


@triton.jit
def listed_start(
    list_ptr,
    entries,
    number,
    block_size: tl.constexpr,
    tile_size: tl.constexpr,
    partial: tl.constexpr,
):
    """Where tile `number` of the full entries starts, or of the partial ones; 0 after the last.

    A loop asks one tile ahead. The place of a tile is then known when its rows are to be copied
    ahead; else the compiler copies the list ahead too, and has one stage less for the rows.
    """
    tiles_a_block: tl.constexpr = block_size // tile_size
    entry = tile_start(entries, number // tiles_a_block, 1, partial)
    block = tl.load(list_ptr + entry, mask=entry < entries[3], other=0)
    return block * block_size + number % tiles_a_block * tile_size


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


@triton.jit
def query_gradient_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    list_ptr,
    count_ptr,
    key_mask_ptr,
    read_ptr,
    log_sum_ptr,
    grad_read_ptr,
    delta_ptr,
    grad_query_ptr,
    query_steps,
    key_steps,
    value_steps,
    list_steps,
    count_steps,
    counts,
    band,
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
    read_ptr += first_row * value_width
    grad_read_ptr += first_row * value_width
    read = load_rows(read_ptr, query_start, value_width, query_present, value_width)
    grad_read = load_rows(grad_read_ptr, query_start, value_width, query_present, value_width)
    delta = tl.sum(grad_read.to(arithmetic) * read.to(arithmetic), 1)
    tl.store(delta_ptr + first_row + queries, delta, mask=query_present)
    log_sum = tl.load(log_sum_ptr + first_row + queries, mask=query_present, other=0.0)
    grad_query = tl.zeros([query_block_size, padded(width)], arithmetic)

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
    list_ptr,
    count_ptr,
    key_mask_ptr,
    log_sum_ptr,
    grad_read_ptr,
    delta_ptr,
    grad_key_ptr,
    grad_value_ptr,
    query_steps,
    key_steps,
    value_steps,
    list_steps,
    count_steps,
    counts,
    band,
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
    block_count = tl.cdiv(key_count, key_block_size)
    key_start = tl.program_id(0) % block_count * key_block_size
    batch_and_head = tl.program_id(0) // block_count
    batch, key_head = batch_and_head // key_heads, batch_and_head % key_heads
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
    block = key_start // keys_a_block
    key_stop = tl.minimum(key_start + key_block_size, key_count)
    edges = edges_of(key_start, key_stop, (-band[1], -band[0]), query_count, queries_a_block)
    group = heads // key_heads
    for member in range(0, group):
        head = key_head * group + member
        head_ptr = head_at(query_ptr, query_steps, batch, head)
        first_row = (batch * heads + head).to(tl.int64) * query_count
        grad_ptr = grad_read_ptr + first_row * value_width
        row_ptr, count = list_of(list_ptr, list_steps, count_ptr, count_steps, batch, head, block)
        entries = edges_in_list(row_ptr, count, edges, queries_a_block)
        for partial in tl.static_range(2):
            ahead = listed_start(row_ptr, entries, 0, queries_a_block, query_block_size, partial)
            for step in range(0, listed_count(entries, queries_a_block, query_block_size, partial)):
                query_start = ahead
                ahead = listed_start(
                    row_ptr, entries, step + 1, queries_a_block, query_block_size, partial
                )
                queries = query_start + tl.arange(0, query_block_size)
                query_present = rows_present(None, queries, query_count, partial)
                query_block = load_rows(head_ptr, query_start, query_steps[2], query_present, width)
                grad_read = load_rows(
                    grad_ptr, query_start, value_width, query_present, value_width
                )
                row = first_row + queries
                log_sum = tl.load(log_sum_ptr + row, mask=query_present, other=0.0)
                delta = tl.load(delta_ptr + row, mask=query_present, other=0.0)

                scores = product(key_block, tl.trans(query_block))
                scores = seen_only(
                    scores, queries[None, :], keys[:, None], present[:, None], band, partial
                )
                weights = tl.exp2(scores * (scale * LOG2_E) - finite(log_sum)[None, :])
                grad_value += product(weights.to(grad_read.dtype), grad_read)
                grad_weights = product(value_block, tl.trans(grad_read))
                grad_scores = weights * (grad_weights - delta[None, :])
                grad_key += product(grad_scores.to(query_block.dtype), query_block)

    first_key = batch_and_head.to(tl.int64) * key_count
    in_tensor = keys < key_count
    store_rows(grad_key_ptr + first_key * width, key_start, grad_key * scale, in_tensor, width)
    store_rows(
        grad_value_ptr + first_key * value_width, key_start, grad_value, in_tensor, value_width
    )


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


def gradients_of(
    grad_read, query, key, value, key_mask, read, log_sum, lists, block_size, band, scale
):
    """The gradients of query, key and value."""
    batch, heads, queries, _ = query.shape
    grad_query, grad_key, grad_value = (
        torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        for tensor in (query, key, value)
    )
    delta = torch.empty_like(log_sum)
    for_queries = tile_for("query gradient", query, value, block_size)
    for_keys = tile_for("key gradient", query, value, block_size)
    with on_device_of(query):
        blocks = triton.cdiv(queries, for_queries["query_block_size"])
        query_gradient_kernel[(batch * heads * blocks,)](
            *(query, key, value, *lists[:2], key_mask),
            *(read, log_sum, grad_read, delta, grad_query),
            **problem(query, key, value, lists[:2], block_size, band, scale),
            **for_queries,
        )
        blocks = triton.cdiv(key.shape[-2], for_keys["key_block_size"])
        key_gradient_kernel[(batch * key.shape[1] * blocks,)](
            *(query, key, value, *lists[2:], key_mask),
            *(log_sum, grad_read, delta, grad_key, grad_value),
            **problem(query, key, value, lists[2:], block_size, band, scale),
            **for_keys,
        )
    return grad_query, grad_key, grad_value


def problem(query, key, value, lists, block_size, band, scale) -> dict:
    """What all three kernels are told of the layout and the support."""
    return {
        "query_steps": query.stride()[:3],
        "key_steps": key.stride()[:3],
        "value_steps": value.stride()[:3],
        "list_steps": lists[0].stride()[:3],
        "count_steps": lists[1].stride()[:3],
        "counts": (query.shape[2], key.shape[2], query.shape[1], key.shape[1]),
        "band": band,
        "scale": scale,
        "width": query.shape[3],
        "value_width": value.shape[3],
        "queries_a_block": block_size[0],
        "keys_a_block": block_size[1],
    }


def tile_for(kernel: str, query: Tensor, value: Tensor, block_size: tuple[int, int]) -> dict:
    """The tile of one of the kernels for these tensors on the device that holds them."""
    memory = shared_memory_of(query.device)
    return tile_within(kernel, query.shape[-1], value.shape[-1], query.dtype, memory, block_size)


def tile_within(
    kernel: str,
    width: int,
    value_width: int,
    dtype: torch.dtype,
    shared_memory: int | None,
    block_size: tuple[int, int],
) -> dict:
    """What `tile_choice.tile` says for the chip, but no larger than a block of the list.

    A tile that is cut takes four warps where what it holds suits them: 64 rows of 128 sums. The
    key gradient holds two sums and two tiles of weights a row, so it counts four times.
    """
    choices = tile(TILES, kernel, width, value_width, dtype, shared_memory)
    most = choices["query_block_size"], choices["key_block_size"]
    queries, keys = (min(sizes) for sizes in zip(most, block_size, strict=True))
    sums = (4 * keys if kernel == "key gradient" else queries) * max(width, value_width)
    if (queries, keys) != most and sums <= 64 * 128:
        choices["num_warps"] = 4
    return choices | {"query_block_size": queries, "key_block_size": keys}


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
