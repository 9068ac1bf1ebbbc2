"""Hopfield networks: patterns as the valleys of an energy, and attention as one step downhill."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.checks import check_count, check_tensor
from attnlib.weight.softmax_attention import softmax_attention

# ---- the modern network: continuous states, softmax


def hopfield_energy(
    query: Float[Tensor, "*heads N D"], stored: Float[Tensor, "*heads n D"], *, beta: float
) -> Float[Tensor, "*heads N"]:
    r"""The energy of each query among the stored patterns; never negative, low at a pattern.

    .. math:: E(\xi) = -\tfrac1\beta \log \sum_i e^{\beta x_i \cdot \xi} + \tfrac12 |\xi|^2
                       + \tfrac1\beta \log n + \tfrac12 \max_i |x_i|^2

    Shapes: query (..., N, D), stored (..., n, D) -> (..., N). Cost: N n D.
    Raises ValueError or TypeError naming the argument that does not fit.
    Source: Ramsauer et al. (2021), eq. 2. `attnlib.memory.energy` is minus beta times its first
    term, for a source of zero.
    """
    _check_network(query, stored, beta)
    fit = torch.logsumexp(beta * query @ stored.mT, dim=-1) / beta
    largest = stored.square().sum(-1).amax(-1)[..., None]
    return query.square().sum(-1) / 2 - fit + math.log(stored.shape[-2]) / beta + largest / 2


def hopfield_retrieve(
    query: Float[Tensor, "*heads N D"],
    stored: Float[Tensor, "*heads n D"],
    *,
    beta: float,
    steps: int = 1,
) -> Float[Tensor, "*heads N D"]:
    r"""`steps` steps downhill: xi' = X^T softmax(beta X xi), softmax attention to the patterns.

    The quadratic part of the energy is minimized exactly and its concave rest by its tangent, so
    the energy never rises. Shapes and errors as in `hopfield_energy`. Cost: 2 N n D a step.
    Source: Ramsauer et al. (2021), eq. 3.
    """
    _check_network(query, stored, beta)
    check_count("steps", steps)
    for _ in range(steps):
        query = torch.softmax(beta * query @ stored.mT, dim=-1) @ stored
    return query


def separation(stored: Float[Tensor, "*heads n D"]) -> Float[Tensor, "*heads n"]:
    r"""How far each pattern stands from its nearest rival: x_i . x_i - max_(j != i) x_i . x_j.

    At x_i all others together weigh at most (n - 1) exp(-beta separation_i), so a well separated
    pattern stays where it is. Cost: n^2 D. Needs two patterns at least.
    Source: Ramsauer et al. (2021), appendix, definition 2.
    """
    check_tensor("stored", stored)
    if stored.dim() < 2 or stored.shape[-2] < 2:
        raise ValueError(
            f"stored must have shape (..., n, D) with n of at least 2, got {tuple(stored.shape)}"
        )
    alike = stored @ stored.mT
    itself = alike.diagonal(dim1=-2, dim2=-1)
    same = torch.eye(stored.shape[-2], dtype=torch.bool, device=stored.device)
    return itself - alike.masked_fill(same, -torch.inf).amax(dim=-1)


def _check_network(query: Tensor, stored: Tensor, beta: float) -> None:
    check_tensor("query", query)
    check_tensor("stored", stored)
    if stored.dim() < 2 or 0 in stored.shape:
        raise ValueError(
            f"stored must have shape (..., n, D) and hold something, got {tuple(stored.shape)}"
        )
    if query.dim() < 2 or query.shape[-1] != stored.shape[-1]:
        raise ValueError(
            f"query must have shape (..., N, {stored.shape[-1]}), the width of stored, "
            f"got {tuple(query.shape)}"
        )
    check_beta(beta)


def check_beta(beta: float) -> None:
    """Check that an inverse temperature is a positive finite number."""
    if not (math.isfinite(beta) and beta > 0):
        raise ValueError(f"beta must be a positive finite number, got {beta}")


# ---- the classical network: states of plus and minus one, a sum of outer products


def classical_hopfield_weights(patterns: Float[Tensor, "n D"]) -> Float[Tensor, "D D"]:
    r"""Hebb's rule on patterns of plus and minus one: W = (1 / D) sum_i x_i x_i^T, zero diagonal.

    Cost: n D^2. Raises ValueError for other numbers than plus and minus one.
    Source: Hopfield (1982), its eq. 2, there for states of 0 and 1.
    """
    check_tensor("patterns", patterns)
    if patterns.dim() != 2 or 0 in patterns.shape or not (patterns.abs() == 1).all():
        raise ValueError("patterns must have shape (n, D) and hold plus and minus one alone")
    weights = patterns.mT @ patterns / patterns.shape[-1]
    return weights - torch.diag(weights.diagonal())


def classical_hopfield_energy(
    state: Float[Tensor, "*batch D"], weights: Float[Tensor, "D D"]
) -> Float[Tensor, "*batch"]:
    """E = - xi^T W xi / 2, which no flip of one unit by the rule below raises."""
    return -(state @ weights * state).sum(-1) / 2


def classical_hopfield_retrieve(
    state: Float[Tensor, "*batch D"], weights: Float[Tensor, "D D"], *, sweeps: int = 10
) -> Float[Tensor, "*batch D"]:
    """Each unit in turn takes the sign of what the others say, `sweeps` times over all units.

    A unit at which the sum is zero stays as it is. Cost: sweeps D^2. The input is left as it is.
    Source: Hopfield (1982), its eq. 1, there in random order.
    """
    check_tensor("weights", weights)
    if weights.dim() != 2 or weights.shape != (state.shape[-1],) * 2:
        raise ValueError(
            f"weights must have shape {(state.shape[-1],) * 2}, got {tuple(weights.shape)}"
        )
    check_count("sweeps", sweeps)
    state = state.clone()
    for _ in range(sweeps):
        for unit in range(state.shape[-1]):
            says = state @ weights[unit]
            state[..., unit] = torch.where(says == 0, state[..., unit], says.sign())
    return state


# ---- retrieval as an operator of attention


def hopfield_oracle(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    value: Float[Tensor, "*heads M E"],
    *,
    beta: float | None = None,
    steps: int = 1,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
) -> Float[Tensor, "*heads N E"]:
    """The rows of weights written down: each step makes the query a mean of the keys."""
    beta = max(query.shape[-1], 1) ** -0.5 if beta is None else beta
    allowed = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool)
    if is_causal:
        allowed = allowed.tril(query_offset)
    if attn_mask is not None:
        allowed = allowed & attn_mask
    for _ in range(steps):
        scores = (beta * query @ key.mT).masked_fill(~allowed, -torch.inf)
        weights = torch.softmax(scores, dim=-1).nan_to_num()
        query = weights @ key
    return weights @ value


def three_steps(query: Tensor, key: Tensor, value: Tensor) -> dict[str, float]:
    """For a trial: three steps, the first two among the keys."""
    return {"beta": 0.7, "steps": 3}


@mechanism(
    key="hopfield-attention",
    paper="ramsauer-2021",
    chapter="7-memory/test-time-memory",
    section="modern-hopfield",
    step="memory",
    idea="the query walks downhill among the keys before it reads; one step is softmax attention",
    equation=(
        r"\xi^{0} = q_i, \quad \xi^{r} = K^\top \mathrm{softmax}(\beta K \xi^{r-1}), "
        r"\quad o_i = V^\top \mathrm{softmax}(\beta K \xi^{R-1})"
    ),
    cost="R steps of time N M (2 D), then N M E",
    oracle=hopfield_oracle,
    promises=Promises(
        grouped_query=False, arguments=lambda query, key, value: {"beta": 0.7, "steps": 3}
    ),
    taxonomy=Taxonomy(
        sequences="distinctive", levels="single", positions="soft", representations="multi-head"
    ),
)
def hopfield_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    value: Float[Tensor, "*heads M E"],
    *,
    beta: float | None = None,
    steps: int = 1,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
) -> Float[Tensor, "*heads N E"]:
    r"""`steps` updates of a modern Hopfield network whose patterns are the keys; values are read.

    `beta` is D ** -0.5 unless given. With `steps` = 1 it is softmax attention; each further
    step replaces the query by its read from the keys first. Every query walks in its own support.
    Shapes, masks and errors as in `attnlib.softmax_attention`. Cost: time N M (2 D) a step.
    Source: Ramsauer et al. (2021), section 3. Chapter 7.2.
    """
    check_count("steps", steps, least=1)
    if beta is not None:
        check_beta(beta)
    masks = {"attn_mask": attn_mask, "is_causal": is_causal, "query_offset": query_offset}
    for _ in range(steps - 1):
        query = attend(query, key, key, scale=beta, **masks)
    return softmax_attention(query, key, value, scale=beta, **masks)
