"""Attention over the three memories of Miras: Moneta, Yaad and Memora, with a linear memory."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.checks import check_scale
from attnlib.memory.matrix_state import arithmetic_of, check_recurrent
from attnlib.memory.miras import (
    Gate,
    Miras,
    MirasState,
    memora,
    miras_recurrent,
    moneta,
    yaad,
)

PROMISES = Promises(
    cross=False,
    query_equivariant=False,
    key_invariant=False,
    linear_in_values=False,
    normalized=False,
    positive=False,
    grouped_query=False,
    padding=False,
    constant_state=True,
)
FILED = {
    "chapter": "7-memory/test-time-memory",
    "section": "four-choices",
    "paper": "miras",
    "step": "memory",
    "cost": "time N 6 D E, state 2 D E",
    "promises": PROMISES,
    "taxonomy": Taxonomy("self", "single", "soft", "multi-head"),
}

ReadAndState = tuple[Float[Tensor, "*heads N E"], MirasState]


def moneta_step(
    state: MirasState | None,
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    p: float = 3.0,
    q: float = 4.0,
    rate: Gate = 1.0,
    keep: Gate = 1.0,
    scale: float | None = None,
) -> ReadAndState:
    """(read, new state) of `moneta_attention` for the next token or tokens; None to begin."""
    return unit_miras(state, query, key, value, moneta(p, q), rate, keep, scale)


@mechanism(
    key="moneta",
    idea="a memory that learns by the l_p norm of its error and is kept small in an l_q norm",
    equation=(
        r"A_t = a A_{t-1} - \theta \nabla \ell_p(W_{t-1}; k_t, v_t),"
        r" \; W_t = A_t / \|A_t\|_q^{q-2}"
    ),
    recurrent=moneta_step,
    **FILED,
)
def moneta_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    p: float = 3.0,
    q: float = 4.0,
    rate: Gate = 1.0,
    keep: Gate = 1.0,
    is_causal: bool = True,
    scale: float | None = None,
) -> Float[Tensor, "*heads N E"]:
    r"""Attention over a memory whose loss is an l_p norm and whose retention is an l_q norm.

    Queries and keys are made unit vectors first. p = q = 2 is the delta rule with beta = `rate`
    and, through `keep`, forgetting after each look; 1 <= p < 2 hears outliers less. `scale` is
    D ** -0.5 unless given. Shapes: query, key (..., heads, N, D), value (..., heads, N, E); the
    state, of two matrices, never grows. Cost: time 6 D E a token, one after the other.
    Raises ValueError for p < 1, q < 2, gates out of range and a rate at which the memory diverges.
    Source: Behrouz et al. (2025), Miras, section 5.3, equations 24 and 25, there with a memory of
    two layers. Chapter 7.2.
    """
    check_recurrent(query, key, value, is_causal)
    return moneta_step(None, query, key, value, p=p, q=q, rate=rate, keep=keep, scale=scale)[0]


def yaad_step(
    state: MirasState | None,
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    delta: float = 1.0,
    rate: Gate = 1.0,
    keep: Gate = 1.0,
    scale: float | None = None,
) -> ReadAndState:
    """(read, new state) of `yaad_attention` for the next token or tokens; None to begin."""
    check_rate_of_squares(rate)
    return unit_miras(state, query, key, value, yaad(delta), rate, keep, scale)


@mechanism(
    key="yaad",
    idea="a memory that learns from the size of small errors and the direction of large ones",
    equation=(
        r"W_t = a W_{t-1} - \theta\, k_t\, (e_t \min(1, \delta / |e_t|))^\top,"
        r" \; e_t = W_{t-1}^\top k_t - v_t"
    ),
    recurrent=yaad_step,
    **FILED,
)
def yaad_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    delta: float = 1.0,
    rate: Gate = 1.0,
    keep: Gate = 1.0,
    is_causal: bool = True,
    scale: float | None = None,
) -> Float[Tensor, "*heads N E"]:
    r"""Attention over a memory whose loss is Huber's: the delta rule with errors cut to `delta`.

    No single value moves the memory by more than rate * delta. With delta = infinity it is the
    delta rule. `rate` lies in 0 ... 2, the bound of stability for unit keys. All else as in
    `moneta_attention`.
    Source: Behrouz et al. (2025), Miras, section 5.3 and equation 15; equation 26 cuts
    each coordinate of the error to its sign, this one its length. Chapter 7.2.
    """
    check_recurrent(query, key, value, is_causal)
    return yaad_step(None, query, key, value, delta=delta, rate=rate, keep=keep, scale=scale)[0]


def memora_step(
    state: MirasState | None,
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    mass: float = 1.0,
    rate: Gate = 1.0,
    keep: Gate = 1.0,
    scale: float | None = None,
) -> ReadAndState:
    """(read, new state) of `memora_attention` for the next token or tokens; None to begin."""
    return unit_miras(state, query, key, value, memora(mass), rate, keep, scale)


@mechanism(
    key="memora",
    idea="a memory whose columns are probabilities: a step multiplies where others add",
    equation=(
        r"W_t = c\, \mathrm{softmax}(a \log W_{t-1} - \theta \nabla \ell_2(W_{t-1}; k_t, v_t))"
    ),
    recurrent=memora_step,
    **FILED,
)
def memora_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    mass: float = 1.0,
    rate: Gate = 1.0,
    keep: Gate = 1.0,
    is_causal: bool = True,
    scale: float | None = None,
) -> Float[Tensor, "*heads N E"]:
    r"""Attention over a memory kept by a softmax: each column is positive and sums to `mass`.

    The memory starts uniform and can answer no more than a mean of the entries of a key, times
    mass. A step never leaves the simplex, so no rate diverges. All else as in `moneta_attention`.
    Source: Behrouz et al. (2025), Miras, section 5.3, equations 21 and 27, there with a memory of
    two layers. Chapter 7.2.
    """
    check_recurrent(query, key, value, is_causal)
    return memora_step(None, query, key, value, mass=mass, rate=rate, keep=keep, scale=scale)[0]


def unit_miras(
    state: MirasState | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    choices: Miras,
    rate: Gate,
    keep: Gate,
    scale: float | None,
) -> ReadAndState:
    """The loop with unit queries and keys, in the dtype of sums."""
    check_recurrent(query, key, value)
    check_scale(scale)
    dtype, sums = query.dtype, arithmetic_of(query.dtype)
    scale = max(query.shape[-1], 1) ** -0.5 if scale is None else scale
    query, key = (normalize(x.to(sums), dim=-1) for x in (query, key))
    rate, keep = (gate.to(sums) if isinstance(gate, Tensor) else gate for gate in (rate, keep))
    read, state = miras_recurrent(
        query,
        key,
        value.to(sums),
        choices,
        rate=rate,
        keep=keep,
        initial_state=state,
        scale=scale,
    )
    return read.to(dtype), state


def check_rate_of_squares(rate: Gate) -> None:
    """Check that a rate is at most 2, the bound of stability for unit keys."""
    largest = rate.max().item() if isinstance(rate, Tensor) and rate.numel() else rate
    if isinstance(largest, int | float) and largest > 2:
        raise ValueError(f"rate must be at most 2 for unit keys, got {largest}")
