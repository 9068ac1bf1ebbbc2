"""The delta rule backward: linear attention backward with u for v, and what the questions cost.

The equation, in the letters of `delta_rule.py`. Let g_t be dL/do_t, dS the gradient of the state
at the end of a chunk, z_s the sum of log a behind s in the chunk, A_ts = R_ts q_t . k_s. Reads and
the state send to u_s what they would send to a value of linear attention:

    j_s = e^{z_s} dS^T k_s + scale sum_{t >= s} A_ts g_t

But later tokens of the chunk also ask for u_s: it stands in their u_t with the factor -b_t L_ts.
With h_t for all of dL/du_t this is a triangle again, the transpose of the one of forward:

    h_s = j_s - sum_{t > s} b_t L_ts h_t                               H = X^T J

The rest follows from u_t = b_t (v_t - e^{c_t} S^T k_t - sum_{s < t} L_ts u_s). Lines that end in
"linear" have the gradient of linear attention of q, k, u beside what is written:

    dL/dv_t     = b_t h_t
    dL/db_t     = h_t . (v_t - e^{c_t} S^T k_t - sum_{s < t} L_ts u_s)
    dL/dk_t     = -b_t e^{c_t} S h_t - b_t sum_{s < t} R_ts (h_t . u_s) k_s
                  - sum_{r > t} b_r R_rt (h_r . u_t) k_r                              + linear
    dL/dlog a_r = -sum_{s < r <= t} b_t L_ts h_t . u_s - sum_{t >= r} b_t e^{c_t} h_t . S^T k_t
                                                                                      + linear
    dL/dS       = e^T dS + scale sum_t e^{c_t} q_t g_t^T - sum_t b_t e^{c_t} k_t h_t^T

The last is the gradient at the start of the chunk: dS of the chunk before. dL/dq_t is that of
linear attention. No term is added to dL/dlog a that has to cancel again, so a strong decay has a
right gradient too.

The picture. Four passes; only the second walks, from the last chunk to the first:

    1. the sum over t in j, chunks in parallel                          write_gradient_kernel
    2. dS and h, along the chunks, some columns of dS a program         state_gradient_kernel
    3. gradients of linear attention, chunks in parallel        its query_and_key_gradient_kernel
    4. the terms above, chunks in parallel                           question_gradient_kernel

X, u and the states of forward were kept. Each result has one writer; what pass 3 leaves of dL/dk
and dL/dlog a stays in float32, and pass 4 adds its part and writes the sum.

What it computes, a token and head: 12 D E operations with states, C (12 D + 8 E) inside the chunk.
At D = E = 128 and C = 64: 360,000, with 8,500 bytes to move in bfloat16; bytes decide, 2 ns.
"""

import torch
import triton
import triton.language as tl
from attnlib.kernels.delta_rule_chunks import (
    choices_for,
    decays_of_chunk,
    my_columns,
    product_in_two,
)
from attnlib.kernels.launch import on_device_of
from attnlib.kernels.linear_attention_gradient import query_and_key_gradient_kernel
from attnlib.kernels.linear_states import choices_for as linear_choices_for
from attnlib.kernels.linear_states import (
    chunks_of,
    fade,
    load_log_decay,
    load_part,
    my_chunk,
    new_states,
    problem,
    state_row,
    store_part,
)
from attnlib.kernels.tiles import arithmetic_of, head_at, load_rows, padded, product
from torch import Tensor


@triton.jit
def write_gradient_kernel(
    query_ptr,
    key_ptr,
    log_decay_ptr,
    grad_read_ptr,
    grad_write_ptr,
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
    start, _, batch, head = my_chunk(token_count, heads, chunk_size, 1)
    batch_and_head = (batch * heads + head).to(tl.int64)
    query_ptr = head_at(query_ptr, query_steps, batch, head)
    key_ptr = head_at(key_ptr, key_steps, batch, head)
    grad_read_ptr += batch_and_head * token_count * value_width
    grad_write_ptr += batch_and_head * token_count * value_width
    tokens = tl.arange(0, chunk_size)
    present = start + tokens < token_count

    scores = tl.zeros([chunk_size, chunk_size], arithmetic)
    for first_key in range(0, width, key_part):
        queries = load_part(query_ptr, start, query_steps[2], present, first_key, width, key_part)
        keys = load_part(key_ptr, start, key_steps[2], present, first_key, width, key_part)
        scores += product(queries, tl.trans(keys))
    if log_decay_ptr is not None:
        log_decay_ptr = head_at(log_decay_ptr, decay_steps, batch, head)
        scores *= fade(load_log_decay(log_decay_ptr, start, decay_steps[2], present, arithmetic))
    scores = tl.where(tokens[None, :] <= tokens[:, None], scores, 0.0) * scale
    for first_value in range(0, value_width, value_part):
        grad_read = load_part(
            grad_read_ptr, start, value_width, present, first_value, value_width, value_part
        )
        grad_write = product(tl.trans(scores).to(grad_read.dtype), grad_read)
        store_part(grad_write_ptr, start, grad_write, present, first_value, value_width, value_part)


@triton.jit
def state_gradient_kernel(
    query_ptr,
    key_ptr,
    beta_ptr,
    log_decay_ptr,
    inverse_ptr,
    grad_read_ptr,
    inside_ptr,
    grad_final_state_ptr,
    grad_write_ptr,
    grad_states_ptr,
    grad_initial_state_ptr,
    query_steps,
    key_steps,
    beta_steps,
    decay_steps,
    counts,
    scale: tl.constexpr,
    width: tl.constexpr,
    value_width: tl.constexpr,
    arithmetic: tl.constexpr,
    chunk_size: tl.constexpr,
    value_part: tl.constexpr,
):
    token_count, heads = counts
    first_value, batch, head = my_columns(heads, value_width, value_part)
    batch_and_head = (batch * heads + head).to(tl.int64)
    query_ptr = head_at(query_ptr, query_steps, batch, head)
    key_ptr = head_at(key_ptr, key_steps, batch, head)
    beta_ptr = head_at(beta_ptr, beta_steps, batch, head)
    if log_decay_ptr is not None:
        log_decay_ptr = head_at(log_decay_ptr, decay_steps, batch, head)
    inverse_ptr += batch_and_head * token_count * chunk_size
    grad_read_ptr += batch_and_head * token_count * value_width
    inside_ptr += batch_and_head * token_count * value_width
    grad_write_ptr += batch_and_head * token_count * value_width
    channels = tl.arange(0, padded(width)) < width
    row = batch_and_head * width

    grad_state = tl.zeros([padded(width), value_part], arithmetic)
    if grad_final_state_ptr is not None:
        grad_state += load_part(
            grad_final_state_ptr, row, value_width, channels, first_value, value_width, value_part
        )
    chunk_count = tl.cdiv(token_count, chunk_size)
    for step in range(0, chunk_count):
        start = (chunk_count - 1 - step) * chunk_size
        place = state_row(batch_and_head, token_count, start, chunk_size, width)
        store_part(
            grad_states_ptr, place, grad_state, channels, first_value, value_width, value_part
        )

        present = start + tl.arange(0, chunk_size) < token_count
        queries = load_rows(query_ptr, start, query_steps[2], present, width)
        keys = load_rows(key_ptr, start, key_steps[2], present, width)
        beta = load_log_decay(beta_ptr, start, beta_steps[2], present, arithmetic)
        inverse = load_rows(inverse_ptr, start, chunk_size, present, chunk_size)
        grad_read = load_part(
            grad_read_ptr, start, value_width, present, first_value, value_width, value_part
        )
        inside = load_part(
            inside_ptr, start, value_width, present, first_value, value_width, value_part
        )
        from_start, to_end, whole = decays_of_chunk(
            log_decay_ptr, start, decay_steps, token_count, chunk_size, arithmetic
        )
        arriving = inside + to_end[:, None] * product(keys, grad_state.to(keys.dtype))
        grad_write = product_in_two(tl.trans(inverse), arriving.to(keys.dtype))
        store_part(grad_write_ptr, start, grad_write, present, first_value, value_width, value_part)
        grad_read = (grad_read * (scale * from_start)[:, None]).to(queries.dtype)
        recalled = ((beta * from_start)[:, None] * grad_write).to(keys.dtype)
        grad_state = whole * grad_state + product(tl.trans(queries), grad_read)
        grad_state -= product(tl.trans(keys), recalled)
    if grad_initial_state_ptr is not None:
        store_part(
            grad_initial_state_ptr,
            row,
            grad_state,
            channels,
            first_value,
            value_width,
            value_part,
        )


@triton.jit
def question_gradient_kernel(
    key_ptr,
    value_ptr,
    beta_ptr,
    log_decay_ptr,
    write_ptr,
    grad_write_ptr,
    states_ptr,
    read_part_ptr,
    read_decay_part_ptr,
    grad_key_ptr,
    grad_value_ptr,
    grad_beta_ptr,
    grad_log_decay_ptr,
    key_steps,
    value_steps,
    beta_steps,
    decay_steps,
    counts,
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
    key_ptr = head_at(key_ptr, key_steps, batch, head)
    value_ptr = head_at(value_ptr, value_steps, batch, head)
    beta_ptr = head_at(beta_ptr, beta_steps, batch, head)
    write_ptr += batch_and_head * token_count * value_width
    grad_write_ptr += batch_and_head * token_count * value_width
    grad_value_ptr += batch_and_head * token_count * value_width
    read_part_ptr += batch_and_head * token_count * width
    grad_key_ptr += batch_and_head * token_count * width
    state = state_row(batch_and_head, token_count, start, chunk_size, width)
    tokens = tl.arange(0, chunk_size)
    present = start + tokens < token_count
    beta = load_log_decay(beta_ptr, start, beta_steps[2], present, arithmetic)

    pairs = tl.zeros([chunk_size, chunk_size], arithmetic)  # h_t . u_s of the text
    error = tl.zeros([chunk_size], arithmetic)  # h_t . e_t, term by term
    for first_value in range(0, value_width, value_part):
        values = load_part(
            value_ptr, start, value_steps[2], present, first_value, value_width, value_part
        )
        writes = load_part(
            write_ptr, start, value_width, present, first_value, value_width, value_part
        )
        grad_write = load_part(
            grad_write_ptr, start, value_width, present, first_value, value_width, value_part
        )
        pairs += product(grad_write, tl.trans(writes))
        error += tl.sum(grad_write.to(arithmetic) * values.to(arithmetic), 1)
        grad_value = beta[:, None] * grad_write
        store_part(grad_value_ptr, start, grad_value, present, first_value, value_width, value_part)
    earlier = tokens[None, :] < tokens[:, None]
    pairs = tl.where(earlier, pairs, 0.0)
    from_start = tl.full([chunk_size], 1.0, arithmetic)
    if log_decay_ptr is not None:
        log_decay_ptr = head_at(log_decay_ptr, decay_steps, batch, head)
        log_decay = load_log_decay(log_decay_ptr, start, decay_steps[2], present, arithmetic)
        from_start = tl.exp(tl.cumsum(log_decay, 0))
        pairs *= fade(log_decay)

    overlaps = tl.zeros([chunk_size, chunk_size], arithmetic)
    recalled = tl.zeros([chunk_size], arithmetic)  # h_t . (e^{c_t} S^T k_t)
    for first_key in range(0, width, key_part):
        channels = first_key + tl.arange(0, key_part) < width
        keys = load_part(key_ptr, start, key_steps[2], present, first_key, width, key_part)
        question = tl.zeros([chunk_size, key_part], arithmetic)
        for first_value in range(0, value_width, value_part):
            grad_write = load_part(
                grad_write_ptr, start, value_width, present, first_value, value_width, value_part
            )
            row = state + first_key
            state_block = load_part(
                states_ptr, row, value_width, channels, first_value, value_width, value_part
            )
            question += product(grad_write, tl.trans(state_block))
        question *= from_start[:, None]
        recalled += tl.sum(keys.to(arithmetic) * question, 1)
        overlaps += product(keys, tl.trans(keys))
        question += product(pairs.to(keys.dtype), keys)
        answer = product(tl.trans(beta[:, None] * pairs).to(keys.dtype), keys)
        grad_key = load_part(read_part_ptr, start, width, present, first_key, width, key_part)
        grad_key -= beta[:, None] * question + answer
        store_part(grad_key_ptr, start, grad_key, present, first_key, width, key_part)

    inside = pairs * overlaps
    grad_beta = error - recalled - tl.sum(inside, 1)
    place = batch_and_head * token_count + start + tokens
    tl.store(grad_beta_ptr + place, grad_beta, mask=present)
    if log_decay_ptr is not None:
        # Row r, column s: all that is asked of what s wrote, by tokens from r on.
        passing = tl.cumsum(beta[:, None] * inside, 0, reverse=True)
        passing = tl.sum(tl.where(earlier, passing, 0.0), 1)
        passing += tl.cumsum(beta * recalled, 0, reverse=True)
        grad_log_decay = tl.load(read_decay_part_ptr + place, mask=present, other=0.0) - passing
        tl.store(grad_log_decay_ptr + place, grad_log_decay, mask=present)


def gradients_of(
    grad_read, grad_final_state, query, key, value, beta, log_decay, inverse, writes, states, scale
) -> tuple[Tensor | None, ...]:
    """The gradients of query, key, value, beta, log_decay and initial_state."""
    inside = grad_inside_chunks(query, key, value, log_decay, grad_read, scale)
    grad_write, grad_states, grad_initial_state = grad_writes_and_states(
        query, key, beta, log_decay, inverse, grad_read, inside, grad_final_state, scale
    )
    grad_query, *parts = grad_of_reads(
        query, key, writes, log_decay, states, grad_states, grad_read, scale
    )
    grad_key, grad_value, grad_beta, grad_log_decay = grad_of_questions(
        key, value, beta, log_decay, writes, grad_write, states, *parts
    )
    return grad_query, grad_key, grad_value, grad_beta, grad_log_decay, grad_initial_state


def grad_inside_chunks(query, key, value, log_decay, grad_read, scale) -> Tensor:
    """The gradient of u by the reads of its own chunk."""
    choices = choices_for("write gradient", write_gradient_kernel, key, value)
    inside = room_for(grad_read)
    with on_device_of(query):
        write_gradient_kernel[(chunks_of(query, choices),)](
            *(query, key, log_decay, grad_read, inside),
            query_steps=query.stride()[:3],
            key_steps=key.stride()[:3],
            **problem(query, value, log_decay),
            scale=scale,
            **choices,
        )
    return inside


def grad_writes_and_states(
    query, key, beta, log_decay, inverse, grad_read, inside, grad_final_state, scale
) -> tuple[Tensor, Tensor, Tensor]:
    """h of each token, dS at the end of each chunk, and that of the initial state."""
    choices = choices_for("state gradient", state_gradient_kernel, key, grad_read)
    batch, heads, _, width = key.shape
    value_width = grad_read.shape[-1]
    grad_write, grad_states = room_for(grad_read), new_states(key, grad_read, choices)
    grad_initial_state = torch.empty(
        (batch, heads, width, value_width), dtype=arithmetic_of(key.dtype), device=key.device
    )
    with on_device_of(key):
        state_gradient_kernel[(batch * heads * triton.cdiv(value_width, choices["value_part"]),)](
            *(query, key, beta, log_decay, inverse, grad_read, inside, grad_final_state),
            *(grad_write, grad_states, grad_initial_state),
            query_steps=query.stride()[:3],
            key_steps=key.stride()[:3],
            beta_steps=beta.stride()[:3],
            **problem(key, grad_read, log_decay),
            scale=scale,
            **choices,
        )
    return grad_write, grad_states, grad_initial_state


def grad_of_reads(
    query, key, writes, log_decay, states, grad_states, grad_read, scale
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients of query, key and log_decay in linear attention whose values are u.

    Those of key and log_decay are half of ours, and stay in `arithmetic` until the rest is there.
    """
    choices = linear_choices_for("query and key gradients", query, writes)
    sums = arithmetic_of(key.dtype)
    grad_query, grad_key = room_for(query), room_for(key, sums)
    grad_log_decay = None if log_decay is None else room_for(log_decay, sums)
    with on_device_of(query):
        query_and_key_gradient_kernel[(chunks_of(query, choices),)](
            *(query, key, writes, log_decay, states, grad_states, grad_read),
            *(grad_query, grad_key, grad_log_decay),
            query_steps=query.stride()[:3],
            key_steps=key.stride()[:3],
            value_steps=writes.stride()[:3],
            **problem(query, writes, log_decay),
            scale=scale,
            **choices,
        )
    return grad_query, grad_key, grad_log_decay


def grad_of_questions(
    key, value, beta, log_decay, writes, grad_write, states, read_part, read_decay_part
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The gradients of key, value, beta and log_decay, with what the reads sent them."""
    choices = choices_for("question gradient", question_gradient_kernel, key, value)
    grad_key, grad_value, grad_beta = (room_for(tensor) for tensor in (key, value, beta))
    grad_log_decay = None if log_decay is None else room_for(log_decay)
    with on_device_of(key):
        question_gradient_kernel[(chunks_of(key, choices),)](
            *(key, value, beta, log_decay, writes, grad_write, states, read_part, read_decay_part),
            *(grad_key, grad_value, grad_beta, grad_log_decay),
            key_steps=key.stride()[:3],
            value_steps=value.stride()[:3],
            beta_steps=beta.stride()[:3],
            **problem(key, value, log_decay),
            **choices,
        )
    return grad_key, grad_value, grad_beta, grad_log_decay


def room_for(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An unwritten tensor of this shape, contiguous whatever the strides of the given one are."""
    return torch.empty(tensor.shape, dtype=dtype or tensor.dtype, device=tensor.device)
