"""Attention over a memory that learns at test time: the linear and the deep memory as operators."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize, pad

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.checks import check_attention, check_count
from attnlib.memory.inner_models import Weights, start_weights
from attnlib.memory.linear_memory import (
    linear_memory_chunked,
    linear_memory_read,
    linear_memory_recurrent,
    linear_memory_step,
)
from attnlib.memory.matrix_state import arithmetic_of
from attnlib.memory.memory_rates import Rate, rates_of
from attnlib.memory.neural_memory import (
    MemoryState,
    deep_memory_chunked,
    deep_memory_recurrent,
    deep_memory_step,
    memory_read,
)

TAXONOMY = Taxonomy(
    sequences="self", levels="single", positions="soft", representations="multi-head"
)
SHARED = {
    "key_invariant": False,
    "normalized": False,
    "positive": False,
    "grouped_query": False,
    "padding": False,
    "constant_state": True,
}
HIDDEN = 32
"""The hidden width of a deep memory unless its weights are given."""


def some_rates(query: Tensor, key: Tensor, value: Tensor) -> dict[str, Tensor | int]:
    """For a trial: a rate, a momentum, a forgetting, and mini-batches of three tokens."""
    theta, eta, alpha = torch.tensor([[0.3], [0.4], [0.05]], dtype=key.dtype)
    return {"theta": theta, "eta": eta, "alpha": alpha, "mini_batch": 3}


def some_small_rates(query: Tensor, key: Tensor, value: Tensor) -> dict[str, Tensor | int]:
    """For a trial of a deep memory, whose hidden units bend the loss more than a unit key does."""
    given = some_rates(query, key, value)
    return {**given, "theta": given["theta"] / 30}


# ---- the linear memory


def linear_memory_oracle(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    value: Float[Tensor, "*heads M E"],
    *,
    theta: Rate,
    eta: Rate = 0.0,
    alpha: Rate = 0.0,
    mini_batch: int = 1,
    is_causal: bool = False,
    query_offset: int = 0,
) -> Float[Tensor, "*heads N E"]:
    """The definition: one token after the other, every memory made."""
    query, key = normalize(query, dim=-1), normalize(key, dim=-1)

    def run(query: Tensor) -> tuple[Tensor, MemoryState]:
        return linear_memory_recurrent(
            query,
            key,
            value,
            theta=theta,
            eta=eta,
            alpha=alpha,
            mini_batch=mini_batch,
            scale=1.0,
        )

    return read_in_order(run, linear_memory_read, query, key, is_causal, query_offset)


def linear_memory_attention_step(
    state: MemoryState | None,
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    theta: Rate = 0.2,
    eta: Rate = 0.5,
    alpha: Rate = 0.01,
    mini_batch: int = 1,
) -> tuple[Float[Tensor, "*heads N E"], MemoryState]:
    """(read, new state) of the operator for the next token or tokens; pass None to begin."""
    dtype = query.dtype
    query, key, value, theta, eta, alpha = of_unit_length(query, key, value, theta, eta, alpha)
    read, state = linear_memory_step(
        state,
        query,
        key,
        value,
        theta=theta,
        eta=eta,
        alpha=alpha,
        mini_batch=mini_batch,
        scale=1.0,
    )
    return read.to(dtype), state


@mechanism(
    key="titans-linear-memory",
    paper="titans-neural-memory",
    chapter="7-memory/test-time-memory",
    section="surprise-momentum-forgetting",
    step="memory",
    idea="a matrix that learns each pair by a gradient step with momentum and weight decay",
    equation=(
        r"S_t = \eta_t S_{t-1} - \theta_t k_t (k_t^\top M_{t-1} - v_t^\top), \quad "
        r"M_t = (1 - \alpha_t) M_{t-1} + S_t, \quad o_t = M_t^\top q_t"
    ),
    cost="time N (6 D E + 2 C (D + E) + C^2), memory N (D + E) + C^2, state 3 D E",
    oracle=linear_memory_oracle,
    recurrent=linear_memory_attention_step,
    promises=Promises(**SHARED, arguments=some_rates),
    taxonomy=TAXONOMY,
)
def linear_memory_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    value: Float[Tensor, "*heads M E"],
    *,
    theta: Rate = 0.2,
    eta: Rate = 0.5,
    alpha: Rate = 0.01,
    mini_batch: int = 1,
    is_causal: bool = False,
    query_offset: int = 0,
    chunk: int = 64,
) -> Float[Tensor, "*heads N E"]:
    r"""Attention over a matrix that learns at test time, with momentum and forgetting (Titans).

    Queries and keys are made unit vectors first. theta is the rate, eta the momentum, alpha the
    forgetting, numbers or tensors that broadcast to (..., heads, M). With `is_causal` query i reads
    the memory after key i + `query_offset`, else the one after all keys. There is no scale.
    `mini_batch` tokens take their gradients at one memory, which changes what is learnt; `chunk`
    tokens are computed together, which changes nothing.
    Shapes, errors and the stability of theta as in `linear_memory.linear_memory_recurrent`.
    Cost: time M (6 D E + 2 C (D + E) + C^2), memory M (D + E) + C^2; state 3 D E for each head.
    Source: Behrouz et al. (2025), section 3.1, with a linear memory. Chapter 7.2.
    """
    dtype = query.dtype if isinstance(query, Tensor) else None
    query, key, value, theta, eta, alpha = of_unit_length(query, key, value, theta, eta, alpha)
    check_count("query_offset", query_offset)

    def run(query: Tensor) -> tuple[Tensor, MemoryState]:
        return linear_memory_chunked(
            query,
            key,
            value,
            theta=theta,
            eta=eta,
            alpha=alpha,
            mini_batch=mini_batch,
            scale=1.0,
            chunk=chunk,
        )

    return read_in_order(run, linear_memory_read, query, key, is_causal, query_offset).to(dtype)


# ---- the deep memory


def deep_memory_oracle(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    value: Float[Tensor, "*heads M E"],
    *,
    theta: Rate,
    eta: Rate = 0.0,
    alpha: Rate = 0.0,
    mini_batch: int = 16,
    is_causal: bool = False,
    query_offset: int = 0,
) -> Float[Tensor, "*heads N E"]:
    """The definition: one token after the other, every memory made."""
    query, key = normalize(query, dim=-1), normalize(key, dim=-1)
    weights = fresh_weights(key, value)

    def run(query: Tensor) -> tuple[Tensor, MemoryState]:
        return deep_memory_recurrent(
            query,
            key,
            value,
            weights=weights,
            theta=theta,
            eta=eta,
            alpha=alpha,
            mini_batch=mini_batch,
        )

    return read_in_order(run, memory_read, query, key, is_causal, query_offset)


def neural_memory_attention_step(
    state: MemoryState | None,
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    weights: Weights | None = None,
    theta: Rate = 0.005,
    eta: Rate = 0.5,
    alpha: Rate = 0.0,
    mini_batch: int = 16,
) -> tuple[Float[Tensor, "*heads N E"], MemoryState]:
    """(read, new state) of the operator for the next token or tokens; pass None to begin."""
    dtype = query.dtype
    query, key, value, theta, eta, alpha = of_unit_length(query, key, value, theta, eta, alpha)
    read, state = deep_memory_step(
        state,
        query,
        key,
        value,
        weights=fresh_weights(key, value) if weights is None else weights,
        theta=theta,
        eta=eta,
        alpha=alpha,
        mini_batch=mini_batch,
    )
    return read.to(dtype), state


@mechanism(
    key="titans-neural-memory",
    paper="titans-neural-memory",
    chapter="7-memory/test-time-memory",
    section="deep-memory",
    step="memory",
    idea="a perceptron that learns each pair by a gradient step with momentum and weight decay",
    equation=(
        r"S_t = \eta_t S_{t-1} - \theta_t \nabla \tfrac12 |M_{t'}(k_t) - v_t|^2, \quad "
        r"M_t = (1 - \alpha_t) M_{t-1} + S_t, \quad o_t = M_t(q_t)"
    ),
    cost="time 6 N P + 2 N C (D + 2 R + E) for P = R (D + E), memory N C, state 3 P",
    oracle=deep_memory_oracle,
    recurrent=neural_memory_attention_step,
    promises=Promises(**SHARED, linear_in_values=False, arguments=some_small_rates),
    taxonomy=TAXONOMY,
)
def neural_memory_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    value: Float[Tensor, "*heads M E"],
    *,
    weights: Weights | None = None,
    theta: Rate = 0.005,
    eta: Rate = 0.5,
    alpha: Rate = 0.0,
    mini_batch: int = 16,
    is_causal: bool = False,
    query_offset: int = 0,
) -> Float[Tensor, "*heads N E"]:
    r"""Attention over a perceptron that learns at test time (Titans' neural memory).

    `weights` are its matrices before the first key; unless given, two with 32 hidden units, the
    same for every head and call, the second of them zero. All else as in `linear_memory_attention`,
    except that every mini-batch is computed at once, there is no other chunk, and nothing is
    forgotten unless alpha is given: a deep memory that has faded to zero cannot learn again. The
    stability of a deep memory has no bound in closed form: theta |h|^2 < 2 for the hidden units h
    is a guide, and a memory that has diverged raises ValueError (CPU tensors).
    Cost: time 6 M P + 2 M C (D + 2 R + E) for C = `mini_batch` and P = R (D + E) numbers of the
    memory, memory M C; state 3 P for each head.
    Source: Behrouz et al. (2025), section 3; there with residuals and convolutions. Chapter 7.2.
    """
    dtype = query.dtype if isinstance(query, Tensor) else None
    query, key, value, theta, eta, alpha = of_unit_length(query, key, value, theta, eta, alpha)
    check_count("query_offset", query_offset)
    weights = fresh_weights(key, value) if weights is None else weights

    def run(query: Tensor) -> tuple[Tensor, MemoryState]:
        return deep_memory_chunked(
            query,
            key,
            value,
            weights=weights,
            theta=theta,
            eta=eta,
            alpha=alpha,
            mini_batch=mini_batch,
        )

    return read_in_order(run, memory_read, query, key, is_causal, query_offset).to(dtype)


# ---- what both share


def fresh_weights(key: Tensor, value: Tensor) -> Weights:
    """The matrices of a deep memory with nothing in it, always the same for the same widths."""
    drawn = start_weights(
        key.shape[-1], HIDDEN, value.shape[-1], generator=torch.Generator().manual_seed(0)
    )
    return tuple(matrix.to(key) for matrix in drawn)


def of_unit_length(query, key, value, theta, eta=0.0, alpha=0.0, *, name="theta"):
    """Queries and keys as unit vectors, everything checked and in the dtype of the sums."""
    check_attention(query, key, value)
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"key must have the width of query, {query.shape[-1]}, got {key.shape[-1]}"
        )
    sums = arithmetic_of(query.dtype)
    rates = (rate.to(sums) for rate in rates_of(theta, eta, alpha, key, name=name))
    query, key = (normalize(x.to(sums), dim=-1) for x in (query, key))
    return query, key, value.to(sums), *rates


def read_in_order(
    run: Callable[[Tensor], tuple[Tensor, MemoryState]],
    read_at_end: Callable[[MemoryState, Tensor], Tensor],
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    is_causal: bool,
    query_offset: int,
) -> Float[Tensor, "*heads N E"]:
    """Every query at its key where there is one, else at the memory after the last key.

    `run(queries)` writes all keys and reads one query a key.
    """
    keys, queries = key.shape[-2], query.shape[-2]
    first = min(query_offset, keys) if is_causal else keys
    inside = min(queries, keys - first)
    at_keys = pad(query[..., :inside, :], (0, 0, first, keys - first - inside))
    read, state = run(at_keys)
    after = read_at_end(state, query[..., inside:, :])
    return torch.cat((read[..., first : first + inside, :], after), dim=-2)
