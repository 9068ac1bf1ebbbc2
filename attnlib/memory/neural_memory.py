r"""A memory that learns while it reads: gradient steps with momentum and forgetting (Titans).

    S_t = eta_t S_(t-1) - theta_t gradient_t    M_t = (1 - alpha_t) M_(t-1) + S_t    o_t = M_t(q_t)

The gradient is that of 1/2 |M(k_t) - v_t|^2 at the memory with which token t's mini-batch began,
unfaded. The gradient of the paper's loss |M(k) - v|^2 is twice as long: theta absorbs the 2.
Here the memory is any perceptron; `attnlib.memory.linear_memory` has the case of one matrix.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from attnlib.checks import check_attention, check_count, check_dtype, check_tensor
from attnlib.memory.inner_models import Weights, answer, gradient_factors, perceptron
from attnlib.memory.matrix_state import arithmetic_of
from attnlib.memory.memory_rates import Rate, check_finite, influence, rates_of


class MemoryState(NamedTuple):
    """All that is kept between two tokens; its size never changes.

    `anchor` is the memory with which the open mini-batch began and `place` how many of its tokens
    have come. Between mini-batches anchor is the memory itself.
    """

    memory: Weights
    momentum: Weights
    anchor: Weights
    place: int


def state_before(memory: Weights) -> MemoryState:
    """The state in front of the first token: these weights, and no momentum."""
    return MemoryState(memory, tuple(torch.zeros_like(w) for w in memory), memory, 0)


def deep_memory_recurrent(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    weights: Weights,
    theta: Rate,
    eta: Rate = 0.0,
    alpha: Rate = 0.0,
    mini_batch: int = 1,
    state: MemoryState | None = None,
) -> tuple[Float[Tensor, "*heads N E"], MemoryState]:
    r"""(read, state) of a memory that learns, one token after the other: the definition.

    .. math:: S_t = \eta_t S_{t-1} - \theta_t \nabla \ell(M_{t'}; k_t, v_t), \quad
              M_t = (1 - \alpha_t) M_{t-1} + S_t, \quad o_t = M_t(q_t)

    with l = 1/2 |M(k) - v|^2 and t' the last token before the mini-batch of t. `mini_batch` = 1
    takes each gradient at the newest memory.
    Shapes: query and key (..., heads, N, D), value (..., heads, N, E); `weights` are the matrices
    of the memory before the first token, (D, R), (R, E) or with leading dimensions; theta (the
    rate), eta (the momentum, 0 ... 1) and alpha (the forgetting, 0 ... 1) are numbers or broadcast
    to (..., heads, N). Keys are taken as they are. With a `state` its memory goes on, and
    `weights` only say its shape. Half precision is computed in float32.
    Forgetting shrinks every matrix, and each gradient carries the other matrices as factors: a deep
    memory that has faded to zero answers zero for ever, where a matrix would learn again. Keep
    alpha well below theta |h|^2, or zero.
    Cost: time 6 N times the numbers of the memory, in N steps; state three times those numbers.
    Raises ValueError or TypeError naming the argument: shapes, rates outside their range, and
    theta where the memory has diverged (looked at for CPU tensors).
    Source: Behrouz et al. (2025), eqs. 12 to 15.
    """
    query, key, value, theta, eta, alpha, state, dtype = prepared(
        query, key, value, theta, eta, alpha, weights, state, mini_batch
    )
    memory, momentum, anchor, place = state
    reads = []
    for t in range(key.shape[-2]):
        row = (..., slice(t, t + 1), slice(None))
        rate, moved, faded = (x[..., t, None, None] for x in (theta, eta, alpha))
        gradient = [x.mT @ error for x, error in gradient_factors(anchor, key[row], value[row])]
        momentum = tuple(
            moved * old - rate * new for old, new in zip(momentum, gradient, strict=True)
        )
        memory = tuple((1 - faded) * old + s for old, s in zip(memory, momentum, strict=True))
        reads.append(answer(memory, query[row]))
        place = (place + 1) % mini_batch
        anchor = memory if place == 0 else anchor
    check_finite(memory)
    read = torch.cat(reads, dim=-2) if reads else value * 0
    return read.to(dtype), MemoryState(memory, momentum, anchor, place)


def deep_memory_chunked(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    weights: Weights,
    theta: Rate,
    eta: Rate = 0.0,
    alpha: Rate = 0.0,
    mini_batch: int = 16,
    state: MemoryState | None = None,
) -> tuple[Float[Tensor, "*heads N E"], MemoryState]:
    r"""The same, all tokens of a mini-batch at once.

    .. math:: x_t W_t = b_t\, x_t W_0 + p_t\, x_t S_0
              - \sum_{s \le t} A_{ts} \theta_s (x_t \cdot x_s)\, e_s^\top

    The gradients of a mini-batch are all taken at its first memory, so they are known together,
    and each is an outer product x_s e_s^T. To multiply by W_t is linear attention over the tokens
    of the mini-batch, with A of `memory_rates.influence`: no W_t is ever made.
    Arguments, results and errors of `deep_memory_recurrent`. Cost: time 6 N times the numbers of
    the memory and 2 N C times its widths, in N / C steps, for C = `mini_batch`; memory N C.
    Source: Behrouz et al. (2025), section 3.2; the sums inside a mini-batch, Sun et al. (2024).
    """
    query, key, value, theta, eta, alpha, state, dtype = prepared(
        query, key, value, theta, eta, alpha, weights, state, mini_batch
    )
    start, length, reads = 0, key.shape[-2], [value[..., :0, :]]
    while start < length:
        end = min(length, start + mini_batch - state.place)
        rows = (..., slice(start, end), slice(None))
        rates = (x[..., start:end] for x in (theta, eta, alpha))
        read, state = within_mini_batch(
            state, query[rows], key[rows], value[rows], *rates, mini_batch
        )
        reads.append(read)
        start = end
    check_finite(state.memory)
    return torch.cat(reads, dim=-2).to(dtype), state


def deep_memory_step(
    state: MemoryState | None,
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    weights: Weights,
    theta: Rate,
    eta: Rate = 0.0,
    alpha: Rate = 0.0,
    mini_batch: int = 1,
) -> tuple[Float[Tensor, "*heads N E"], MemoryState]:
    """(read, new state) for the next token, or the next few; pass None to begin.

    Token by token, or in pieces of any length, it gives the rows of the other forms with the same
    `mini_batch`. The state that came is left as it is.
    """
    return deep_memory_chunked(
        query,
        key,
        value,
        weights=weights,
        theta=theta,
        eta=eta,
        alpha=alpha,
        mini_batch=mini_batch,
        state=state,
    )


def memory_read(
    state: MemoryState, query: Float[Tensor, "*heads N D"]
) -> Float[Tensor, "*heads N E"]:
    """What a deep memory answers, without learning from it: M(q).

    Raises ValueError for None, a memory that is read before it is written.
    """
    if state is None:
        raise ValueError("state must hold a memory: it is read before it is written, got None")
    check_tensor("query", query)
    return answer(state.memory, query.to(state.memory[0].dtype)).to(query.dtype)


def within_mini_batch(state, query, key, value, theta, eta, alpha, mini_batch):
    """(read, state) for tokens that lie in one mini-batch."""
    memory, momentum, anchor, place = state
    kept, pushed, written, from_start, moved = influence(eta, alpha)
    inputs, errors = zip(*gradient_factors(anchor, key, value), strict=True)
    steps = [-theta[..., None] * error for error in errors]

    def apply(layer: int, x: Tensor) -> Tensor:
        before = kept[..., None] * (x @ memory[layer]) + pushed[..., None] * (x @ momentum[layer])
        return before + (written * (x @ inputs[layer].mT)) @ steps[layer]

    read = perceptron(len(memory), apply, query)

    def at_end(old: Tensor, push: Tensor, x: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        new = kept[..., -1, None, None] * old + pushed[..., -1, None, None] * push
        new = new + (written[..., -1, :, None] * x).mT @ step
        push = from_start[..., -1, None, None] * push + (moved[..., -1, :, None] * x).mT @ step
        return new, push

    ends = [at_end(*parts) for parts in zip(memory, momentum, inputs, steps, strict=True)]
    memory, momentum = (tuple(part) for part in zip(*ends, strict=True))
    place = (place + key.shape[-2]) % mini_batch
    return read, MemoryState(memory, momentum, memory if place == 0 else anchor, place)


def prepared(query, key, value, theta, eta, alpha, weights, state, mini_batch):
    """Everything checked and in the dtype of the sums; what is missing is filled in."""
    check_attention(query, key, value)
    if query.shape != key.shape:
        raise ValueError(
            f"query must have the shape of key, {tuple(key.shape)}, got {tuple(query.shape)}"
        )
    check_count("mini_batch", mini_batch, least=1)
    rates = rates_of(theta, eta, alpha, key)
    sums = arithmetic_of(query.dtype)
    weights = checked_weights(weights, key, value, sums)
    state = state_before(weights) if state is None else checked_state(state, weights, mini_batch)
    tensors = (x.to(sums) for x in (query, key, value, *rates))
    return *tensors, state, query.dtype


def checked_weights(weights: Weights, key: Tensor, value: Tensor, sums: torch.dtype) -> Weights:
    """The matrices with the leading dimensions of key; raise where they do not chain D to E."""
    if not isinstance(weights, tuple | list) or not weights:
        raise TypeError(f"weights must be a tuple of matrices, got {type(weights).__name__}")
    rows, full = key.shape[-1], []
    for number, matrix in enumerate(weights):
        name = f"weights[{number}]"
        check_tensor(name, matrix)
        if matrix.dtype != sums:
            check_dtype(name, matrix, key)
        columns = value.shape[-1] if number == len(weights) - 1 else matrix.shape[-1]
        shape = (*key.shape[:-2], rows, columns)
        try:
            full.append(matrix.to(sums).broadcast_to(shape))
        except RuntimeError:
            raise ValueError(
                f"{name} must broadcast to {shape}, got {tuple(matrix.shape)}"
            ) from None
        if matrix.dim() < 2 or matrix.shape[-2:] != shape[-2:]:
            raise ValueError(f"{name} must end in {shape[-2:]}, got {tuple(matrix.shape)}")
        rows = columns
    return tuple(full)


def checked_state(state: MemoryState, weights: Weights, mini_batch: int) -> MemoryState:
    """The state, refused where its matrices have another shape or dtype than `weights`."""
    if not isinstance(state, MemoryState):
        raise TypeError(f"state must be a MemoryState or None, got {type(state).__name__}")
    for name, matrices in zip(state._fields[:3], state[:3], strict=True):
        came = [(tuple(w.shape), w.dtype) for w in matrices]
        wanted = [(tuple(w.shape), w.dtype) for w in weights]
        if came != wanted:
            raise ValueError(f"state.{name} must hold {wanted}, got {came}")
    if state.place >= mini_batch:
        raise ValueError(
            f"state must lie within a mini-batch of {mini_batch} tokens, got place {state.place}"
        )
    return state
