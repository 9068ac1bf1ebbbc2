"""The Hebbian memory: a sum of outer products, what it holds, and how conditioning differs."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.checks import check_attention, check_count, check_scale, check_tensor
from attnlib.memory.matrix_state import (
    arithmetic_of,
    check_recurrent,
    check_state,
    empty_state,
)


def hebbian_write(
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    state: Float[Tensor, "*heads D E"] | None = None,
) -> Float[Tensor, "*heads D E"]:
    r"""The memory with N more pairs in it; without a state it begins empty.

    .. math:: S' = S + \sum_s k_s v_s^\top

    What fires together is wired together: no write looks at what the memory holds already.
    Shapes: key (..., N, D), value (..., N, E), state (..., D, E). Cost: time N D E.
    Raises ValueError or TypeError naming the argument that does not fit.
    Source: Qiao (2025), there as S = sum_i v_i k_i^T.
    """
    check_tensor("key", key)
    check_attention(key, key, value)
    if state is None:
        state = empty_state(key, value)
    check_state("state", state, key, value)
    return state + key.to(state.dtype).mT @ value.to(state.dtype)


def hebbian_read(
    query: Float[Tensor, "*heads N D"], memory: Float[Tensor, "*heads D E"]
) -> Float[Tensor, "*heads N E"]:
    r"""What the memory answers: o = S^T q. The memory is left as it is. Cost: time N D E.

    Raises ValueError for None, a memory that is read before it is written.
    """
    if memory is None:
        raise ValueError("memory must hold something: it is read before it is written, got None")
    check_tensor("memory", memory)
    check_tensor("query", query)
    if memory.dim() < 2 or query.dim() < 2 or memory.shape[-2] != query.shape[-1]:
        raise ValueError(
            f"memory must have one row for each of the numbers of query {tuple(query.shape)}, "
            f"got shape {tuple(memory.shape)}"
        )
    return (query.to(memory.dtype) @ memory).to(query.dtype)


# ---- how much it holds


def random_unit_keys(
    pairs: int, width: int, *, generator: torch.Generator
) -> Float[Tensor, "pairs width"]:
    """Keys of length one in random directions, in float64."""
    check_count("pairs", pairs)
    check_count("width", width, least=1)
    drawn = torch.randn(pairs, width, generator=generator, dtype=torch.float64)
    return normalize(drawn, dim=-1)


def orthogonal_keys(
    pairs: int, width: int, *, generator: torch.Generator
) -> Float[Tensor, "pairs width"]:
    """Keys of length one at right angles to each other, in float64.

    Raises ValueError for more pairs than the width has directions.
    """
    check_count("width", width, least=1)
    check_count("pairs", pairs)
    if pairs > width:
        raise ValueError(f"pairs must be at most the width {width}, got {pairs}")
    square = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(square).Q[:pairs]


def lookup_error(
    memory: Float[Tensor, "*heads D E"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
) -> Float[Tensor, "*heads"]:
    r"""How wrong the memory's answers are: sum |S^T k - v|^2 / sum |v|^2, one a head."""
    wrong = hebbian_read(key, memory) - value
    return wrong.square().sum((-2, -1)) / value.square().sum((-2, -1))


def expected_lookup_error(pairs: int, width: int) -> float:
    r"""The error of a Hebbian memory with random unit keys: (n - 1) / d.

    The memory answers k_i with v_i + sum_(j != i) (k_j . k_i) v_j. For independent directions
    E (k_j . k_i)^2 = 1 / d, so each of the n - 1 other values adds 1 / d of a value's square.
    Raises ValueError for no pairs or no width.
    """
    check_count("pairs", pairs, least=1)
    check_count("width", width, least=1)
    return (pairs - 1) / width


# ---- conditioning: what a stimulus comes to predict


def hebbian_conditioning(
    present: Float[Tensor, "T cues"], outcome: Float[Tensor, " T"], *, rate: float
) -> Float[Tensor, "T_plus_1 cues"]:
    r"""The strength of each cue before the first trial and after each: V += rate x lambda.

    `present` says which cues are there on a trial (1 or 0), `outcome` what follows (lambda). No
    cue looks at what is predicted already. Cost: time T cues.
    Raises ValueError or TypeError naming the argument.
    """
    _check_trials(present, outcome, rate)
    gains = rate * present * outcome[:, None]
    return torch.cat((torch.zeros_like(gains[:1]), gains.cumsum(dim=0)))


def rescorla_wagner(
    present: Float[Tensor, "T cues"], outcome: Float[Tensor, " T"], *, rate: float
) -> Float[Tensor, "T_plus_1 cues"]:
    r"""The same, where a trial teaches only what is not yet predicted.

    .. math:: V_t = V_{t-1} + \mathrm{rate}\; x_t (\lambda_t - x_t \cdot V_{t-1})

    All cues of a trial share one error, so a cue that predicts the outcome already leaves nothing
    to learn for another (blocking). It is the delta rule with values of width one.
    Arguments, cost and errors as in `hebbian_conditioning`, and ValueError where a trial overshoots
    more than it corrects, rate |x|^2 > 2.
    Source: Rescorla and Wagner (1972); the rule, Widrow and Hoff (1960).
    """
    _check_trials(present, outcome, rate)
    most = rate * float(present.square().sum(-1).max())
    if most > 2:
        raise ValueError(f"rate must keep rate |x|^2 <= 2 in every trial, got {most:.3g}")
    strengths = [torch.zeros_like(present[0])]
    for x, wanted in zip(present, outcome, strict=True):
        before = strengths[-1]
        strengths.append(before + rate * x * (wanted - x @ before))
    return torch.stack(strengths)


def _check_trials(present: Tensor, outcome: Tensor, rate: float) -> None:
    check_tensor("present", present)
    check_tensor("outcome", outcome)
    if present.dim() != 2 or present.shape[0] == 0:
        raise ValueError(f"present must have shape (trials, cues), got {tuple(present.shape)}")
    if outcome.shape != present.shape[:1]:
        raise ValueError(
            f"outcome must have one number a trial, shape {tuple(present.shape[:1])}, "
            f"got {tuple(outcome.shape)}"
        )
    if not 0 < rate < math.inf:
        raise ValueError(f"rate must be positive and finite, got {rate}")


# ---- the memory as an operator of attention


def hebbian_oracle(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    value: Float[Tensor, "*heads M E"],
    *,
    is_causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
) -> Float[Tensor, "*heads N E"]:
    """The scores themselves as weights: (scale Q K^T) V, with the future left out."""
    scale = max(query.shape[-1], 1) ** -0.5 if scale is None else scale
    scores = scale * query @ key.mT
    return (scores.tril(query_offset) if is_causal else scores) @ value


def hebbian_attention_step(
    state: Float[Tensor, "*heads D E"] | None,
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    scale: float | None = None,
) -> tuple[Float[Tensor, "*heads N E"], Float[Tensor, "*heads D E"]]:
    """(read, new state) for the next token or tokens; pass None to begin. Cost: time N D E."""
    check_recurrent(query, key, value)
    check_scale(scale)
    dtype = query.dtype
    scale = max(query.shape[-1], 1) ** -0.5 if scale is None else scale
    query = scale * query.to(arithmetic_of(dtype))
    reads = []
    for t in range(key.shape[-2]):
        row = (..., slice(t, t + 1), slice(None))
        state = hebbian_write(key[row], value[row], state=state)
        reads.append(hebbian_read(query[row], state))
    if not reads:
        return value * 0, empty_state(key, value) if state is None else state
    return torch.cat(reads, dim=-2).to(dtype), state


@mechanism(
    key="pavlovian-attention",
    paper="pavlovian-attention",
    chapter="7-memory/test-time-memory",
    section="a-sum-of-outer-products",
    step="memory",
    idea="keys condition values by a sum of outer products; queries are test stimuli",
    equation=r"S = \sum_j k_j v_j^\top, \quad o_i = \mathrm{scale}\, S^\top q_i",
    cost="time (N + M) D E, causal with chunks of C more C N (D + E); state D E",
    oracle=hebbian_oracle,
    recurrent=hebbian_attention_step,
    promises=Promises(
        normalized=False,
        positive=False,
        grouped_query=False,
        padding=False,
        constant_state=True,
        score_range=1e3,
    ),
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def hebbian_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    value: Float[Tensor, "*heads M E"],
    *,
    is_causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
    chunk: int = 64,
) -> Float[Tensor, "*heads N E"]:
    r"""Attention without a weight step: the read of a sum of outer products.

    .. math:: o_i = \mathrm{scale} \sum_{j \in S_i} (q_i \cdot k_j)\, v_j

    Queries and keys are taken as they are; `scale` is D ** -0.5 unless given. Half precision is
    summed in float32, and holds reads up to its own largest number: scores to 1e3 are safe.
    Shapes: as in `attnlib.attend`. Cost: time M D E for the writes and N D E for
    the reads; with `is_causal` the keys are written in chunks of C = `chunk`, and memory is
    N (D + E) + C^2. The state is D E numbers for each head.
    Raises ValueError or TypeError naming the argument that does not fit.
    Source: Qiao (2025), the linear model of attention. Chapter 7.2.
    """
    check_attention(query, key, value)
    check_scale(scale)
    check_count("query_offset", query_offset)
    check_count("chunk", chunk, least=1)
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"key must have the width of query, {query.shape[-1]}, got {key.shape[-1]}"
        )
    dtype, sums = query.dtype, arithmetic_of(query.dtype)
    scale = max(query.shape[-1], 1) ** -0.5 if scale is None else scale
    query, key, value = scale * query.to(sums), key.to(sums), value.to(sums)
    if not is_causal:
        return (query @ (key.mT @ value)).to(dtype)
    # Query i stands behind key i + query_offset: what lies before the first query is written first.
    state = key[..., :query_offset, :].mT @ value[..., :query_offset, :]
    key, value = key[..., query_offset:, :], value[..., query_offset:, :]
    reads = [query[..., :0, :] @ state]
    for start in range(0, query.shape[-2], chunk):
        part = (..., slice(start, start + chunk), slice(None))
        reads.append(query[part] @ state + (query[part] @ key[part].mT).tril() @ value[part])
        state = state + key[part].mT @ value[part]
    return torch.cat(reads, dim=-2).to(dtype)
