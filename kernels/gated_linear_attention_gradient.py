"""The backward pass of linear attention with a decay by key channel: two kernels.

The equations, and why a chunk is halved and halved again, are in `gated_linear_attention.py`. What
one program does: one chunk of one head. The first kernel holds a part of the key channels and
computes the gradients of query, key and log_decay there; the second holds a part of the value
channels. Each number has one writer.
"""

import torch
import triton
import triton.language as tl
from attnlib.kernels.gated_linear_attention import (
    in_second_half,
    levels_of,
    split_here,
    sums_of_next_level,
)
from attnlib.kernels.launch import on_device_of
from attnlib.kernels.linear_states import (
    choices_for,
    chunks_of,
    load_behind,
    load_part,
    my_chunk,
    problem,
    state_row,
    store_part,
)
from attnlib.kernels.tiles import head_at, product
from torch import Tensor


@triton.jit
def gated_gradient_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    log_decay_ptr,
    states_ptr,
    grad_states_ptr,
    grad_read_ptr,
    grad_query_ptr,
    grad_key_ptr,
    grad_log_decay_ptr,
    query_steps,
    key_steps,
    value_steps,
    decay_steps,
    counts,
    scale: tl.constexpr,
    width: tl.constexpr,
    value_width: tl.constexpr,
    arithmetic: tl.constexpr,
    chunk_size: tl.constexpr,
    key_part: tl.constexpr,
    value_part: tl.constexpr,
):
    token_count, heads = counts
    start, part, batch, head = my_chunk(token_count, heads, chunk_size, tl.cdiv(width, key_part))
    batch_and_head = (batch * heads + head).to(tl.int64)
    first_key = part * key_part
    query_ptr = head_at(query_ptr, query_steps, batch, head)
    key_ptr = head_at(key_ptr, key_steps, batch, head)
    value_ptr = head_at(value_ptr, value_steps, batch, head)
    log_decay_ptr = head_at(log_decay_ptr, decay_steps, batch, head)
    grad_read_ptr += batch_and_head * token_count * value_width
    row = state_row(batch_and_head, token_count, start, chunk_size, width) + first_key
    tokens = tl.arange(0, chunk_size)
    present = start + tokens < token_count
    channels = first_key + tl.arange(0, key_part) < width

    grad_scores = tl.zeros([chunk_size, chunk_size], arithmetic)
    for first_value in range(0, value_width, value_part):
        grad_read = load_part(
            grad_read_ptr, start, value_width, present, first_value, value_width, value_part
        )
        values = load_part(
            value_ptr, start, value_steps[2], present, first_value, value_width, value_part
        )
        grad_scores += product(grad_read, tl.trans(values))
    grad_scores *= scale

    # What passes inside the chunk: from a token to itself, and level by level.
    queries = load_part(query_ptr, start, query_steps[2], present, first_key, width, key_part)
    keys = load_part(key_ptr, start, key_steps[2], present, first_key, width, key_part)
    log_decay = load_part(log_decay_ptr, start, decay_steps[2], present, first_key, width, key_part)
    own = tl.sum(tl.where(tokens[:, None] == tokens[None, :], grad_scores, 0.0), 1)[:, None]
    grad_query, grad_key = own * keys.to(arithmetic), own * queries.to(arithmetic)
    grad_log_decay = tl.zeros([chunk_size, key_part], arithmetic)
    rounded = grad_scores.to(keys.dtype)
    until, behind = log_decay.to(arithmetic), tl.zeros([chunk_size, key_part], arithmetic)
    for level in range(levels_of(chunk_size)):
        later = (queries.to(arithmetic) * tl.exp(until)).to(keys.dtype)
        earlier = (keys.to(arithmetic) * tl.exp(behind)).to(keys.dtype)
        pairs = tl.where(split_here(chunk_size, level), rounded, 0.0)
        grad_later = product(pairs, earlier) * tl.exp(until)
        grad_earlier = product(tl.trans(pairs), later) * tl.exp(behind)
        grad_query += grad_later
        grad_key += grad_earlier
        passing = queries.to(arithmetic) * grad_later + keys.to(arithmetic) * grad_earlier
        grad_log_decay += faded_inside(passing, level)
        until, behind = sums_of_next_level(until, behind, level)

    # What passes through the states. `until` and `behind` are sums of the whole chunk by now.
    from_state = tl.zeros([chunk_size, key_part], arithmetic)
    to_state = tl.zeros([chunk_size, key_part], arithmetic)
    across = tl.zeros([key_part], arithmetic)
    for first_value in range(0, value_width, value_part):
        grad_read = load_part(
            grad_read_ptr, start, value_width, present, first_value, value_width, value_part
        )
        values = load_part(
            value_ptr, start, value_steps[2], present, first_value, value_width, value_part
        )
        state_block = load_part(
            states_ptr, row, value_width, channels, first_value, value_width, value_part
        )
        grad_state = load_part(
            grad_states_ptr, row, value_width, channels, first_value, value_width, value_part
        )
        from_state += product(grad_read, tl.trans(state_block))
        to_state += product(values, tl.trans(grad_state))
        across += tl.sum(state_block.to(arithmetic) * grad_state.to(arithmetic), 1)
    from_state *= tl.exp(until) * scale
    to_state *= tl.exp(behind)
    arriving, leaving = queries.to(arithmetic) * from_state, keys.to(arithmetic) * to_state
    # What leaves the last token of all fades nowhere: it must not be added and taken away again.
    leaving = tl.where(tokens[:, None] < token_count - 1 - start, leaving, 0.0)
    grad_log_decay += tl.cumsum(arriving, 0, reverse=True) + (tl.cumsum(leaving, 0) - leaving)
    grad_log_decay += (across * tl.exp(tl.sum(log_decay.to(arithmetic), 0)))[None, :]
    grad_query += from_state
    grad_key += to_state

    grad_query_ptr += batch_and_head * token_count * width
    grad_key_ptr += batch_and_head * token_count * width
    grad_log_decay_ptr += batch_and_head * token_count * width
    store_part(grad_query_ptr, start, grad_query, present, first_key, width, key_part)
    store_part(grad_key_ptr, start, grad_key, present, first_key, width, key_part)
    store_part(grad_log_decay_ptr, start, grad_log_decay, present, first_key, width, key_part)


@triton.jit
def faded_inside(passing, level):
    """What log a fades at each token, of all that passes from a first half to its second one.

    A row of `passing` is what arrives at a token of a second half, or leaves one of a first half.
    What fades at a token arrived there or later in its half, or left before it in its half.
    """
    rows: tl.constexpr = passing.shape[0]
    start = (tl.arange(0, rows)[:, None] >> level) << level
    second = in_second_half(rows, level)
    until = tl.cumsum(passing, 0)
    edge = tl.where(second, start + (1 << level), start) - 1  # the row that ends, or comes before
    until_edge = tl.gather(until, tl.broadcast_to(tl.maximum(edge, 0), passing.shape), 0)
    until_edge = tl.where(edge < 0, 0.0, until_edge)
    before = until - passing
    return tl.where(second, until_edge - before, before - until_edge)


@triton.jit
def gated_value_gradient_kernel(
    key_ptr,
    log_decay_ptr,
    grad_states_ptr,
    scores_ptr,
    grad_read_ptr,
    grad_value_ptr,
    key_steps,
    decay_steps,
    counts,
    scale: tl.constexpr,
    width: tl.constexpr,
    value_width: tl.constexpr,
    arithmetic: tl.constexpr,
    chunk_size: tl.constexpr,
    key_part: tl.constexpr,
    value_part: tl.constexpr,
):
    token_count, heads = counts
    start, part, batch, head = my_chunk(
        token_count, heads, chunk_size, tl.cdiv(value_width, value_part)
    )
    batch_and_head = (batch * heads + head).to(tl.int64)
    first_value = part * value_part
    key_ptr = head_at(key_ptr, key_steps, batch, head)
    log_decay_ptr = head_at(log_decay_ptr, decay_steps, batch, head)
    grad_read_ptr += batch_and_head * token_count * value_width
    grad_value_ptr += batch_and_head * token_count * value_width
    scores_ptr += batch_and_head * token_count * chunk_size
    state = state_row(batch_and_head, token_count, start, chunk_size, width)
    present = start + tl.arange(0, chunk_size) < token_count

    scores = load_part(scores_ptr, start, chunk_size, present, 0, chunk_size, chunk_size)
    grad_read = load_part(
        grad_read_ptr, start, value_width, present, first_value, value_width, value_part
    )
    grad_value = product(tl.trans(scores), grad_read) * scale
    for first_key in range(0, width, key_part):
        channels = first_key + tl.arange(0, key_part) < width
        keys = load_part(key_ptr, start, key_steps[2], present, first_key, width, key_part)
        behind = load_behind(
            log_decay_ptr,
            start,
            decay_steps[2],
            token_count,
            first_key,
            width,
            key_part,
            chunk_size,
        )
        grad_state = load_part(
            grad_states_ptr,
            state + first_key,
            value_width,
            channels,
            first_value,
            value_width,
            value_part,
        )
        to_the_end = tl.exp(tl.cumsum(behind.to(arithmetic), 0, reverse=True))
        earlier = (keys.to(arithmetic) * to_the_end).to(grad_read.dtype)
        grad_value += product(earlier, grad_state)
    store_part(grad_value_ptr, start, grad_value, present, first_value, value_width, value_part)


def gated_gradients_of(
    grad_read, query, key, value, log_decay, states, grad_states, scores, scale
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of query, key, value and log_decay."""
    grad_query, grad_key, grad_value, grad_log_decay = (
        torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        for tensor in (query, key, value, log_decay)
    )
    layout = problem(query, value, log_decay)
    with on_device_of(query):
        choices = choices_for("gated gradients", query, value)
        parts = triton.cdiv(query.shape[-1], choices["key_part"])
        gated_gradient_kernel[(chunks_of(query, choices) * parts,)](
            *(query, key, value, log_decay, states, grad_states, grad_read),
            *(grad_query, grad_key, grad_log_decay),
            query_steps=query.stride()[:3],
            key_steps=key.stride()[:3],
            value_steps=value.stride()[:3],
            **layout,
            scale=scale,
            **choices,
        )
        choices = choices_for("gated value gradient", query, value)
        parts = triton.cdiv(value.shape[-1], choices["value_part"])
        gated_value_gradient_kernel[(chunks_of(query, choices) * parts,)](
            *(key, log_decay, grad_states, scores, grad_read, grad_value),
            key_steps=key.stride()[:3],
            **layout,
            scale=scale,
            **choices,
        )
    return grad_query, grad_key, grad_value, grad_log_decay
