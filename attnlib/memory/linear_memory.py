r"""The linear memory with momentum and forgetting: one matrix that learns, in four forms.

    S_t = eta_t S_(t-1) - theta_t k_t (k_t^T M_t' - v_t^T)     M_t = (1 - alpha_t) M_(t-1) + S_t

t' is the last token before the mini-batch of t. With eta = alpha = 0 and mini-batches of one
token it is the delta rule with beta = theta. With alpha > 0 it is not the gated delta rule: here
the error is taken before the memory fades, there after it.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from attnlib.checks import check_attention, check_count, check_scale
from attnlib.memory.matrix_state import empty_state
from attnlib.memory.memory_rates import Rate, check_finite, check_stable, influence
from attnlib.memory.neural_memory import (
    MemoryState,
    deep_memory_recurrent,
    prepared,
    within_mini_batch,
)

ReadAndState = tuple[Float[Tensor, "*heads N E"], MemoryState]


def linear_memory_recurrent(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    theta: Rate,
    eta: Rate = 0.0,
    alpha: Rate = 0.0,
    mini_batch: int = 1,
    state: MemoryState | None = None,
    scale: float | None = None,
) -> ReadAndState:
    r"""(read, state) of a matrix that learns with momentum and forgets: the definition.

    .. math:: S_t = \eta_t S_{t-1} - \theta_t k_t (k_t^\top M_{t'} - v_t^\top), \quad
              M_t = (1 - \alpha_t) M_{t-1} + S_t, \quad o_t = \mathrm{scale}\, M_t^\top q_t

    Shapes: query and key (..., heads, N, D), value (..., heads, N, E); theta, eta, alpha numbers or
    tensors that broadcast to (..., heads, N), eta and alpha in 0 ... 1. The state is a MemoryState
    of matrices (..., D, E), zero to begin. `scale` is D ** -0.5 unless given. Keys are taken as
    they are. Half precision is computed in float32, and so is its state.
    Cost: time 6 N D E in N steps; state 3 D E.
    Raises ValueError or TypeError naming the argument: shapes, rates outside their range, and
    theta where one token alone is unstable, theta |k|^2 > (2 - alpha)(1 + eta), or the memory has
    diverged (both looked at for CPU tensors). The bound is exact for a key that repeats, and enough
    for all keys where eta = 0 and `mini_batch` = 1; `memory_rates` has more.
    Source: Behrouz et al. (2025), eqs. 12 to 15, for a linear memory.
    """
    given = checked(query, key, value, theta, eta, alpha, mini_batch, state, scale)
    query, key, value, theta, eta, alpha, state, scale, dtype = given
    read, state = deep_memory_recurrent(
        query,
        key,
        value,
        weights=state.memory,
        theta=theta,
        eta=eta,
        alpha=alpha,
        mini_batch=mini_batch,
        state=state,
    )
    return (scale * read).to(dtype), matrices(state)


def linear_memory_parallel(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    theta: Rate,
    eta: Rate = 0.0,
    alpha: Rate = 0.0,
    mini_batch: int = 1,
    state: MemoryState | None = None,
    scale: float | None = None,
) -> ReadAndState:
    r"""The same in one piece: the errors of all tokens solve one triangular system.

    .. math:: (I + (A' \odot K K^\top)\, \mathrm{diag}(\theta))\, E = B - V, \qquad
              O = \mathrm{scale}\,(R - (A \odot Q K^\top)\, \mathrm{diag}(\theta)\, E)

    A of `memory_rates.influence` says how a step lives on; row t of A' is its row t', at which
    token t's gradient is taken, and B, R are what is left of the first state there. Token t's
    error hangs on earlier errors alone, so the system is solved by forward substitution.
    Arguments, results and errors of `linear_memory_recurrent`. Cost: time N^3 / 3 for A and
    N^2 (2 D + 2 E), memory N^2.
    Source: the dense form of the delta rule (Yang et al., 2024), with A in place of decays.
    """
    given = checked(query, key, value, theta, eta, alpha, mini_batch, state, scale)
    query, key, value, theta, eta, alpha, state, scale, dtype = given
    if key.shape[-2] == 0:
        return (value * 0).to(dtype), matrices(state)
    read, state = solved_at_once(state, query, key, value, theta, eta, alpha, mini_batch)
    check_finite(state.memory)
    return (scale * read).to(dtype), matrices(state)


def linear_memory_chunked(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    theta: Rate,
    eta: Rate = 0.0,
    alpha: Rate = 0.0,
    mini_batch: int = 1,
    state: MemoryState | None = None,
    scale: float | None = None,
    chunk: int = 64,
) -> ReadAndState:
    """The same in chunks of C tokens: solved at once inside a chunk, a state from chunk to chunk.

    `chunk` is a choice of computing and changes no result; `mini_batch` does. Mini-batches of at
    least `chunk` tokens need no system: their errors are known together, and they are the chunks.
    Arguments, results and errors of `linear_memory_recurrent`.
    Cost: time N (6 D E + C (2 D + 2 E) + C^2), memory N (D + E) + C^2.
    """
    check_count("chunk", chunk, least=1)
    given = checked(query, key, value, theta, eta, alpha, mini_batch, state, scale)
    query, key, value, theta, eta, alpha, state, scale, dtype = given
    start, length, reads = 0, key.shape[-2], [value[..., :0, :]]
    together = within_mini_batch if mini_batch >= chunk else solved_at_once
    while start < length:
        size = mini_batch - state.place if mini_batch >= chunk else chunk
        end = min(length, start + size)
        rows = (..., slice(start, end), slice(None))
        rates = (x[..., start:end] for x in (theta, eta, alpha))
        read, state = together(state, query[rows], key[rows], value[rows], *rates, mini_batch)
        reads.append(read)
        start = end
    check_finite(state.memory)
    return (scale * torch.cat(reads, dim=-2)).to(dtype), matrices(state)


def linear_memory_step(
    state: MemoryState | None,
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    theta: Rate,
    eta: Rate = 0.0,
    alpha: Rate = 0.0,
    mini_batch: int = 1,
    scale: float | None = None,
) -> ReadAndState:
    """(read, new state) for the next token, or the next few; pass None to begin.

    In pieces of any length it gives the rows of the other forms. The state that came is left as it
    is. Cost: time 6 D E a token, whatever came before.
    """
    return linear_memory_recurrent(
        query,
        key,
        value,
        theta=theta,
        eta=eta,
        alpha=alpha,
        mini_batch=mini_batch,
        state=state,
        scale=scale,
    )


def linear_memory_read(
    state: MemoryState, query: Float[Tensor, "*heads N D"]
) -> Float[Tensor, "*heads N E"]:
    """What the memory answers, without a scale and without learning from it: q M.

    Raises ValueError for None, a memory that is read before it is written.
    """
    if state is None:
        raise ValueError("state must hold a memory: it is read before it is written, got None")
    return (query.to(state.memory.dtype) @ state.memory).to(query.dtype)


def solved_at_once(state, query, key, value, theta, eta, alpha, mini_batch):
    """(read, state) of all these tokens by one triangular system."""
    (memory,), (momentum,), (anchor,), place = state
    kept, pushed, written, from_start, moved = influence(eta, alpha)
    length = key.shape[-2]

    # Row t + 1 of each table belongs to memory M_t, row 0 to the memory before these tokens.
    kept = torch.cat((torch.ones_like(kept[..., :1]), kept), dim=-1)[..., None]
    pushed = torch.cat((torch.zeros_like(pushed[..., :1]), pushed), dim=-1)[..., None]
    written = torch.cat((torch.zeros_like(written[..., :1, :]), written), dim=-2)
    index = torch.arange(length + 1, device=key.device)
    begin = (index + place) // mini_batch * mini_batch - place  # < 0: the open mini-batch
    open_already, at = (begin < 0)[:, None], begin.clamp(min=0)

    def before(x: Tensor, rows: Tensor) -> Tensor:
        return kept[..., rows, :] * (x @ memory) + pushed[..., rows, :] * (x @ momentum)

    answers = torch.where(open_already[:-1], key @ anchor, before(key, at[:-1]))
    seen = written[..., at[:-1], :].masked_fill(open_already[:-1], 0.0)
    system = seen * (key @ key.mT) * theta[..., None, :]
    error = torch.linalg.solve_triangular(system, answers - value, upper=False, unitriangular=True)
    step = -theta[..., None] * error
    read = before(query, index[1:]) + (written[..., 1:, :] * (query @ key.mT)) @ step

    def memory_at(row: int) -> Tensor:
        left = kept[..., row, :, None] * memory + pushed[..., row, :, None] * momentum
        return left + (written[..., row, :, None] * key).mT @ step

    after = memory_at(length)
    push = from_start[..., -1, None, None] * momentum + (moved[..., -1, :, None] * key).mT @ step
    row = int(begin[-1])
    anchor = anchor if row < 0 else memory_at(row)
    return read, MemoryState((after,), (push,), (anchor,), (place + length) % mini_batch)


def checked(query, key, value, theta, eta, alpha, mini_batch, state, scale):
    """Everything checked, with the state as tuples of one matrix; the rates must be stable."""
    check_attention(query, key, value)
    check_scale(scale)
    scale = max(query.shape[-1], 1) ** -0.5 if scale is None else scale
    if state is not None:
        if not isinstance(state, MemoryState):
            raise TypeError(f"state must be a MemoryState or None, got {type(state).__name__}")
        state = MemoryState((state.memory,), (state.momentum,), (state.anchor,), state.place)
    empty = (empty_state(key, value),)
    *given, state, dtype = prepared(query, key, value, theta, eta, alpha, empty, state, mini_batch)
    check_stable(given[1], *given[3:])
    return *given, state, scale, dtype


def matrices(state: MemoryState) -> MemoryState:
    """The state of a memory of one matrix, with matrices in place of tuples of one."""
    (memory,), (momentum,), (anchor,), place = state
    return MemoryState(memory, momentum, anchor, place)
