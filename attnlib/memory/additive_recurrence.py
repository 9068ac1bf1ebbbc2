"""LightNet's additive recurrence: a running softmax over the keys of each channel."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from attnlib.atlas import Promises, mechanism
from attnlib.checks import check_count, check_scale, check_tensor
from attnlib.memory.decayed_state import (
    RECURRENT,
    SELF,
    decayed_attention,
    scale_of,
    summed,
)
from attnlib.memory.matrix_state import check_recurrent, check_state, empty_state


class AdditiveState(NamedTuple):
    """What is kept of the past: for each channel the log of its total, and a mean of values."""

    log_total: Float[Tensor, "*heads D"]
    """z = log sum_s exp(k_s), in the dtype of sums."""
    mean: Float[Tensor, "*heads D E"]
    """h = sum_s exp(k_s - z) v_s^T: row d is a weighted mean of the values."""


def additive_recurrence_dense(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    is_causal: bool = False,
    scale: float | None = None,
) -> Float[Tensor, "*heads N E"]:
    r"""The oracle: a softmax over positions for every row and channel, all N x N x D of them.

    .. math:: o_t = \mathrm{scale} \sum_s \sum_d q_{td} \,
              \frac{e^{k_{sd}}}{\sum_{r \in S_t} e^{k_{rd}}} \, v_s

    Cost: time and memory N^2 D for each head.
    """
    check_recurrent(query, key, value)
    check_scale(scale)
    dtype, scale = query.dtype, scale_of(scale, query)
    query, key, value = summed(query, key, value)
    length = query.shape[-2]
    seen = torch.ones(length, length, dtype=torch.bool, device=query.device)
    seen = seen.tril() if is_causal else seen
    table = key.unsqueeze(-3).masked_fill(~seen.unsqueeze(-1), -torch.inf)
    weights = (query.unsqueeze(-2) * table.softmax(-2)).sum(-1)
    return (scale * weights @ value).to(dtype)


def additive_recurrence_step(
    state: AdditiveState | None,
    query: Float[Tensor, "*heads C D"],
    key: Float[Tensor, "*heads C D"],
    value: Float[Tensor, "*heads C E"],
    *,
    scale: float | None = None,
) -> tuple[Float[Tensor, "*heads C E"], AdditiveState]:
    r"""The causal form for the next token (or tokens): (read, new state).

    .. math:: z_t = \log(e^{z_{t-1}} + e^{k_t}), \quad
              h_t = e^{z_{t-1} - z_t} h_{t-1} + e^{k_t - z_t} v_t^\top, \quad
              o_t = \mathrm{scale} \; h_t^\top q_t

    Pass None to begin. Source: Qin et al., "LightNet" (2024).
    """
    read, state = _causal(state, query, key, value, scale, max(1, query.shape[-2]), "auto")
    return read, state


@mechanism(
    key="lightnet",
    paper="lightnet",
    chapter="3-linear/recurrent-and-chunked",
    section="order-free",
    step="memory",
    idea="a running softmax over keys: what is new takes its share, no order decays",
    equation=r"o_t = \sum_{s} \sum_d q_{td} \, \mathrm{softmax}_s(k_{sd}) \, v_s",
    cost="time N (D E + C (D log C + E)), state D (E + 1); N D E without order",
    oracle=additive_recurrence_dense,
    recurrent=additive_recurrence_step,
    promises=Promises(
        **{
            **RECURRENT,
            "query_equivariant": True,
            "key_invariant": True,
            "score_range": 1e4,
        }
    ),
    taxonomy=SELF,
)
def additive_recurrence(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    is_causal: bool = False,
    scale: float | None = None,
    chunk: int = 64,
    backend: str = "auto",
) -> Float[Tensor, "*heads N E"]:
    r"""Linear attention whose keys are a softmax over the positions seen, channel by channel.

    .. math:: o_t = \mathrm{scale} \sum_{s \in S_t} \sum_d q_{td} e^{k_{sd} - z_{td}} v_s, \qquad
              z_{td} = \log \sum_{s \in S_t} e^{k_{sd}}

    Causal, it is `decayed_attention` with decay e^{z_{t-1} - z_t} and key e^{k_t - z_t}, and
    `additive_recurrence_step` is its recurrence. Without is_causal every query sees all positions
    in whatever order they were scanned: one pass, for a sequence as for a grid.

    Shapes: query and key (..., N, D), value (..., N, E). The paper passes silu(q) as the query and
    has no scale. Cost: time N D E, and N C (D log C + E) more with is_causal.
    Source: Qin et al., "LightNet" (2024). Derived in chapter 3.2.
    """
    check_recurrent(query, key, value)
    check_scale(scale)
    check_count("chunk", chunk, least=1)
    if is_causal and query.shape[-2] > 0:
        return _causal(None, query, key, value, scale, chunk, backend)[0]
    dtype, scale = query.dtype, scale_of(scale, query)
    query, key, value = summed(query, key, value)
    return (scale * query @ (key.softmax(-2).mT @ value)).to(dtype)


def shares(
    key: Float[Tensor, "*heads N D"], log_total: Float[Tensor, "*heads D"] | None = None
) -> tuple[Float[Tensor, "*heads N D"], Float[Tensor, "*heads N D"], Float[Tensor, "*heads N D"]]:
    r"""(e^{k_t - z_t}, z_{t-1} - z_t, z_t): the share of the new token, what is left, the total.

    `log_total` is z before the first token. Without it there is nothing that could fade: decay 1.
    """
    if log_total is None:
        total = key.logcumsumexp(-2)
        before = torch.cat((total[..., :1, :], total[..., :-1, :]), dim=-2)
    else:
        start = log_total.unsqueeze(-2)
        total = torch.cat((start, key), dim=-2).logcumsumexp(-2)
        before, total = total[..., :-1, :], total[..., 1:, :]
    return (key - total).exp(), (before - total).clamp(max=0.0), total


def _causal(
    state: AdditiveState | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None,
    chunk: int,
    backend: str,
) -> tuple[Tensor, AdditiveState]:
    check_recurrent(query, key, value)
    if query.shape[-2] == 0:
        raise ValueError("query must have at least one token, got 0")
    if state is None:
        log_total, mean = None, empty_state(query, value)
    elif isinstance(state, AdditiveState):
        log_total, mean = state
        check_tensor("state.log_total", log_total)
        check_state("state.mean", mean, query, value)
        check_state("state.log_total", log_total.unsqueeze(-1), query, value[..., :1])
    else:
        raise TypeError(f"state must be an AdditiveState or None, got {type(state).__name__}")
    dtype = query.dtype
    query, key, value = summed(query, key, value)
    share, left, total = shares(key, log_total)
    read, mean = decayed_attention(
        query,
        share,
        value,
        log_decay=left,
        initial_state=mean,
        return_state=True,
        scale=scale,
        chunk=chunk,
        backend=backend,
    )
    return read.to(dtype), AdditiveState(total[..., -1, :], mean)
