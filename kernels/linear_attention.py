"""Linear attention as a kernel: a state of D x E numbers instead of a cache, with decay.

The equation. Token t first lets the state fade, then writes into it, then reads it:

    S_t = diag(a_t) S_{t-1} + k_t v_t^T          o_t = scale S_t^T q_t

a_t = exp(log_decay_t) is 1 (linear attention), one number for a head (RetNet, Lightning, Mamba-2:
this file) or one for each key channel (gated linear attention: `gated_linear_attention.py`).
Written out, with L_ts the sum of log a_r over s < r <= t, it is attention without a softmax:

    o_t = scale (e^{c_t} q_t^T S_0 + sum_{s <= t} A_ts v_s)      A_ts = e^{L_ts} q_t . k_s

where S_0 is the state before the first token and c_t the sum of log a up to t. That holds for the
tokens of a chunk too, with the state at its start for S_0.

The picture. N x N scores, cut at chunks of C tokens: the tiles on the diagonal are computed as
scores, all that is left of them is one state.

    chunk 0   A . .          two passes:  1. the states, along the chunks: `linear_states.py`
    chunk 1   S A .                       2. the reads, all chunks in parallel: this file
    chunk 2   S S A

What one program does. It reads one chunk of one head, for a part of the value channels: scores
inside the chunk, times what faded between the two tokens, times the values; plus the queries times
the state, times what faded since the chunk began. L is made by summing a C x C table along its
columns, only the terms between s and t: an exponent is never a difference of two large sums, so
decays of -1e4, and -infinity, are exact.

Backward, with g_t for dL/do_t, dS for the gradient of the state at the end of the chunk (the pass
of `linear_states.py` from the other side), z_s the sum of log a behind s, G_ts = g_t . v_s:

    dL/dq_t = scale (e^{c_t} S g_t + sum_{s <= t} e^{L_ts} G_ts k_s)
    dL/dk_s = e^{z_s} dS v_s + scale sum_{t >= s} e^{L_ts} G_ts q_t
    dL/dv_s = e^{z_s} dS^T k_s + scale sum_{t >= s} A_ts g_t

log a_r decays whatever passes from a token s < r to a token t >= r. So its gradient sums

    P_ts = scale A_ts G_ts over all s < r <= t

inside the chunk; for t inside and s before it, q_t . (e^{c_t} scale S g_t); for s inside and t
behind, k_s . (e^{z_s} dS v_s); and for both outside, e^T <S, dS>, the same for all r. Only terms
that belong to it are added. (The shorter identity, sum_{t >= r} q_t . dq_t - k_t . dk_t + <S_N,
dS_N>, is the same sum with all the others added and taken away again; in bfloat16 they do not
quite cancel.)

What it moves, a token and head with b bytes a number: forward 2 b (D + E) for q, k, v, o, one more
reading of k and v for the states, and 2 b D E / C for writing and reading them. What it computes:
4 D E operations with the states, C (D + E) or twice that inside the chunk.

The bound: at D = E = 128 and C = 64 in bfloat16 2560 bytes and 98,000 operations, 38 a byte where
an H200 has 184. Bytes decide, and most of them are q, k, v, o and states, read once or twice.

Sources: Katharopoulos et al., "Transformers are RNNs", 2020 (attention as a state); Sun et al.,
"Retentive Network", 2023, equations 5 to 7 (parallel, recurrent, chunkwise); Qin et al., "Lightning
Attention-2", 2024, algorithms 1 and 2 (tiles inside, a state between); Dao and Gu, "Transformers
are SSMs", 2024, section 6 and listing 1 (a decay by token, and its sums by segment).
"""

import torch
import triton
import triton.language as tl
from attnlib.kernels.gated_linear_attention import gated_read_of
from attnlib.kernels.gated_linear_attention_gradient import gated_gradients_of
from attnlib.kernels.launch import (
    check_attention,
    check_device,
    check_scale,
    on_device_of,
    readable,
)
from attnlib.kernels.linear_attention_checks import (
    check_log_decay,
    check_one_key_a_query,
    check_state,
)
from attnlib.kernels.linear_attention_gradient import plain_gradients_of
from attnlib.kernels.linear_states import (
    choices_for,
    chunks_of,
    fade,
    load_log_decay,
    load_part,
    my_chunk,
    problem,
    state_gradients_of,
    state_kernel,
    state_row,
    states_of,
    store_part,
)
from attnlib.kernels.tiles import batch_and_heads, head_at, product
from torch import Tensor
from torch.autograd.function import once_differentiable


def linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor | None = None,
    initial_state: Tensor | None = None,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """(read, final_state) of S_t = diag(a_t) S_{t-1} + k_t v_t^T and o_t = scale S_t^T q_t.

    Shapes: query and key (*batch, H, N, D), value (*batch, H, N, E), read (*batch, H, N, E); also
    without heads. log_decay, the natural logarithm of a: None (a = 1), (*batch, H, N) one number a
    token, or (*batch, H, N, D) one a key channel. initial_state and final_state (*batch, H, D, E).
    D and E are 1 to 256. scale is D ** -0.5 unless given.

    The final state goes into the next call as its initial state: two calls on two halves of a
    sequence give what one call gives. It is float32 (float64 for float64), as it is a sum; the
    initial state and log_decay may be that or the dtype of query. -infinity in log_decay empties
    the state. Numbers over 0 let it grow without a bound; nothing looks for them, since looking
    would make the host wait for the GPU.

    float16 and bfloat16 are summed in float32; the states between chunks are rounded to them, so
    in float16 they must stay under 65504. float32 is multiplied in full precision (no tf32).
    Gradients flow to all tensors, and from both results, once (no second derivative).

    Cost: time N (D E + C (D + E)) with chunks of C = 64. For backward D E / C numbers a token are
    kept, and C more with a decay by channel. Keys shared by several heads come as
    `key.expand(...)`: they are read where they are, as are other layouts.

    Raises TypeError for a wrong dtype; ValueError for shapes that do not fit, a width over 256,
    numbers of a row that are not adjacent, devices that differ or cannot run Triton, a scale that
    is not positive, a chip whose shared memory holds no tile.
    """
    check_attention(query, key, value)
    check_one_key_a_query(query, key)
    check_scale(scale)
    tensors = {"query": query, "key": key, "value": value}
    if log_decay is not None:
        check_log_decay(log_decay, query)
        tensors["log_decay"] = log_decay
    if initial_state is not None:
        check_state("initial_state", initial_state, query, value)
        tensors["initial_state"] = initial_state
    check_device(state_kernel, **tensors)
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    if log_decay is not None and log_decay.dim() < query.dim():
        log_decay = log_decay.unsqueeze(-1)
    if log_decay is not None:
        log_decay = batch_and_heads(log_decay)
    if initial_state is not None:
        initial_state = batch_and_heads(initial_state)
    folded = (batch_and_heads(tensor) for tensor in (query, key, value))
    read, final_state = LinearAttention.apply(*folded, log_decay, initial_state, scale)
    state_shape = (*query.shape[:-2], query.shape[-1], value.shape[-1])
    return read.view(value.shape), final_state.view(state_shape)


@triton.jit
def read_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    log_decay_ptr,
    states_ptr,
    read_ptr,
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
    start, part, batch, head = my_chunk(
        token_count, heads, chunk_size, tl.cdiv(value_width, value_part)
    )
    batch_and_head = (batch * heads + head).to(tl.int64)
    first_value = part * value_part
    query_ptr = head_at(query_ptr, query_steps, batch, head)
    key_ptr = head_at(key_ptr, key_steps, batch, head)
    value_ptr = head_at(value_ptr, value_steps, batch, head)
    state = state_row(batch_and_head, token_count, start, chunk_size, width)
    tokens = tl.arange(0, chunk_size)
    present = start + tokens < token_count

    scores = tl.zeros([chunk_size, chunk_size], arithmetic)
    read = tl.zeros([chunk_size, value_part], arithmetic)
    for first_key in range(0, width, key_part):
        channels = first_key + tl.arange(0, key_part) < width
        queries = load_part(query_ptr, start, query_steps[2], present, first_key, width, key_part)
        keys = load_part(key_ptr, start, key_steps[2], present, first_key, width, key_part)
        state_block = load_part(
            states_ptr,
            state + first_key,
            value_width,
            channels,
            first_value,
            value_width,
            value_part,
        )
        scores += product(queries, tl.trans(keys))
        read += product(queries, state_block)
    if log_decay_ptr is not None:
        log_decay_ptr = head_at(log_decay_ptr, decay_steps, batch, head)
        log_decay = load_log_decay(log_decay_ptr, start, decay_steps[2], present, arithmetic)
        scores *= fade(log_decay)
        read *= tl.exp(tl.cumsum(log_decay, 0))[:, None]
    scores = tl.where(tokens[None, :] <= tokens[:, None], scores, 0.0)
    values = load_part(
        value_ptr, start, value_steps[2], present, first_value, value_width, value_part
    )
    read = (read + product(scores.to(values.dtype), values)) * scale
    read_ptr += batch_and_head * token_count * value_width
    store_part(read_ptr, start, read, present, first_value, value_width, value_part)


class LinearAttention(torch.autograd.Function):
    """The kernels as one differentiable operation on tensors (B, H, N, D)."""

    @staticmethod
    def forward(ctx, query, key, value, log_decay, initial_state, scale):
        tensors = (query, key, value, log_decay, initial_state)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in tensors]
        ctx.set_materialize_grads(False)
        query, key, value, log_decay, initial_state = (
            None if tensor is None else readable(state_kernel, tensor) for tensor in tensors
        )
        if initial_state is not None:
            initial_state = initial_state.contiguous()
        states, final_state = states_of(key, value, log_decay, initial_state)
        by_channel = log_decay is not None and log_decay.shape[-1] > 1
        read_of = gated_read_of if by_channel else plain_read_of
        read, scores = read_of(query, key, value, log_decay, states, scale)
        ctx.save_for_backward(query, key, value, log_decay, states, scores)
        ctx.scale = scale
        return read.to(ctx.dtypes[0]), final_state

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_read, grad_final_state):
        query, key, value, log_decay, states, scores = ctx.saved_tensors
        if grad_read is None:
            grad_read = torch.zeros(value.shape, dtype=value.dtype, device=value.device)
        grad_read = readable(state_kernel, grad_read.contiguous())
        if grad_final_state is not None:
            grad_final_state = grad_final_state.contiguous()
        grad_states, grad_initial_state = state_gradients_of(
            *(grad_read, grad_final_state, query, value, log_decay),
            has_initial_state=ctx.dtypes[4] is not None,
            scale=ctx.scale,
        )
        gradients_of = plain_gradients_of if scores is None else gated_gradients_of
        gradients = gradients_of(
            grad_read, query, key, value, log_decay, states, grad_states, scores, ctx.scale
        )
        gradients = (*gradients, grad_initial_state)
        return *(
            None if gradient is None else gradient.to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        ), None


def plain_read_of(query, key, value, log_decay, states, scale) -> tuple[Tensor, None]:
    """o, with a decay of one number a token or none. No scores are kept for backward."""
    choices = choices_for("read", query, value)
    read = torch.empty(value.shape, dtype=value.dtype, device=value.device)
    parts = triton.cdiv(value.shape[-1], choices["value_part"])
    with on_device_of(query):
        read_kernel[(chunks_of(query, choices) * parts,)](
            *(query, key, value, log_decay, states, read),
            query_steps=query.stride()[:3],
            key_steps=key.stride()[:3],
            value_steps=value.stride()[:3],
            **problem(query, value, log_decay),
            scale=scale,
            **choices,
        )
    return read, None
