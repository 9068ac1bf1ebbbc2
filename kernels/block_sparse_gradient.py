"""The gradients of block-sparse attention: two kernels, each output with one writer.

The equations are in block_sparse_attention.py. One kernel holds a query block and walks over the
key blocks of its list for dL/dq. The other holds a key block and walks over the transposed list,
the query blocks that read it, for dL/dk and dL/dv: head after head of those that share the key
head, each with a list of its own. Both compute the weights again from l.
"""

import torch
import triton
import triton.language as tl
from attnlib.kernels.bands import edges_of, seen_only
from attnlib.kernels.block_sparse_tiles import (
    edges_in_list,
    list_of,
    listed_count,
    listed_start,
    problem,
    tile_for,
)
from attnlib.kernels.launch import on_device_of
from attnlib.kernels.tiles import (
    LOG2_E,
    finite,
    head_at,
    load_rows,
    my_query_block,
    padded,
    product,
    rows_present,
    store_rows,
)


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
