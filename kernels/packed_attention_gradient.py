"""The gradients of packed attention: two kernels, each output with one writer.

The equations are in packed_attention.py. One kernel holds a query block of a sequence and walks
over the keys of the sequence for dL/dq. The other holds a key block and walks over the queries of
its sequence, of all heads that share it, for dL/dk and dL/dv. Both compute the weights again from
l.
"""

import torch
import triton
import triton.language as tl
from attnlib.kernels.bands import edges_of, seen_only, tile_count, tile_start
from attnlib.kernels.flash_attention import TILES
from attnlib.kernels.launch import on_device_of
from attnlib.kernels.packed_attention_blocks import Packing, my_block, rows_of, sequence_at
from attnlib.kernels.tile_choice import tile_for
from attnlib.kernels.tiles import (
    LOG2_E,
    finite,
    load_rows,
    padded,
    product,
    rows_present,
    store_rows,
)
from torch import Tensor


@triton.jit
def query_gradient_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    list_ptr,
    query_starts_ptr,
    key_starts_ptr,
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
            present = rows_present(None, keys, key_count, partial)
            key_block = load_rows(key_ptr, key_start, key_steps[1], present, width)
            value_block = load_rows(value_ptr, key_start, value_steps[1], present, value_width)
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
    query_starts_ptr,
    key_starts_ptr,
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
    query_total, key_total, heads, key_heads = counts
    key_start, sequence, key_head = my_block(list_ptr, key_heads)
    first_query, query_count = rows_of(query_starts_ptr, sequence)
    first_key, key_count = rows_of(key_starts_ptr, sequence)
    key_ptr = sequence_at(key_ptr, key_steps, key_head, first_key)
    value_ptr = sequence_at(value_ptr, value_steps, key_head, first_key)

    keys = key_start + tl.arange(0, key_block_size)
    present = rows_present(None, keys, key_count, partial=True)
    key_block = load_rows(key_ptr, key_start, key_steps[1], present, width)
    value_block = load_rows(value_ptr, key_start, value_steps[1], present, value_width)
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
            head_ptr = sequence_at(query_ptr, query_steps, head, first_query)
            query_block = load_rows(head_ptr, query_start, query_steps[1], query_present, width)
            first_row = head.to(tl.int64) * query_total + first_query
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

    key_row = key_head.to(tl.int64) * key_total + first_key
    store_rows(grad_key_ptr + key_row * width, key_start, grad_key * scale, present, width)
    store_rows(grad_value_ptr + key_row * value_width, key_start, grad_value, present, value_width)


def gradients_of(
    grad_read, query, key, value, read, log_sum, packing: Packing, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value."""
    grad_query, grad_key, grad_value = (
        torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        for tensor in (query, key, value)
    )
    delta = torch.empty_like(log_sum)
    for_queries = tile_for(TILES, "query gradient", query, value)
    for_keys = tile_for(TILES, "key gradient", query, value)
    shared = problem(query, key, value, packing, scale)
    shared |= {"log_sum_ptr": log_sum, "grad_read_ptr": grad_read, "delta_ptr": delta}
    with on_device_of(query):
        blocks = packing.query_blocks(for_queries["query_block_size"]).to(query.device)
        query_gradient_kernel[(query.shape[0] * len(blocks),)](
            *(query, key, value, blocks),
            **shared,
            read_ptr=read,
            grad_query_ptr=grad_query,
            **for_queries,
        )
        blocks = packing.key_blocks(for_keys["key_block_size"]).to(query.device)
        key_gradient_kernel[(key.shape[0] * len(blocks),)](
            *(query, key, value, blocks),
            **shared,
            grad_key_ptr=grad_key,
            grad_value_ptr=grad_value,
            **for_keys,
        )
    return grad_query, grad_key, grad_value


def problem(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float) -> dict:
    """What all three kernels are told of the layout, the sequences and the support."""
    return {
        "query_starts_ptr": packing.query_starts.to(query.device),
        "key_starts_ptr": packing.key_starts.to(query.device),
        "query_steps": query.stride()[:2],
        "key_steps": key.stride()[:2],
        "value_steps": value.stride()[:2],
        "counts": (query.shape[1], key.shape[1], query.shape[0], key.shape[0]),
        "band": packing.band,
        "scale": scale,
        "width": query.shape[2],
        "value_width": value.shape[2],
    }
