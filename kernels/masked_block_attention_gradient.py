"""The gradients of masked block attention: two kernels, each output with one writer.

The equations are in masked_block_attention.py. One kernel holds a query block and walks over the
key blocks of its list for dL/dq. The other holds a key block and walks over the query blocks that
read it, head after head of those that share the key head, for dL/dk and dL/dv. Both compute the
weights again from l, and both read the same masks.
"""

import torch
import triton
import triton.language as tl
from attnlib.kernels.block_sparse_tiles import listed_count, listed_start
from attnlib.kernels.launch import on_device_of
from attnlib.kernels.masked_block_attention_tiles import (
    lists_of_block,
    marked_only,
    mask_number,
    problem,
    tile_for,
)
from attnlib.kernels.tiles import (
    LOG2_E,
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


@triton.jit
def query_gradient_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    list_ptr,
    mask_list_ptr,
    count_ptr,
    mask_ptr,
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
    read_ptr += first_row * value_width
    grad_read_ptr += first_row * value_width
    read = load_rows(read_ptr, query_start, value_width, query_present, value_width)
    grad_read = load_rows(grad_read_ptr, query_start, value_width, query_present, value_width)
    delta = tl.sum(grad_read.to(arithmetic) * read.to(arithmetic), 1)
    tl.store(delta_ptr + first_row + queries, delta, mask=query_present)
    log_sum = tl.load(log_sum_ptr + first_row + queries, mask=query_present, other=0.0)
    grad_query = tl.zeros([query_block_size, padded(width)], arithmetic)

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
            value_block = load_rows(value_ptr, key_start, value_steps[2], present, value_width)
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
    mask_list_ptr,
    count_ptr,
    mask_ptr,
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
    key_start, batch, key_head = my_key_block(key_count, key_heads, key_block_size)
    key_ptr = head_at(key_ptr, key_steps, batch, key_head)
    value_ptr = head_at(value_ptr, value_steps, batch, key_head)

    keys = key_start + tl.arange(0, key_block_size)
    present = rows_present(None, keys, key_count, partial=True)
    key_block = load_rows(key_ptr, key_start, key_steps[2], present, width)
    value_block = load_rows(value_ptr, key_start, value_steps[2], present, value_width)
    grad_key = tl.zeros([key_block_size, padded(width)], arithmetic)
    grad_value = tl.zeros([key_block_size, padded(value_width)], arithmetic)

    block = key_start // keys_a_block
    group = heads // key_heads
    for member in range(0, group):
        head = key_head * group + member
        head_ptr = head_at(query_ptr, query_steps, batch, head)
        first_row = (batch * heads + head).to(tl.int64) * query_count
        grad_ptr = grad_read_ptr + first_row * value_width
        row_ptr, mask_row_ptr, entries = lists_of_block(
            list_ptr, mask_list_ptr, count_ptr, list_steps, count_steps, batch, head, block
        )
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
                if partial:
                    tiles_a_block: tl.constexpr = queries_a_block // query_block_size
                    number = mask_number(mask_row_ptr, entries, step, tiles_a_block)
                    scores = marked_only(
                        scores,
                        mask_ptr,
                        number,
                        queries[None, :],
                        keys[:, None],
                        key_start,
                        key_block_size,
                        queries_a_block,
                        keys_a_block,
                    )
                weights = tl.exp2(scores * (scale * LOG2_E) - finite(log_sum)[None, :])
                grad_value += product(weights.to(grad_read.dtype), grad_read)
                grad_weights = product(value_block, tl.trans(grad_read))
                grad_scores = weights * (grad_weights - delta[None, :])
                grad_key += product(grad_scores.to(query_block.dtype), query_block)

    first_key = (batch * key_heads + key_head).to(tl.int64) * key_count
    store_rows(grad_key_ptr + first_key * width, key_start, grad_key * scale, present, width)
    store_rows(
        grad_value_ptr + first_key * value_width, key_start, grad_value, present, value_width
    )


def gradients_of(grad_read, query, key, value, read, log_sum, support, scale):
    """The gradients of query, key and value."""
    batch, heads, queries, _ = query.shape
    grad_query, grad_key, grad_value = (
        torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        for tensor in (query, key, value)
    )
    delta = torch.empty_like(log_sum)
    for_queries = tile_for("query gradient", query, value, support.block_size)
    for_keys = tile_for("key gradient", query, value, support.block_size)
    shared = {"log_sum_ptr": log_sum, "grad_read_ptr": grad_read, "delta_ptr": delta}
    with on_device_of(query):
        blocks = triton.cdiv(queries, for_queries["query_block_size"])
        query_gradient_kernel[(batch * heads * blocks,)](
            *(query, key, value),
            **problem(query, key, value, support, support.by_query, scale),
            **shared,
            read_ptr=read,
            grad_query_ptr=grad_query,
            **for_queries,
        )
        blocks = triton.cdiv(key.shape[-2], for_keys["key_block_size"])
        key_gradient_kernel[(batch * key.shape[1] * blocks,)](
            *(query, key, value),
            **problem(query, key, value, support, support.by_key, scale),
            **shared,
            grad_key_ptr=grad_key,
            grad_value_ptr=grad_value,
            **for_keys,
        )
    return grad_query, grad_key, grad_value
