"""The delta rule as a kernel: a memory of D x E numbers that corrects itself.

The equation. Token t lets the state fade, asks it for k_t, and writes what was wrong in the answer:

    e_t = v_t - a_t S_{t-1}^T k_t     S_t = a_t S_{t-1} + b_t k_t e_t^T     o_t = scale S_t^T q_t

with a = exp(log_decay) and b = beta. k_t e_t^T is minus the gradient of 1/2 |S^T k_t - v_t|^2 at
S = a_t S_{t-1}: every token is one step of gradient descent, of size b_t, on its own pair.

Linear attention writes v_t; this writes u_t = b_t e_t, and that is all the difference. Once the u
are known, reads and half of the gradients are those of `linear_attention.py`, with u for v.

Inside a chunk of C tokens, with S the state at its start, c_t the sum of log a up to t and R_ts the
product of a over s < r <= t:

    a_t S_{t-1} = e^{c_t} S + sum_{s < t} R_ts k_s u_s^T
    u_t = b_t (v_t - e^{c_t} S^T k_t - sum_{s < t} L_ts u_s)            L_ts = R_ts k_t . k_s

These are C equations for the C rows of U, each with the rows before it. L is strictly lower, so

    (I + diag(b) L) U = diag(b) (V - diag(e^c) K S)         X = (I + diag(b) L)^-1

X does not know S: all chunks are inverted at once, by forward substitution and in float32
(`delta_rule_chunks.py`). The papers write T V - W S, with T = X diag(b) and W = T diag(e^c) K. Here
T V and W are never stored: X diag(b) (V - diag(e^c) K S) is the same, with less to read.

The picture. Three passes:

    1. inverses, all chunks in parallel      X_0      X_1      X_2
    2. along the chunks                   S_0 -> u, S_1 -> u, S_2 -> u, final state
    3. reads, all chunks in parallel         o        o        o        linear attention of q, k, u

What one program does. Pass 1: one chunk of one head. Pass 2: some columns of the state of one head
for the whole sequence; columns of S never meet, so each part has its own program. It holds them in
float32 and writes them down at the start of each chunk. Pass 3: a chunk and some columns.
Backward, equation and passes: `delta_rule_gradient.py`.

What it moves, a token and head with b bytes a number: q, k, v, o are b (2 D + 2 E); beside them k
twice more, u and X (in float32) written and read, and 2 b D E / C for states. What it computes:
6 D E operations with the state and 4 C (D + E) inside the chunk.

The bound, at D = E = 128, C = 64 in bfloat16: 3584 bytes and 163,840 operations, 46 a byte where an
H200 has 184. Bytes decide, 0.83 ns a token and head; 0.24 ns if only q, k, v, o were moved. But
pass 2 is N / C steps, of three products that wait for one another, in B H E / 32 programs: with few
heads that chain decides, not the bytes.

Sources: Widrow and Hoff, 1960 (the rule); Schlag et al., "Linear Transformers Are Secretly Fast
Weight Programmers", 2021 (in attention); Yang et al., "Parallelizing Linear Transformers with the
Delta Rule over Sequence Length", 2024 (section 3: the WY form in chunks, T, W and U); Yang et al.,
"Gated Delta Networks", 2024 (section 3: the same with decay).
"""

import torch
import triton
import triton.language as tl
from attnlib.kernels.delta_rule_chunks import (
    choices_for,
    decays_of_chunk,
    inverse_of_unit_lower,
    my_columns,
    product_in_two,
)
from attnlib.kernels.delta_rule_gradient import gradients_of
from attnlib.kernels.launch import (
    check_attention,
    check_device,
    check_dtype,
    check_scale,
    on_device_of,
    readable,
)
from attnlib.kernels.linear_attention import plain_read_of
from attnlib.kernels.linear_attention_checks import (
    check_one_key_a_query,
    check_state,
    check_sum_dtype,
)
from attnlib.kernels.linear_states import (
    fade,
    load_log_decay,
    load_part,
    my_chunk,
    new_states,
    problem,
    state_row,
    store_part,
)
from attnlib.kernels.tiles import (
    arithmetic_of,
    batch_and_heads,
    head_at,
    load_rows,
    padded,
    product,
    store_rows,
)
from torch import Tensor
from torch.autograd.function import once_differentiable


def delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    initial_state: Tensor | None = None,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """(read, final_state) of S_t = a_t S_{t-1} + b_t k_t e_t^T, e_t = v_t - a_t S_{t-1}^T k_t.

    The read is o_t = scale S_t^T q_t, after the write. Every step is one gradient step of size b_t
    on 1/2 |S^T k_t - v_t|^2, taken from the decayed state: with b_t = 1 and |k_t| = 1 the memory
    then answers k_t with exactly v_t, with b_t = 0 nothing is written.

    Shapes: query and key (*batch, H, N, D), value (*batch, H, N, E), read (*batch, H, N, E); also
    without heads. beta, which is b, and log_decay, the natural logarithm of a (None: a = 1), are
    (*batch, H, N). initial_state and final_state are (*batch, H, D, E). D and E are 1 to 256. scale
    is D ** -0.5 unless given.

    Keys are taken as they are: normalise them first. With |k| = 1, b in [0, 2] and log_decay <= 0
    no step lengthens any row that the state holds, and the state stays bounded. Other numbers are
    computed too, and may grow without a bound; nothing looks for them, since looking would make
    the host wait for the GPU. -infinity in log_decay empties the state.

    The final state goes into the next call as its initial state: two calls on two halves of a
    sequence give what one call gives. It is float32 (float64 for float64), as it is a sum; beta,
    log_decay and initial_state may be that or the dtype of query. float16 and bfloat16 are summed
    in float32; float32 is multiplied in full precision (no tf32). Gradients flow to all tensors,
    and from both results, once (no second derivative).

    Cost: time N (6 D E + 2 C (2 D + 2 E)) with chunks of C = 64, and memory linear in N: for
    backward E + C + D E / C numbers a token are kept. For one new token see `delta_rule_step`.

    Raises TypeError for a wrong dtype; ValueError for shapes that do not fit, a width over 256,
    numbers of a row that are not adjacent, devices that differ or cannot run Triton, a scale that
    is not positive, a chip whose shared memory holds no tile.
    """
    check_attention(query, key, value)
    check_one_key_a_query(query, key)
    check_scale(scale)
    tensors = {"query": query, "key": key, "value": value, "beta": beta}
    check_gate("beta", beta, query)
    if log_decay is not None:
        check_gate("log_decay", log_decay, query)
        tensors["log_decay"] = log_decay
    if initial_state is not None:
        check_state("initial_state", initial_state, query, value)
        tensors["initial_state"] = initial_state
    check_device(state_kernel, **tensors)
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    folded = [batch_and_heads(tensor) for tensor in (query, key, value)]
    beta, log_decay = (
        None if numbers is None else batch_and_heads(numbers.unsqueeze(-1))
        for numbers in (beta, log_decay)
    )
    if initial_state is not None:
        initial_state = batch_and_heads(initial_state)
    read, final_state = DeltaRule.apply(*folded, beta, log_decay, initial_state, scale)
    state_shape = (*query.shape[:-2], query.shape[-1], value.shape[-1])
    return read.view(value.shape), final_state.view(state_shape)


@triton.jit
def inverse_kernel(
    key_ptr,
    beta_ptr,
    log_decay_ptr,
    inverse_ptr,
    key_steps,
    beta_steps,
    decay_steps,
    counts,
    width: tl.constexpr,
    arithmetic: tl.constexpr,
    chunk_size: tl.constexpr,
    key_part: tl.constexpr,
):
    token_count, heads = counts
    start, _, batch, head = my_chunk(token_count, heads, chunk_size, 1)
    batch_and_head = (batch * heads + head).to(tl.int64)
    key_ptr = head_at(key_ptr, key_steps, batch, head)
    beta_ptr = head_at(beta_ptr, beta_steps, batch, head)
    tokens = tl.arange(0, chunk_size)
    present = start + tokens < token_count

    overlaps = tl.zeros([chunk_size, chunk_size], arithmetic)
    for first_key in range(0, width, key_part):
        keys = load_part(key_ptr, start, key_steps[2], present, first_key, width, key_part)
        overlaps += product(keys, tl.trans(keys))
    if log_decay_ptr is not None:
        log_decay_ptr = head_at(log_decay_ptr, decay_steps, batch, head)
        overlaps *= fade(load_log_decay(log_decay_ptr, start, decay_steps[2], present, arithmetic))
    beta = load_log_decay(beta_ptr, start, beta_steps[2], present, arithmetic)
    earlier = tokens[None, :] < tokens[:, None]
    below_diagonal = tl.where(earlier, beta[:, None] * overlaps, 0.0)
    count = tl.minimum(token_count - start, chunk_size)
    inverse = inverse_of_unit_lower(below_diagonal, count)
    inverse_ptr += batch_and_head * token_count * chunk_size
    store_rows(inverse_ptr, start, inverse, present, chunk_size)


@triton.jit
def state_kernel(
    key_ptr,
    value_ptr,
    beta_ptr,
    log_decay_ptr,
    inverse_ptr,
    initial_state_ptr,
    write_ptr,
    states_ptr,
    final_state_ptr,
    key_steps,
    value_steps,
    beta_steps,
    decay_steps,
    counts,
    width: tl.constexpr,
    value_width: tl.constexpr,
    arithmetic: tl.constexpr,
    chunk_size: tl.constexpr,
    value_part: tl.constexpr,
):
    token_count, heads = counts
    first_value, batch, head = my_columns(heads, value_width, value_part)
    batch_and_head = (batch * heads + head).to(tl.int64)
    key_ptr = head_at(key_ptr, key_steps, batch, head)
    value_ptr = head_at(value_ptr, value_steps, batch, head)
    beta_ptr = head_at(beta_ptr, beta_steps, batch, head)
    if log_decay_ptr is not None:
        log_decay_ptr = head_at(log_decay_ptr, decay_steps, batch, head)
    inverse_ptr += batch_and_head * token_count * chunk_size
    write_ptr += batch_and_head * token_count * value_width
    channels = tl.arange(0, padded(width)) < width
    row = batch_and_head * width  # of the state, among the rows of all heads

    state = tl.zeros([padded(width), value_part], arithmetic)
    if initial_state_ptr is not None:
        state += load_part(
            initial_state_ptr, row, value_width, channels, first_value, value_width, value_part
        )
    for chunk in range(0, tl.cdiv(token_count, chunk_size)):
        start = chunk * chunk_size
        place = state_row(batch_and_head, token_count, start, chunk_size, width)
        store_part(states_ptr, place, state, channels, first_value, value_width, value_part)

        present = start + tl.arange(0, chunk_size) < token_count
        keys = load_rows(key_ptr, start, key_steps[2], present, width)
        values = load_part(
            value_ptr, start, value_steps[2], present, first_value, value_width, value_part
        )
        beta = load_log_decay(beta_ptr, start, beta_steps[2], present, arithmetic)
        inverse = load_rows(inverse_ptr, start, chunk_size, present, chunk_size)
        from_start, to_end, whole = decays_of_chunk(
            log_decay_ptr, start, decay_steps, token_count, chunk_size, arithmetic
        )
        recalled = from_start[:, None] * product(keys, state.to(keys.dtype))
        wanted = beta[:, None] * (values - recalled)
        writes = product_in_two(inverse, wanted.to(keys.dtype))
        store_part(write_ptr, start, writes, present, first_value, value_width, value_part)
        kept = (to_end[:, None] * writes).to(keys.dtype)
        state = whole * state + product(tl.trans(keys), kept)
    store_part(final_state_ptr, row, state, channels, first_value, value_width, value_part)


class DeltaRule(torch.autograd.Function):
    """The kernels as one differentiable operation on tensors (B, H, N, D)."""

    @staticmethod
    def forward(ctx, query, key, value, beta, log_decay, initial_state, scale):
        tensors = (query, key, value, beta, log_decay, initial_state)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in tensors]
        ctx.set_materialize_grads(False)
        query, key, value, beta, log_decay, initial_state = (
            None if tensor is None else readable(state_kernel, tensor) for tensor in tensors
        )
        if initial_state is not None:
            initial_state = initial_state.contiguous()
        inverse = inverses_of(key, value, beta, log_decay)
        writes, states, final_state = writes_of(key, value, beta, log_decay, inverse, initial_state)
        read, _ = plain_read_of(query, key, writes, log_decay, states, scale)
        ctx.save_for_backward(query, key, value, beta, log_decay, inverse, writes, states)
        ctx.scale = scale
        return read.to(ctx.dtypes[0]), final_state

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_read, grad_final_state):
        value = ctx.saved_tensors[2]
        if grad_read is None:
            grad_read = torch.zeros(value.shape, dtype=value.dtype, device=value.device)
        grad_read = readable(state_kernel, grad_read.contiguous())
        if grad_final_state is not None:
            grad_final_state = grad_final_state.contiguous()
        gradients = gradients_of(grad_read, grad_final_state, *ctx.saved_tensors, ctx.scale)
        return *(
            None if dtype is None else gradient.to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        ), None


def inverses_of(key, value, beta, log_decay) -> Tensor:
    """(I + diag(b) L)^-1 of each chunk: C numbers for each token, zeros above the diagonal."""
    choices = choices_for("inverse", inverse_kernel, key, value)
    chunk_size = choices["chunk_size"]
    batch, heads, tokens, width = key.shape
    sums = arithmetic_of(key.dtype)
    inverse = torch.empty(batch, heads, tokens, chunk_size, dtype=sums, device=key.device)
    with on_device_of(key):
        inverse_kernel[(batch * heads * triton.cdiv(tokens, chunk_size),)](
            *(key, beta, log_decay, inverse),
            key_steps=key.stride()[:3],
            beta_steps=beta.stride()[:3],
            decay_steps=None if log_decay is None else log_decay.stride()[:3],
            counts=(tokens, heads),
            width=width,
            **choices,
        )
    return inverse


def writes_of(key, value, beta, log_decay, inverse, initial_state) -> tuple[Tensor, Tensor, Tensor]:
    """u of each token, the state at the start of each chunk, and the state after the last token."""
    choices = choices_for("state", state_kernel, key, value)
    batch, heads, _, width = key.shape
    value_width = value.shape[-1]
    writes = torch.empty(value.shape, dtype=value.dtype, device=value.device)
    states = new_states(key, value, choices)
    final_state = torch.empty(
        (batch, heads, width, value_width), dtype=arithmetic_of(key.dtype), device=key.device
    )
    with on_device_of(key):
        state_kernel[(batch * heads * triton.cdiv(value_width, choices["value_part"]),)](
            *(key, value, beta, log_decay, inverse, initial_state, writes, states, final_state),
            key_steps=key.stride()[:3],
            value_steps=value.stride()[:3],
            beta_steps=beta.stride()[:3],
            **problem(key, value, log_decay),
            **choices,
        )
    return writes, states, final_state


def check_gate(name: str, gate: Tensor, query: Tensor) -> None:
    """Raise unless there is one number for each row of query."""
    check_dtype(name, gate)
    check_sum_dtype(name, gate, query)
    if gate.shape != query.shape[:-1]:
        raise ValueError(
            f"{name} must have shape {tuple(query.shape[:-1])}, one number a token, "
            f"got {tuple(gate.shape)}"
        )
