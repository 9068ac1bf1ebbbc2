"""The delta rule in three forms: token by token, dense, in chunks. A memory that corrects itself.

    e_t = v_t - a_t S_{t-1}^T k_t     S_t = a_t S_{t-1} + b_t k_t e_t^T     o_t = scale S_t^T q_t

with b = beta and a = exp(log_decay). Here are the forms themselves, which take keys as they are.
`attnlib.memory.delta_attention` has the operators of attention, which make keys unit vectors first.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from attnlib.checks import check_attention, check_count, check_dtype, check_scale, check_tensor
from attnlib.memory.decay import behind, decay_between, until

LARGEST_BETA = 2.0
SMALLEST_LOG_DECAY = -800.0
"""exp(-800) is zero in every dtype; a log decay below this counts as this."""

Given = Float[Tensor, "*#heads #N"] | float
ReadAndState = tuple[Float[Tensor, "*heads N E"], Float[Tensor, "*heads D E"]]


def delta_rule_recurrent(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    beta: Given = 1.0,
    log_decay: Given = 0.0,
    initial_state: Float[Tensor, "*heads D E"] | None = None,
    scale: float | None = None,
) -> ReadAndState:
    r"""(read, final state) of the delta rule, one token after the other: the definition.

    .. math:: S_t = a_t S_{t-1} + b_t k_t (v_t - a_t S_{t-1}^\top k_t)^\top, \quad
              o_t = \mathrm{scale}\, S_t^\top q_t

    The bracket is what was wrong in the memory's answer to k_t, and k_t e_t^T is minus the gradient
    of 1/2 |S^T k_t - v_t|^2: every token is one step of gradient descent, of size b_t.
    Shapes: query, key (..., heads, N, D), value (..., heads, N, E); beta and log_decay numbers or
    tensors that broadcast to (..., heads, N); states (..., heads, D, E), zero to begin.
    `scale` is D ** -0.5 unless given. Half precision is computed in float32, and so is its state.

    Keys are taken as they are. With |k| = 1, 0 <= beta <= 2 and log_decay <= 0 no write lengthens
    what the state holds; beta = 1 stores the pair exactly, beta = 2 reflects (eigenvalue -1).
    Cost: time N 6 D E, in N steps that wait for each other; memory D E.
    Raises ValueError or TypeError naming the argument: shapes, beta outside 0 ... 2 and log_decay
    above 0 (both looked at for CPU tensors only, where looking costs nothing).
    Source: Schlag et al. (2021), section 4.2; with a decay, Yang et al. (2025), section 3.
    """
    query, key, value, beta, log_decay, state, scale, dtype = prepared(
        query, key, value, beta, log_decay, initial_state, scale
    )
    decay, reads = log_decay.exp(), []
    for t in range(key.shape[-2]):
        row = (..., slice(t, t + 1), slice(None))
        state = decay[..., t, None, None] * state
        error = value[row] - key[row] @ state
        state = state + beta[..., t, None, None] * key[row].mT @ error
        reads.append(scale * query[row] @ state)
    read = torch.cat(reads, dim=-2) if reads else value * 0
    return read.to(dtype), state


def delta_rule_parallel(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    beta: Given = 1.0,
    log_decay: Given = 0.0,
    initial_state: Float[Tensor, "*heads D E"] | None = None,
    scale: float | None = None,
) -> ReadAndState:
    r"""The same in one piece, with N x N matrices: the writes solve a triangular system.

    .. math:: (I + \mathrm{diag}(b) L)\, U = \mathrm{diag}(b) (V - \mathrm{diag}(e^c) K S_0),
              \qquad L_{ts} = e^{c_t - c_s} k_t \cdot k_s \ (s < t)

    Row t of U is u_t = b_t e_t, what is written at k_t; c_t sums the log decays up to t. Then it is
    linear attention with values u. Arguments, results and errors of `delta_rule_recurrent`.
    Cost: time N^2 (2 D + 2 E), memory N^2.
    Source: Yang et al. (2024), section 3, for one chunk as long as the sequence.
    """
    query, key, value, beta, log_decay, state, scale, dtype = prepared(
        query, key, value, beta, log_decay, initial_state, scale
    )
    from_start, between, to_end = decays(log_decay)
    remembered = from_start[..., None] * (key @ state)
    writes = solved(key, beta, between, beta[..., None] * (value - remembered))
    read = scale * (between * (query @ key.mT)) @ writes
    read = read + scale * from_start[..., None] * (query @ state)
    return read.to(dtype), next_state(state, key, writes, to_end, log_decay)


def delta_rule_chunked(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    beta: Given = 1.0,
    log_decay: Given = 0.0,
    initial_state: Float[Tensor, "*heads D E"] | None = None,
    scale: float | None = None,
    chunk: int = 64,
) -> ReadAndState:
    r"""The same in chunks of C tokens: dense inside a chunk, one state from chunk to chunk.

    .. math:: [\,TV,\ W\,] = (I + \mathrm{diag}(b) L)^{-1} \mathrm{diag}(b)\, [\,V,\ e^c K\,],
              \qquad U = TV - W S

    The inverse does not know the state S at the start of the chunk, so the systems of all chunks
    are solved at once; only U = TV - W S walks along the chunks. Arguments, results and errors of
    `delta_rule_recurrent`. Cost: time N (6 D E + 2 C (2 D + 2 E)), memory N (D + E) + N C.
    Source: Yang et al. (2024), section 3 (the WY form); with a decay, Yang et al. (2025).
    """
    check_count("chunk", chunk, least=1)
    query, key, value, beta, log_decay, state, scale, dtype = prepared(
        query, key, value, beta, log_decay, initial_state, scale
    )
    length, width = key.shape[-2:]
    if length == 0:
        return (value * 0).to(dtype), state
    chunk = min(chunk, length)
    query, key, value = (in_chunks(x, chunk) for x in (query, key, value))
    beta, log_decay = (in_chunks(x[..., None], chunk)[..., 0] for x in (beta, log_decay))
    from_start, between, to_end = decays(log_decay)

    right_side = torch.cat((value, from_start[..., None] * key), dim=-1)
    solution = solved(key, beta, between, beta[..., None] * right_side)
    new_values, corrections = solution.split((value.shape[-1], width), dim=-1)
    inside = scale * between * (query @ key.mT)
    onto_state = scale * from_start[..., None] * query

    reads = []
    for n in range(key.shape[-3]):
        writes = new_values[..., n, :, :] - corrections[..., n, :, :] @ state
        reads.append(inside[..., n, :, :] @ writes + onto_state[..., n, :, :] @ state)
        state = next_state(
            state, key[..., n, :, :], writes, to_end[..., n, :], log_decay[..., n, :]
        )
    return torch.cat(reads, dim=-2)[..., :length, :].to(dtype), state


def delta_rule_step(
    state: Float[Tensor, "*heads D E"] | None,
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    beta: Given = 1.0,
    log_decay: Given = 0.0,
    scale: float | None = None,
) -> ReadAndState:
    """(read, new state) for the next token, or the next few; pass None to begin.

    Token by token it gives the rows of the other forms. The state that came is left as it is.
    Cost: time 6 D E a token, whatever came before.
    """
    return delta_rule_recurrent(
        query, key, value, beta=beta, log_decay=log_decay, initial_state=state, scale=scale
    )


def decays(log_decay: Float[Tensor, "*heads N"]) -> tuple[Tensor, Tensor, Tensor]:
    """What is left of the start at token t; of token s at token t >= s (else 0); at the end."""
    column = log_decay[..., None]
    from_start, to_end = (part(column).exp()[..., 0] for part in (until, behind))
    return from_start, decay_between(column), to_end


def solved(key: Tensor, beta: Tensor, between: Tensor, right_side: Tensor) -> Tensor:
    """(I + diag(beta) L)^-1 right_side, with L strictly lower: by forward substitution."""
    below = (beta[..., None] * between * (key @ key.mT)).tril(-1)
    return torch.linalg.solve_triangular(below, right_side, upper=False, unitriangular=True)


def next_state(
    state: Tensor, key: Tensor, writes: Tensor, to_end: Tensor, log_decay: Tensor
) -> Float[Tensor, "*heads D E"]:
    """The state after the last of these tokens."""
    left = log_decay.sum(-1).exp()[..., None, None]
    return left * state + (to_end[..., None] * key).mT @ writes


def in_chunks(x: Float[Tensor, "*heads N X"], chunk: int) -> Float[Tensor, "*heads n C X"]:
    """Cut into chunks; what is missing of the last one is filled with zeros, which do nothing."""
    count = -(-x.shape[-2] // chunk)
    x = torch.nn.functional.pad(x, (0, 0, 0, count * chunk - x.shape[-2]))
    return x.unflatten(-2, (count, chunk))


def prepared(query, key, value, beta, log_decay, state, scale):
    """Everything checked and in the dtype of the sums; what is missing is filled in."""
    check_attention(query, key, value)
    if query.shape != key.shape:
        raise ValueError(
            f"query must have the shape of key, {tuple(key.shape)}, got {tuple(query.shape)}"
        )
    check_scale(scale)
    scale = max(query.shape[-1], 1) ** -0.5 if scale is None else scale
    beta = one_a_token("beta", beta, key, 0.0, LARGEST_BETA)
    log_decay = one_a_token("log_decay", log_decay, key, -torch.inf, 0.0)
    sums = torch.float32 if query.element_size() < 4 else query.dtype
    shape = (*key.shape[:-2], key.shape[-1], value.shape[-1])
    if state is None:
        state = torch.zeros(shape, dtype=sums, device=key.device)
    else:
        check_state(state, shape, query.dtype, sums)
    tensors = (query, key, value, beta, log_decay.clamp(min=SMALLEST_LOG_DECAY), state)
    return *(tensor.to(sums) for tensor in tensors), scale, query.dtype


def one_a_token(
    name: str, given: Given, key: Tensor, least: float, most: float
) -> Float[Tensor, "*heads N"]:
    """A number, or a tensor that broadcasts to one number a token, as (..., heads, N)."""
    if isinstance(given, bool) or not isinstance(given, Tensor | int | float):
        raise TypeError(f"{name} must be a number or a torch.Tensor, got {type(given).__name__}")
    if not isinstance(given, Tensor):
        given = torch.tensor(float(given), dtype=key.dtype, device=key.device)
    check_tensor(name, given)
    if given.dtype != torch.float32:  # in which half precision is summed
        check_dtype(name, given, key)
    if given.device.type == "cpu" and not ((given >= least) & (given <= most)).all():
        raise ValueError(
            f"{name} must lie in {least:g} ... {most:g}, got numbers from "
            f"{given.min().item():g} to {given.max().item():g}"
        )
    try:
        return given.broadcast_to(key.shape[:-1])
    except RuntimeError:
        raise ValueError(
            f"{name} must broadcast to {tuple(key.shape[:-1])}, one number a token, "
            f"got {tuple(given.shape)}"
        ) from None


def check_state(state: Tensor, shape: tuple, dtype: torch.dtype, sums: torch.dtype) -> None:
    """Check that a state has D rows of E numbers for each head."""
    check_tensor("initial_state", state)
    if state.dtype not in (dtype, sums):
        raise TypeError(f"initial_state must have dtype {sums}, got {state.dtype}")
    if tuple(state.shape) != shape:
        raise ValueError(f"initial_state must have shape {shape}, got {tuple(state.shape)}")
