"""The backward pass of linear attention with a decay by token, or none: two kernels.

The equations are those of `linear_attention.py`. What one program does: one chunk of one head. The
first kernel computes the gradients of query and key, part of the channels by part, and from their
pieces the gradient of log_decay. The second one computes the gradient of value for a part of the
value channels. The states S at the start of each chunk and their gradients dS at its end are there
already (`linear_states.py`), so all chunks run in parallel and each number has one writer.
"""

import torch
import triton
import triton.language as tl
from attnlib.kernels.launch import on_device_of
from attnlib.kernels.linear_states import (
    choices_for,
    chunks_of,
    fade,
    load_behind,
    load_log_decay,
    load_part,
    my_chunk,
    problem,
    state_row,
    store_part,
)
from attnlib.kernels.tiles import head_at, product
from torch import Tensor


@triton.jit
def query_and_key_gradient_kernel(
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
    start, _, batch, head = my_chunk(token_count, heads, chunk_size, 1)
    batch_and_head = (batch * heads + head).to(tl.int64)
    query_ptr = head_at(query_ptr, query_steps, batch, head)
    key_ptr = head_at(key_ptr, key_steps, batch, head)
    value_ptr = head_at(value_ptr, value_steps, batch, head)
    grad_read_ptr += batch_and_head * token_count * value_width
    grad_query_ptr += batch_and_head * token_count * width
    grad_key_ptr += batch_and_head * token_count * width
    state = state_row(batch_and_head, token_count, start, chunk_size, width)
    tokens = tl.arange(0, chunk_size)
    present = start + tokens < token_count

    grad_scores = tl.zeros([chunk_size, chunk_size], arithmetic)  # G of the text
    for first_value in range(0, value_width, value_part):
        grad_read = load_part(
            grad_read_ptr, start, value_width, present, first_value, value_width, value_part
        )
        values = load_part(
            value_ptr, start, value_steps[2], present, first_value, value_width, value_part
        )
        grad_scores += product(grad_read, tl.trans(values))
    seen = tokens[None, :] <= tokens[:, None]
    faded = tl.where(seen, grad_scores, 0.0) * scale
    if log_decay_ptr is not None:
        log_decay_ptr = head_at(log_decay_ptr, decay_steps, batch, head)
        step = decay_steps[2]
        log_decay = load_log_decay(log_decay_ptr, start, step, present, arithmetic)
        behind = load_behind(log_decay_ptr, start, step, token_count, 0, 1, 1, chunk_size)
        from_the_start = tl.exp(tl.cumsum(log_decay, 0))
        to_the_end = tl.exp(tl.cumsum(tl.sum(behind.to(arithmetic), 1), 0, reverse=True))
        faded *= fade(log_decay)

    scores = tl.zeros([chunk_size, chunk_size], arithmetic)
    before_to_here = tl.zeros([chunk_size], arithmetic)
    here_to_behind = tl.zeros([chunk_size], arithmetic)
    before_to_behind = tl.zeros([value_part], arithmetic)
    for first_key in range(0, width, key_part):
        channels = first_key + tl.arange(0, key_part) < width
        queries = load_part(query_ptr, start, query_steps[2], present, first_key, width, key_part)
        keys = load_part(key_ptr, start, key_steps[2], present, first_key, width, key_part)
        grad_query = tl.zeros([chunk_size, key_part], arithmetic)
        grad_key = tl.zeros([chunk_size, key_part], arithmetic)
        for first_value in range(0, value_width, value_part):
            grad_read = load_part(
                grad_read_ptr, start, value_width, present, first_value, value_width, value_part
            )
            values = load_part(
                value_ptr, start, value_steps[2], present, first_value, value_width, value_part
            )
            row = state + first_key
            state_block = load_part(
                states_ptr, row, value_width, channels, first_value, value_width, value_part
            )
            grad_state = load_part(
                grad_states_ptr, row, value_width, channels, first_value, value_width, value_part
            )
            grad_query += product(grad_read, tl.trans(state_block))
            grad_key += product(values, tl.trans(grad_state))
            if log_decay_ptr is not None:
                across = state_block.to(arithmetic) * grad_state.to(arithmetic)
                before_to_behind += tl.sum(across, 0)
        grad_query *= scale
        if log_decay_ptr is not None:
            grad_query *= from_the_start[:, None]
            grad_key *= to_the_end[:, None]
            scores += product(queries, tl.trans(keys))
            before_to_here += tl.sum(queries.to(arithmetic) * grad_query, 1)
            here_to_behind += tl.sum(keys.to(arithmetic) * grad_key, 1)
        grad_query += product(faded.to(keys.dtype), keys)
        grad_key += product(tl.trans(faded).to(queries.dtype), queries)
        store_part(grad_query_ptr, start, grad_query, present, first_key, width, key_part)
        store_part(grad_key_ptr, start, grad_key, present, first_key, width, key_part)

    if log_decay_ptr is not None:
        # Row r, column s: all that passes from s to tokens from r on, inside the chunk and behind.
        passing = tl.cumsum(scores * faded, 0, reverse=True) + here_to_behind[None, :]
        from_before = tl.cumsum(before_to_here, 0, reverse=True)
        from_before += tl.sum(before_to_behind, 0) * tl.exp(tl.sum(log_decay, 0))
        earlier = tokens[None, :] < tokens[:, None]
        grad_log_decay = tl.sum(tl.where(earlier, passing, 0.0), 1) + from_before
        grad_log_decay_ptr += batch_and_head * token_count + start
        tl.store(grad_log_decay_ptr + tokens, grad_log_decay, mask=present)


@triton.jit
def value_gradient_kernel(
    query_ptr,
    key_ptr,
    log_decay_ptr,
    grad_states_ptr,
    grad_read_ptr,
    grad_value_ptr,
    query_steps,
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
    query_ptr = head_at(query_ptr, query_steps, batch, head)
    key_ptr = head_at(key_ptr, key_steps, batch, head)
    state = state_row(batch_and_head, token_count, start, chunk_size, width)
    tokens = tl.arange(0, chunk_size)
    present = start + tokens < token_count

    scores = tl.zeros([chunk_size, chunk_size], arithmetic)
    grad_value = tl.zeros([chunk_size, value_part], arithmetic)
    for first_key in range(0, width, key_part):
        channels = first_key + tl.arange(0, key_part) < width
        queries = load_part(query_ptr, start, query_steps[2], present, first_key, width, key_part)
        keys = load_part(key_ptr, start, key_steps[2], present, first_key, width, key_part)
        grad_state = load_part(
            grad_states_ptr,
            state + first_key,
            value_width,
            channels,
            first_value,
            value_width,
            value_part,
        )
        scores += product(queries, tl.trans(keys))
        grad_value += product(keys, grad_state)
    if log_decay_ptr is not None:
        log_decay_ptr = head_at(log_decay_ptr, decay_steps, batch, head)
        step = decay_steps[2]
        log_decay = load_log_decay(log_decay_ptr, start, step, present, arithmetic)
        behind = load_behind(log_decay_ptr, start, step, token_count, 0, 1, 1, chunk_size)
        scores *= fade(log_decay)
        grad_value *= tl.exp(tl.cumsum(behind.to(arithmetic), 0, reverse=True))
    scores = tl.where(tokens[None, :] <= tokens[:, None], scores, 0.0) * scale
    grad_read_ptr += batch_and_head * token_count * value_width
    grad_read = load_part(
        grad_read_ptr, start, value_width, present, first_value, value_width, value_part
    )
    grad_value += product(tl.trans(scores).to(grad_read.dtype), grad_read)
    grad_value_ptr += batch_and_head * token_count * value_width
    store_part(grad_value_ptr, start, grad_value, present, first_value, value_width, value_part)


def plain_gradients_of(
    grad_read, query, key, value, log_decay, states, grad_states, scores, scale
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The gradients of query, key, value and log_decay."""
    grad_query, grad_key, grad_value = (
        torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        for tensor in (query, key, value)
    )
    grad_log_decay = None
    if log_decay is not None:
        grad_log_decay = torch.empty(log_decay.shape, dtype=log_decay.dtype, device=query.device)
    layout = problem(query, value, log_decay)
    steps = {"query_steps": query.stride()[:3], "key_steps": key.stride()[:3]}
    with on_device_of(query):
        choices = choices_for("query and key gradients", query, value)
        query_and_key_gradient_kernel[(chunks_of(query, choices),)](
            *(query, key, value, log_decay, states, grad_states, grad_read),
            *(grad_query, grad_key, grad_log_decay),
            value_steps=value.stride()[:3],
            **(layout | steps | choices),
            scale=scale,
        )
        choices = choices_for("value gradient", query, value)
        parts = triton.cdiv(value.shape[-1], choices["value_part"])
        value_gradient_kernel[(chunks_of(query, choices) * parts,)](
            *(query, key, log_decay, grad_states, grad_read, grad_value),
            **(layout | steps | choices),
            scale=scale,
        )
    return grad_query, grad_key, grad_value, grad_log_decay
