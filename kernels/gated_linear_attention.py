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

            s = 0 1 2 3
    t = 0       =
    t = 1       1 =            2  split by the middle of the chunk of 4, halves of 2
    t = 2       2 2 =          1  split by the middle of one of its halves
    t = 3       2 2 1 =        =  a token and itself: nothing fades

The sums of a level come from those of the level below: a half takes in the sum of the half beside
it. No exponent is a difference of two sums.

That is log2(C) products of a chunk of queries and a chunk of keys for what would be one: 6 for
C = 64, all on matrix units, and exact for every decay down to -infinity. (The paper cuts a chunk
once, into pieces of 16, and computes inside a piece without matrix units.)

What one program does. `score_kernel`: the scores A of one chunk of one head, written down for the
read and for the backward pass. `gated_read_kernel`: one chunk, a part of the value channels:
scale (A v + (e^c q) S). Backward: one chunk and a part of the key channels for the gradients of
query, key and log_decay; one chunk and a part of the value channels for that of value. With
G_ts = scale g_t . v_s of the pairs of one level, e^u and e^w for the factors of t and s there:

    dL/dq_t = e^u_t sum_s G_ts e^w_s k_s          dL/dk_s = e^w_s sum_t G_ts e^u_t q_t

log a_r decays what passes from a token before r to r or a later one. At one level that is, for r
in a second half, the sum of q_t dq_t over the tokens t >= r of it; in a first half, the sum of
k_s dk_s over the tokens s < r of it. The parts that come from and go to the state are the same with
the chunk for a half. A sum over a part of the chunk is a difference of running sums in float32, of
the very same numbers; the shorter identity of `linear_attention.py` takes k_t dk_t from q_t dq_t,
which bfloat16 products have rounded differently.

What it moves, a token and head with b bytes a number: b (3 D + 2 E) for q, k, log a, v, o, once
more k, v, log a for the states, q and log a for the read, 2 b D E / C for the states and 2 b C
for the scores. What it computes: 4 D E for the states, 2 C D log2(C) + 2 C E in the chunk: at
D = E = 128 and C = 64 about 180,000 operations and 3,800 bytes in bfloat16, 47 a byte where an
H200 has 184: bytes decide. And 2 D (log2(C) + 1) exponentials.

Source: Yang et al., "Gated Linear Attention Transformers with Hardware-Efficient Training", 2023,
section 4 (equations 3 and 4, the chunk form, secondary chunking).
"""

import torch
import triton
import triton.language as tl
from attnlib.kernels.launch import on_device_of
from attnlib.kernels.linear_states import (
    choices_for,
    chunks_of,
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
def split_here(rows: tl.constexpr, level):
    """Which pairs (t, s) this level splits, with halves of 2^level tokens: s in the first, t in
    the second half of the same piece.
    """
    t, s = tl.arange(0, rows)[:, None], tl.arange(0, rows)[None, :]
    return (t > s) & ((t >> level) == ((s >> level) ^ 1))


@triton.jit
def in_second_half(rows: tl.constexpr, level):
    """Which tokens are in the second half of their piece, as a column."""
    return (tl.arange(0, rows)[:, None] >> level) % 2 == 1


@triton.jit
def sums_of_next_level(until, behind, level):
    """The sums of log a in halves that are twice as long, from those in halves of 2^level tokens.

    `until` sums from the start of the half to the token, `behind` from behind the token to the end
    of the half. Each half takes in the sum of the other half of its piece, which stands in the last
    row of that one.
    """
    half = tl.arange(0, until.shape[0])[:, None] >> level
    last_of_other = ((half ^ 1) << level) + (1 << level) - 1
    other = tl.gather(until, tl.broadcast_to(last_of_other, until.shape), 0)
    second = in_second_half(until.shape[0], level)
    return tl.where(second, until + other, until), tl.where(second, behind, behind + other)


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
        own = tl.sum(queries.to(arithmetic) * keys.to(arithmetic), 1)[:, None]
        scores += tl.where(tokens[:, None] == tokens[None, :], own, 0.0)
        until, behind = log_decay.to(arithmetic), tl.zeros([chunk_size, key_part], arithmetic)
        for level in range(levels_of(chunk_size)):
            later = (queries.to(arithmetic) * tl.exp(until)).to(keys.dtype)
            earlier = (keys.to(arithmetic) * tl.exp(behind)).to(keys.dtype)
            pairs = product(later, tl.trans(earlier))
            scores += tl.where(split_here(chunk_size, level), pairs, 0.0)
            until, behind = sums_of_next_level(until, behind, level)
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
