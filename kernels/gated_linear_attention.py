"""Linear attention with a decay for each key channel, in chunks that are halved and halved again.

The equation is that of `linear_attention.py`, but a_t is a vector: channel d of the state fades by
a_td. Inside a chunk the scores are

    A_ts = sum_d q_td k_sd exp(L_tsd)        L_tsd = sum of log a_rd over s < r <= t

so what faded stands under the sum and no table can be multiplied in afterwards. With c for running
sums, exp(L) = exp(c_t) exp(-c_s) would make A one product, but exp(-c_s) overflows after a few
strong decays.

The picture. Put a middle m between s and t, and both factors are at most 1:

    exp(L_tsd) = exp(sum over m <= r <= t) exp(sum over s < r < m)

Halve the chunk: its middle serves all pairs with s in the first half and t in the second. Halve
the halves, and so on down to single tokens. Each pair s < t is split at exactly one level:

    level      t  4 2 2 1      for C = 4: tokens 0 1 | 2 3 are split by the middle of the chunk (2),
    of each       2 2 1 .      0 | 1 and 2 | 3 by the middles of its halves (1); the diagonal has
    pair          1 . . .  s   no decay at all. (rows from t = 3 up)

That is log2(C) products of a chunk of queries and a chunk of keys for what would be one: 6 for
C = 64, all on matrix units, and exact for every decay down to -infinity. (Gated linear attention
halves once, into pieces of 16, and computes inside a piece without matrix units.)

What one program does. `score_kernel`: the scores A of one chunk of one head, written down for the
read and for the backward pass. `gated_read_kernel`: one chunk, a part of the value channels:
scale (A v + (e^c q) S). Backward: one chunk and a part of the key channels for the gradients of
query, key and log_decay; one chunk and a part of the value channels for that of value. With
G_ts = scale g_t . v_s of the pairs of one level, e^u and e^w for the factors of t and s there:

    dL/dq_t = e^u_t sum_s G_ts e^w_s k_s          dL/dk_s = e^w_s sum_t G_ts e^u_t q_t

log a_r decays what passes from a token before r to r or a later one. At one level that is, for r
in a second half, the sum of q_t dq_t over the tokens t >= r of it; in a first half, the sum of
k_s dk_s over the tokens s < r of it. The parts that come from and go to the state are the same with
the chunk for a half. So nothing is added that another term takes away.

What it moves, a token and head with b bytes a number: b (3 D + 2 E) for q, k, log a, v, o, once
more k, v, log a for the states, q and log a for the read, 2 b D E / C for the states and 2 b C
for the scores. What it computes: 4 D E for the states, 2 C D log2(C) + 2 C E in the chunk: at
D = E = 128 and C = 64 about 180,000 operations and 3,800 bytes in bfloat16, 47 a byte where an
H200 has 184: bytes decide. And 2 D (log2(C) + 1) exponentials.

Source: Yang et al., "Gated Linear Attention Transformers", 2023 (the chunk form, secondary
chunking, the gradient of the decay).
"""

import torch
import triton
import triton.language as tl
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


@triton.constexpr_function
def levels_of(chunk_size):
    """How often a chunk can be halved: log2 of its size."""
    return chunk_size.bit_length() - 1


@triton.jit
def sums_within(tile, size: tl.constexpr, reverse: tl.constexpr):
    """Running sums down the rows of a tile, or up, that start anew after every `size` rows."""
    rows: tl.constexpr = tile.shape[0]
    columns: tl.constexpr = tile.shape[1]
    pieces = tl.reshape(tile, [rows // size, size, columns])
    return tl.reshape(tl.cumsum(pieces, 1, reverse=reverse), [rows, columns])


@triton.jit
def factors(log_decay, behind, half: tl.constexpr):
    """exp of log a from the start of a half to each token in it, and from behind it to the end."""
    rows = tl.arange(0, behind.shape[0])[:, None]
    behind = tl.where((rows + 1) % half == 0, 0.0, behind)  # that row is of the next half
    return tl.exp(sums_within(log_decay, half, False)), tl.exp(sums_within(behind, half, True))


@triton.jit
def split_here(rows: tl.constexpr, half: tl.constexpr):
    """Which pairs (t, s) this level splits: t in the half that follows the half of s."""
    t, s = tl.arange(0, rows)[:, None] // half, tl.arange(0, rows)[None, :] // half
    return (t == s + 1) & (s % 2 == 0)


@triton.jit
def score_kernel(
    query_ptr,
    key_ptr,
    log_decay_ptr,
    scores_ptr,
    query_steps,
    key_steps,
    decay_steps,
    counts,
    width: tl.constexpr,
    arithmetic: tl.constexpr,
    chunk_size: tl.constexpr,
    key_part: tl.constexpr,
):
    token_count, heads = counts
    start, _, batch, head = my_chunk(token_count, heads, chunk_size, 1)
    query_ptr = head_at(query_ptr, query_steps, batch, head)
    key_ptr = head_at(key_ptr, key_steps, batch, head)
    log_decay_ptr = head_at(log_decay_ptr, decay_steps, batch, head)
    tokens = tl.arange(0, chunk_size)
    present = start + tokens < token_count

    scores = tl.zeros([chunk_size, chunk_size], arithmetic)
    for first in range(0, width, key_part):
        queries = load_part(query_ptr, start, query_steps[2], present, first, width, key_part)
        keys = load_part(key_ptr, start, key_steps[2], present, first, width, key_part)
        step = decay_steps[2]
        log_decay = load_part(log_decay_ptr, start, step, present, first, width, key_part)
        behind = load_behind(
            log_decay_ptr, start, step, token_count, first, width, key_part, chunk_size
        )
        dtype = keys.dtype
        queries, keys = queries.to(arithmetic), keys.to(arithmetic)
        log_decay, behind = log_decay.to(arithmetic), behind.to(arithmetic)
        own = tl.sum(queries * keys, 1)[:, None]
        scores += tl.where(tokens[:, None] == tokens[None, :], own, 0.0)
        for level in tl.static_range(levels_of(chunk_size)):
            from_middle, to_middle = factors(log_decay, behind, 2**level)
            later, earlier = (queries * from_middle).to(dtype), (keys * to_middle).to(dtype)
            pairs = split_here(chunk_size, 2**level)
            scores += tl.where(pairs, product(later, tl.trans(earlier)), 0.0)
    scores_ptr += (batch * heads + head).to(tl.int64) * token_count * chunk_size
    store_part(scores_ptr, start, scores, present, 0, chunk_size, chunk_size)


@triton.jit
def gated_read_kernel(
    query_ptr,
    value_ptr,
    log_decay_ptr,
    states_ptr,
    scores_ptr,
    read_ptr,
    query_steps,
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
    start, part, batch, head = my_chunk(
        token_count, heads, chunk_size, tl.cdiv(value_width, value_part)
    )
    batch_and_head = (batch * heads + head).to(tl.int64)
    first_value = part * value_part
    query_ptr = head_at(query_ptr, query_steps, batch, head)
    value_ptr = head_at(value_ptr, value_steps, batch, head)
    log_decay_ptr = head_at(log_decay_ptr, decay_steps, batch, head)
    state = state_row(batch_and_head, token_count, start, chunk_size, width)
    present = start + tl.arange(0, chunk_size) < token_count

    scores_ptr += batch_and_head * token_count * chunk_size
    scores = load_part(scores_ptr, start, chunk_size, present, 0, chunk_size, chunk_size)
    values = load_part(
        value_ptr, start, value_steps[2], present, first_value, value_width, value_part
    )
    read = product(scores, values)
    for first_key in range(0, width, key_part):
        channels = first_key + tl.arange(0, key_part) < width
        queries = load_part(query_ptr, start, query_steps[2], present, first_key, width, key_part)
        log_decay = load_part(
            log_decay_ptr, start, decay_steps[2], present, first_key, width, key_part
        )
        state_block = load_part(
            states_ptr,
            state + first_key,
            value_width,
            channels,
            first_value,
            value_width,
            value_part,
        )
        from_the_start = tl.exp(tl.cumsum(log_decay.to(arithmetic), 0))
        later = (queries.to(arithmetic) * from_the_start).to(values.dtype)
        read += product(later, state_block)
    read_ptr += batch_and_head * token_count * value_width
    store_part(read_ptr, start, read * scale, present, first_value, value_width, value_part)


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

    # What passes through the states.
    grad_scores = tl.zeros([chunk_size, chunk_size], arithmetic)
    grad_query = tl.zeros([chunk_size, key_part], arithmetic)
    grad_key = tl.zeros([chunk_size, key_part], arithmetic)
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
        grad_scores += product(grad_read, tl.trans(values))
        grad_query += product(grad_read, tl.trans(state_block))
        grad_key += product(values, tl.trans(grad_state))
        across += tl.sum(state_block.to(arithmetic) * grad_state.to(arithmetic), 1)
    grad_scores *= scale

    queries = load_part(query_ptr, start, query_steps[2], present, first_key, width, key_part)
    keys = load_part(key_ptr, start, key_steps[2], present, first_key, width, key_part)
    step = decay_steps[2]
    log_decay = load_part(log_decay_ptr, start, step, present, first_key, width, key_part)
    behind = load_behind(
        log_decay_ptr, start, step, token_count, first_key, width, key_part, chunk_size
    )
    dtype = keys.dtype
    queries, keys = queries.to(arithmetic), keys.to(arithmetic)
    log_decay, behind = log_decay.to(arithmetic), behind.to(arithmetic)
    from_the_start, to_the_end = factors(log_decay, behind, chunk_size)
    grad_query *= from_the_start * scale
    grad_key *= to_the_end
    # What leaves the last token of all fades nowhere here: it must not be added and taken away.
    fading = tokens[:, None] < token_count - 1 - start
    leaving = tl.where(fading, keys * grad_key, 0.0)
    grad_log_decay = decay_gradient(queries * grad_query, leaving, chunk_size)
    grad_log_decay += (across * tl.exp(tl.sum(log_decay, 0)))[None, :]

    # What passes inside the chunk: from a token to itself, and level by level.
    own = tl.sum(tl.where(tokens[:, None] == tokens[None, :], grad_scores, 0.0), 1)[:, None]
    grad_query += own * keys
    grad_key += own * queries
    for level in tl.static_range(levels_of(chunk_size)):
        from_middle, to_middle = factors(log_decay, behind, 2**level)
        later, earlier = (queries * from_middle).to(dtype), (keys * to_middle).to(dtype)
        pairs = tl.where(split_here(chunk_size, 2**level), grad_scores, 0.0).to(dtype)
        grad_later = product(pairs, earlier) * from_middle
        grad_earlier = product(tl.trans(pairs), later) * to_middle
        grad_query += grad_later
        grad_key += grad_earlier
        grad_log_decay += decay_gradient(queries * grad_later, keys * grad_earlier, 2**level)

    grad_query_ptr += batch_and_head * token_count * width
    grad_key_ptr += batch_and_head * token_count * width
    grad_log_decay_ptr += batch_and_head * token_count * width
    store_part(grad_query_ptr, start, grad_query, present, first_key, width, key_part)
    store_part(grad_key_ptr, start, grad_key, present, first_key, width, key_part)
    store_part(grad_log_decay_ptr, start, grad_log_decay, present, first_key, width, key_part)


@triton.jit
def decay_gradient(arriving, leaving, size: tl.constexpr):
    """What fades at each token: what arrives from before at it or later, what leaves before it."""
    return sums_within(arriving, size, True) + (sums_within(leaving, size, False) - leaving)


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


def gated_read_of(query, key, value, log_decay, states, scale) -> tuple[Tensor, Tensor]:
    """o, and the scores inside the chunks, which backward needs again: (B, H, N, C)."""
    layout = problem(query, value, log_decay)
    with on_device_of(query):
        choices = choices_for("gated scores", query, value)
        scores = torch.empty(
            (*query.shape[:-1], choices["chunk_size"]), dtype=query.dtype, device=query.device
        )
        del choices["value_part"]
        score_kernel[(chunks_of(query, choices),)](
            *(query, key, log_decay, scores),
            query_steps=query.stride()[:3],
            key_steps=key.stride()[:3],
            **{name: layout[name] for name in ("decay_steps", "counts", "width")},
            **choices,
        )
        choices = choices_for("gated read", query, value)
        read = torch.empty(value.shape, dtype=value.dtype, device=value.device)
        parts = triton.cdiv(value.shape[-1], choices["value_part"])
        gated_read_kernel[(chunks_of(query, choices) * parts,)](
            *(query, value, log_decay, states, scores, read),
            query_steps=query.stride()[:3],
            value_steps=value.stride()[:3],
            **layout,
            scale=scale,
            **choices,
        )
    return read, scores


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
        choices = choices_for("gated query and key gradients", query, value)
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
