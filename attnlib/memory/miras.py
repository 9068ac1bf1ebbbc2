"""Miras: one loop for memories that learn at test time, and what its four choices make of it.

    g_t = gradient of loss(W_{t-1}; k_t, v_t)      S_t = momentum S_{t-1} - rate g_t
    A_t = keep A_{t-1} + S_t                       W_t = retention(A_t)

and the read is W_t's answer to q_t. The choices are in `attnlib.memory.miras_choices`, three
settings of them as operators of attention in `attnlib.memory.miras_attention`.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from attnlib.checks import check_count
from attnlib.memory.delta_rule import one_a_token
from attnlib.memory.matrix_state import arithmetic_of, check_recurrent
from attnlib.memory.memory_rates import check_stable
from attnlib.memory.miras_choices import (
    Architecture,
    Bias,
    LinearMemory,
    Parameters,
    Retention,
    dot_product_bias,
    euclidean_retention,
    huber_bias,
    norm_retention,
    power_bias,
    softmax_retention,
    squared_bias,
)

Gate = Float[Tensor, "*#heads #N"] | float
"""A number, or a tensor that broadcasts to one number a token."""


class MirasState(NamedTuple):
    """What a memory carries from token to token: constant in size."""

    accumulated: Parameters
    """A: what retention turns into the memory W."""
    surprise: Parameters
    """S: the running step, zero without momentum."""


@dataclass(frozen=True)
class Miras:
    """Three of the four choices; the fourth, momentum or none, is an argument of the loop."""

    bias: Bias = squared_bias
    retention: Retention = euclidean_retention
    architecture: Architecture = field(default_factory=LinearMemory)

    def memory(self, accumulated: Parameters) -> Parameters:
        """The memory W that belongs to the accumulated gradients A, matrix by matrix."""
        return tuple(self.retention(part) for part in accumulated)

    def start(self, key: Tensor, value: Tensor) -> MirasState:
        """The state before the first token."""
        accumulated = self.architecture.start(key, value)
        return MirasState(accumulated, tuple(torch.zeros_like(part) for part in accumulated))


LINEAR_ATTENTION = Miras(bias=dot_product_bias)
"""rate 1, keep 1: linear attention; keep a < 1: the decayed state."""
DELTA_RULE = Miras()
"""rate b: the delta rule; with momentum eta and keep 1 - alpha: Titans with a linear memory.
With keep a, rate a b and values v / a: the gated delta rule, which forgets before it looks."""


def moneta(p: float = 3.0, q: float = 4.0) -> Miras:
    """Loss l_p, retention l_q (Behrouz et al., 2025, section 5.3; there p = 3, q = 4)."""
    return Miras(bias=power_bias(p), retention=norm_retention(q))


def yaad(delta: float = 1.0) -> Miras:
    """Huber's loss, plain retention (Behrouz et al., 2025, equation 15)."""
    return Miras(bias=huber_bias(delta))


def memora(mass: float = 1.0) -> Miras:
    """Squared loss, retention by a softmax (Behrouz et al., 2025, section 5.3, equation 27)."""
    return Miras(retention=softmax_retention(mass))


def miras_recurrent(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    choices: Miras = DELTA_RULE,
    *,
    rate: Gate = 1.0,
    keep: Gate = 1.0,
    momentum: Gate = 0.0,
    initial_state: MirasState | None = None,
    scale: float = 1.0,
) -> tuple[Float[Tensor, "*heads N E"], MirasState]:
    r"""(read, final state) of the loop, one token after the other: the definition.

    .. math:: S_t = \eta_t S_{t-1} - \theta_t \nabla \ell(W_{t-1}; k_t, v_t), \quad
              A_t = a_t A_{t-1} + S_t, \quad W_t = R(A_t), \quad
              o_t = \mathrm{scale}\; W_t(q_t)

    with theta = `rate` >= 0, a = `keep` and eta = `momentum` in 0 ... 1, each a number or one a
    token. Keys are taken as they are. Shapes: query, key (..., heads, N, D), value (..., heads, N,
    E); the state holds two of each matrix of the memory. Half precision is summed in float32.

    For the squared loss, a linear memory and no momentum a step is stable where rate |k|^2 <= 2;
    with momentum where rate |k|^2 <= 2 (1 + momentum). Cost: time 6 D E a token for a linear
    memory, in N steps that wait for each other.
    Raises ValueError or TypeError naming the argument, and ValueError where the memory diverges.
    Source: Behrouz et al. (2025), Miras, sections 3 to 5; momentum, Titans (2025), equation 10.
    """
    query, key, value, gates, state, dtype = prepared_miras(
        query, key, value, choices, (rate, keep, momentum), initial_state
    )
    architecture, reads = choices.architecture, [value[..., :0, :]]
    for t in range(key.shape[-2]):
        row = (..., slice(t, t + 1), slice(None))
        rate, keep, momentum = (gate[..., t, None, None] for gate in gates)
        memory = choices.memory(state.accumulated)
        slope = choices.bias(architecture.answer(memory, key[row]), value[row])
        gradient = architecture.gradient(memory, key[row], slope)
        surprise = tuple(
            momentum * old - rate * new[..., 0, :, :]
            for old, new in zip(state.surprise, gradient, strict=True)
        )
        accumulated = tuple(
            keep * old + step for old, step in zip(state.accumulated, surprise, strict=True)
        )
        state = MirasState(accumulated, surprise)
        reads.append(scale * architecture.answer(choices.memory(accumulated), query[row]))
    check_converged(state)
    return torch.cat(reads, dim=-2).to(dtype), state


def miras_step(
    state: MirasState | None,
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    choices: Miras = DELTA_RULE,
    **options,
) -> tuple[Float[Tensor, "*heads N E"], MirasState]:
    """(read, new state) for the next token, or the next few; pass None to begin.

    The state that came is left as it is. Options as in `miras_recurrent`.
    """
    return miras_recurrent(query, key, value, choices, initial_state=state, **options)


def miras_chunked(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    choices: Miras = DELTA_RULE,
    *,
    rate: Gate = 1.0,
    keep: Gate = 1.0,
    momentum: Gate = 0.0,
    initial_state: MirasState | None = None,
    scale: float = 1.0,
    chunk: int = 16,
) -> tuple[Float[Tensor, "*heads N E"], MirasState]:
    r"""The loop with the gradients of C tokens taken at once, at the memory before the chunk.

    .. math:: g_t = \nabla \ell(W_{t'}; k_t, v_t), \qquad t' = \text{the last token of the chunk
              before}

    With `chunk` = 1 it is the loop itself; with more it is another, faster learner: a token does
    not see what the tokens of its own chunk have written. For `LINEAR_ATTENTION`, whose slope asks
    no memory, every chunk gives the same. Arguments and errors of `miras_recurrent`.
    Cost: time 6 D E a token, in N / C steps; memory C D E.
    Source: Behrouz et al. (2025), Miras, equation 28.
    """
    check_count("chunk", chunk, least=1)
    query, key, value, gates, state, dtype = prepared_miras(
        query, key, value, choices, (rate, keep, momentum), initial_state
    )
    reads = [value[..., :0, :]]
    for start in range(0, key.shape[-2], chunk):
        part = slice(start, start + chunk)
        memories, state = one_chunk(
            choices,
            state,
            key[..., part, :],
            value[..., part, :],
            *(gate[..., part] for gate in gates),
        )
        rows = choices.architecture.answer(memories, query[..., part, None, :])
        reads.append(scale * rows[..., 0, :])
    check_converged(state)
    return torch.cat(reads, dim=-2).to(dtype), state


def one_chunk(
    choices: Miras,
    state: MirasState,
    key: Float[Tensor, "*heads C D"],
    value: Float[Tensor, "*heads C E"],
    rate: Float[Tensor, "*heads C"],
    keep: Float[Tensor, "*heads C"],
    momentum: Float[Tensor, "*heads C"],
) -> tuple[Parameters, MirasState]:
    """(the memory after each of C tokens, the state after the last)."""
    before = choices.memory(state.accumulated)
    slope = choices.bias(choices.architecture.answer(before, key), value)
    gradients = choices.architecture.gradient(before, key, rate[..., None] * slope)
    accumulated, surprise = list(state.accumulated), list(state.surprise)
    after = []
    for i, gradient in enumerate(gradients):
        rows = []
        for t in range(key.shape[-2]):
            surprise[i] = momentum[..., t, None, None] * surprise[i] - gradient[..., t, :, :]
            accumulated[i] = keep[..., t, None, None] * accumulated[i] + surprise[i]
            rows.append(accumulated[i])
        after.append(torch.stack(rows, dim=-3))
    return choices.memory(tuple(after)), MirasState(tuple(accumulated), tuple(surprise))


def prepared_miras(query, key, value, choices, gates, state):
    """Everything checked and in the dtype of the sums; what is missing is filled in."""
    check_recurrent(query, key, value)
    names_and_most = (("rate", torch.inf), ("keep", 1.0), ("momentum", 1.0))
    sums = arithmetic_of(query.dtype)
    gates = tuple(
        one_a_token(name, gate, key, 0.0, most).to(sums)
        for (name, most), gate in zip(names_and_most, gates, strict=True)
    )
    dtype = query.dtype
    query, key, value = (tensor.to(sums) for tensor in (query, key, value))
    if choices.bias is squared_bias and choices.retention is euclidean_retention:
        rate, keep, momentum = gates
        if isinstance(choices.architecture, LinearMemory):
            check_stable(key, rate, momentum, 1 - keep, name="rate")
    empty = choices.start(key, value)
    if state is None:
        state = empty
    check_miras_state(state, empty)
    return query, key, value, gates, state, dtype


def check_miras_state(state: MirasState, expected: MirasState) -> None:
    """Check that a state fits the choices, the keys and the values."""
    if not isinstance(state, MirasState):
        raise TypeError(f"initial_state must be a MirasState, got {type(state).__name__}")
    came, wanted = ([tuple(part.shape) for part in one.accumulated] for one in (state, expected))
    if came != wanted:
        raise ValueError(f"initial_state must hold matrices of shape {wanted}, got {came}")


def check_converged(state: MirasState) -> None:
    """Raise ValueError where a memory on a CPU is no longer made of finite numbers."""
    for part in state.accumulated:
        if part.device.type == "cpu" and not part.isfinite().all():
            raise ValueError(
                "rate must be smaller: the memory diverged. For the squared loss without momentum "
                "rate |k|^2 must be at most 2"
            )
