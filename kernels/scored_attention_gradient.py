"""The gradients of scored attention: of queries, of keys and values, of the sink, of the biases.

The equations stand in `scored_attention.py`. The first two kernels are those of
`flash_attention.py` with the changed scores in place of the scores, and the derivative of the
change behind the weights. The third is new. The relative bias of distance j - p_i is added to a
whole diagonal of the table of scores, so its gradient is the sum of dL/dx along that diagonal:

    keys      0 1 2 3 4 5 6 7
    query 0   . . a b c d . .        a program owns the diagonals a ... d and walks down
    query 1   . . . a b c d .        query blocks; its keys move along with its queries
    query 2   . . . . a b c d

A product makes rectangles, so a step computes a tile of S queries by 2 S keys, and picks the S
diagonals out of it. Each diagonal of each head and batch entry has one writer. Batch entries, and
the far distances that share an entry of the bias, are added by torch afterwards.
"""

import torch
import triton
import triton.language as tl
from attnlib.kernels.bands import edges_of, seen_only, tile_count, tile_start
from attnlib.kernels.launch import on_device_of
from attnlib.kernels.scored_attention_changes import changed_scores
from attnlib.kernels.scored_attention_tiles import problem, tile_for
from attnlib.kernels.tiles import (
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

NO_ROW = tl.constexpr(float("inf"))  # log_sum of a row that does not exist: it weighs nothing


@triton.jit
def query_gradient_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    key_mask_ptr,
    slope_ptr,
    bias_ptr,
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
    read_ptr += first_row * value_width
    grad_read_ptr += first_row * value_width
    read = load_rows(read_ptr, query_start, value_width, query_present, value_width)
    grad_read = load_rows(grad_read_ptr, query_start, value_width, query_present, value_width)
    delta = tl.sum(grad_read.to(arithmetic) * read.to(arithmetic), 1)
    tl.store(delta_ptr + first_row + queries, delta, mask=query_present)
    log_sum = tl.load(log_sum_ptr + first_row + queries, mask=query_present, other=NO_ROW)
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
            products = product(query_block, tl.trans(key_block))
            scores, derivative = changed_scores(
                products, queries[:, None], keys[None, :], head, changes, scale
            )
            scores = seen_only(
                scores, queries[:, None], keys[None, :], present[None, :], band, partial
            )
            weights = tl.exp2(scores - finite(log_sum)[:, None])
            grad_weights = product(grad_read, tl.trans(value_block))
            grad_scores = weights * (grad_weights - delta[:, None]) * derivative
            grad_query += product(grad_scores.to(key_block.dtype), key_block)

    grad_query_ptr += first_row * width
    store_rows(grad_query_ptr, query_start, grad_query * scale, query_present, width)


@triton.jit
def key_gradient_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    key_mask_ptr,
    slope_ptr,
    bias_ptr,
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
            log_sum = tl.load(log_sum_ptr + first_row + queries, mask=query_present, other=NO_ROW)
            delta = tl.load(delta_ptr + first_row + queries, mask=query_present, other=0.0)

            products = product(key_block, tl.trans(query_block))
            scores, derivative = changed_scores(
                products, queries[None, :], keys[:, None], head, changes, scale
            )
            scores = seen_only(
                scores, queries[None, :], keys[:, None], present[:, None], band, partial
            )
            weights = tl.exp2(scores - finite(log_sum)[None, :])
            grad_value += product(weights.to(grad_read.dtype), grad_read)
            grad_weights = product(value_block, tl.trans(grad_read))
            grad_scores = weights * (grad_weights - delta[None, :]) * derivative
            grad_key += product(grad_scores.to(query_block.dtype), query_block)

    first_key = (batch * key_heads + key_head).to(tl.int64) * key_count
    in_tensor = keys < key_count
    store_rows(grad_key_ptr + first_key * width, key_start, grad_key * scale, in_tensor, width)
    store_rows(
        grad_value_ptr + first_key * value_width, key_start, grad_value, in_tensor, value_width
    )


@triton.jit
def bias_gradient_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    key_mask_ptr,
    slope_ptr,
    bias_ptr,
    log_sum_ptr,
    grad_read_ptr,
    delta_ptr,
    grad_diagonal_ptr,
    query_steps,
    key_steps,
    value_steps,
    counts,
    band,
    query_offset,
    reach,
    first_diagonal,
    diagonal_count,
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
    stretch: tl.constexpr = query_block_size  # as many diagonals as queries, half as many as keys
    my_first, batch, head = my_key_block(diagonal_count, heads, stretch)
    first_row = (batch * heads + head).to(tl.int64) * query_count
    query_ptr = head_at(query_ptr, query_steps, batch, head)
    key_ptr = head_at(key_ptr, key_steps, batch, head // (heads // key_heads))
    value_ptr = head_at(value_ptr, value_steps, batch, head // (heads // key_heads))
    if key_mask_ptr is not None:
        key_mask_ptr += batch.to(tl.int64) * key_count
    grad_read_ptr += first_row * value_width

    # Diagonal r holds the pairs (i, i + r): keys 0 ... key_count - 1 are met by these queries.
    diagonal = first_diagonal + my_first
    query_from = tl.maximum(0, 1 - stretch - diagonal)
    query_until = tl.minimum(query_count, key_count - diagonal)
    row, along = tl.arange(0, query_block_size), tl.arange(0, stretch)
    grad_diagonal = tl.zeros([stretch], arithmetic)
    for query_start in range(query_from, query_until, query_block_size):
        queries = query_start + row
        query_present = queries < query_count
        query_block = load_rows(query_ptr, query_start, query_steps[2], query_present, width)
        grad_read = load_rows(grad_read_ptr, query_start, value_width, query_present, value_width)
        log_sum = tl.load(log_sum_ptr + first_row + queries, mask=query_present, other=NO_ROW)
        delta = tl.load(delta_ptr + first_row + queries, mask=query_present, other=0.0)
        key_start = query_start + diagonal
        keys = key_start + tl.arange(0, key_block_size)
        present = (keys >= 0) & (keys < key_count)
        if key_mask_ptr is not None:
            present = tl.load(key_mask_ptr + keys, mask=present, other=0) != 0
        key_block = load_rows(key_ptr, key_start, key_steps[2], present, width)
        value_block = load_rows(value_ptr, key_start, value_steps[2], present, value_width)

        products = product(query_block, tl.trans(key_block))
        scores, _ = changed_scores(products, queries[:, None], keys[None, :], head, changes, scale)
        scores = seen_only(scores, queries[:, None], keys[None, :], present[None, :], band, True)
        weights = tl.exp2(scores - finite(log_sum)[:, None])
        grad_weights = product(grad_read, tl.trans(value_block))
        grad_scores = weights * (grad_weights - delta[:, None])
        # Row i of the tile meets diagonal r in column i + r.
        on_diagonal = tl.gather(grad_scores, row[:, None] + along[None, :], 1)
        grad_diagonal += tl.sum(on_diagonal, 0)

    first = (batch * heads + head).to(tl.int64) * diagonal_count
    mine = my_first + along
    tl.store(grad_diagonal_ptr + first + mine, grad_diagonal, mask=mine < diagonal_count)


def gradients_of(grad_read, saved, score, wants_bias: bool) -> tuple[Tensor | None, ...]:
    """The gradients of query, key, value, sink_logit and relative_bias.

    `saved` is what forward kept; `score` is band, query_offset, softcap and scale.
    """
    query, key, value, sink, bias, slopes, key_mask, read, log_sum = saved
    batch, heads, queries, _ = query.shape
    grad_query, grad_key, grad_value = (
        torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        for tensor in (query, key, value)
    )
    delta = torch.empty_like(log_sum)
    for_queries = tile_for("query gradient", query, value, bias)
    for_keys = tile_for("key gradient", query, value, bias)
    inputs = query, key, value, key_mask, slopes, bias
    shared = problem(query, key, value, bias, *score)
    with on_device_of(query):
        blocks = triton.cdiv(queries, for_queries["query_block_size"])
        query_gradient_kernel[(batch * heads * blocks,)](
            *(*inputs, read, log_sum, grad_read, delta, grad_query), **shared, **for_queries
        )
        blocks = triton.cdiv(key.shape[-2], for_keys["key_block_size"])
        key_gradient_kernel[(batch * key.shape[1] * blocks,)](
            *(*inputs, log_sum, grad_read, delta, grad_key, grad_value), **shared, **for_keys
        )
    grad_sink = None if sink is None else sink_gradient(sink, log_sum, delta)
    grad_bias = bias_gradient(inputs, log_sum, grad_read, delta, shared) if wants_bias else None
    return grad_query, grad_key, grad_value, grad_sink, grad_bias


def sink_gradient(sink: Tensor, log_sum: Tensor, delta: Tensor) -> Tensor:
    """dL/da_h = - sum_i exp(a_h - l_i) delta_i, over all rows of all batch entries."""
    empty = log_sum == -torch.inf  # no key and a sink of minus infinity: it has no share
    share = torch.exp2(sink[:, None] - log_sum.masked_fill(empty, 0.0))
    return -(share * delta).sum((0, 2))


def bias_gradient(inputs, log_sum: Tensor, grad_read: Tensor, delta: Tensor, shared: dict):
    """dL/dt_h, (heads, 2 reach + 1): sums along the diagonals of the band, far ones together."""
    query, key, value, *_, bias = inputs
    batch, heads, queries, _ = query.shape
    lowest, highest = shared["band"]
    first = max(lowest, 1 - queries)
    count = max(0, min(highest, key.shape[-2] - 1) + 1 - first)
    choices = tile_for("bias gradient", query, value, bias)
    along = torch.empty((batch, heads, count), dtype=log_sum.dtype, device=query.device)
    with on_device_of(query):
        stretches = triton.cdiv(count, choices["query_block_size"])
        bias_gradient_kernel[(batch * heads * stretches,)](
            *(*inputs, log_sum, grad_read, delta, along),
            first_diagonal=first,
            diagonal_count=count,
            **shared,
            **choices,
        )
    return far_together(along.sum(0), first - shared["query_offset"], bias.shape[1] // 2)


def far_together(along: Tensor, nearest: int, reach: int) -> Tensor:
    """Sums by distance (heads, count), the first of distance `nearest`, as (heads, 2 reach + 1).

    Distances up to -reach share the first entry, those from reach on the last.
    """
    count = along.shape[1]
    table = along.new_zeros(along.shape[0], 2 * reach + 1)
    behind = min(max(1 - reach - nearest, 0), count)  # so many lie at -reach or further behind
    ahead = min(max(reach - nearest, behind), count)  # from here on at reach
    table[:, 0] += along[:, :behind].sum(1)
    table[:, nearest + behind + reach : nearest + ahead + reach] += along[:, behind:ahead]
    table[:, -1] += along[:, ahead:].sum(1)
    return table
