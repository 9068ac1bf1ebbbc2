"""HGRN-2: what is written is what is forgotten, key = 1 - forget gate."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from attnlib.atlas import Promises, mechanism
from attnlib.memory.decayed_state import (
    RECURRENT,
    SELF,
    decayed_attention,
    decayed_attention_dense,
    decayed_attention_step,
)
from attnlib.memory.matrix_state import arithmetic_of, check_recurrent


def tied_gates(
    logits: Float[Tensor, "*heads N D"], lower_bound: float = 0.0
) -> tuple[Float[Tensor, "*heads N D"], Float[Tensor, "*heads N D"]]:
    r"""(key, log decay) of f = \beta + (1 - \beta) \sigma(logits): the key is 1 - f.

    Both are computed without 1 - f, so that neither is lost where f is near 0 or 1.
    Raises ValueError where the lower bound \beta is outside [0, 1).
    """
    if isinstance(lower_bound, bool) or not isinstance(lower_bound, int | float):
        raise TypeError(f"lower_bound must be a number, got {type(lower_bound).__name__}")
    if not 0 <= lower_bound < 1:
        raise ValueError(f"lower_bound must lie in [0, 1), got {lower_bound}")
    wide = logits.to(arithmetic_of(logits.dtype))
    key = (1 - lower_bound) * torch.sigmoid(-wide)
    log_forget = math.log1p(-lower_bound) + logsigmoid(wide)
    if lower_bound > 0:
        floor = torch.full_like(wide, math.log(lower_bound))
        log_forget = torch.logaddexp(log_forget, floor).clamp(max=0.0)
    return key.to(logits.dtype), log_forget


def hgrn2_attention_dense(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    lower_bound: float = 0.0,
    is_causal: bool = True,
    scale: float | None = None,
) -> Float[Tensor, "*heads N E"]:
    """The dense form: `decayed_attention_dense` with tied gates."""
    key, log_decay = tied_gates(key, lower_bound)
    return decayed_attention_dense(
        query, key, value, log_decay=log_decay, is_causal=is_causal, scale=scale
    )


def hgrn2_attention_step(
    state: Float[Tensor, "*heads D E"] | None,
    query: Float[Tensor, "*heads C D"],
    key: Float[Tensor, "*heads C D"],
    value: Float[Tensor, "*heads C E"],
    *,
    lower_bound: float = 0.0,
    scale: float | None = None,
) -> tuple[Float[Tensor, "*heads C E"], Float[Tensor, "*heads D E"]]:
    """The recurrence for the next token: (read, new state)."""
    key, log_decay = tied_gates(key, lower_bound)
    return decayed_attention_step(state, query, key, value, log_decay=log_decay, scale=scale)


@mechanism(
    key="hgrn2",
    chapter="3-linear/recurrent-and-chunked",
    section="forgetting",
    step="memory",
    idea="a state that writes into a channel as much as it forgets there",
    equation=r"S_t = \mathrm{diag}(f_t) S_{t-1} + (1 - f_t) v_t^\top, \; o_t = S_t^\top q_t",
    cost="time N (D E + C (D log C + E)), state D E",
    oracle=hgrn2_attention_dense,
    recurrent=hgrn2_attention_step,
    promises=Promises(**{**RECURRENT, "score_range": 1e4}),
    taxonomy=SELF,
)
def hgrn2_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    lower_bound: float = 0.0,
    initial_state: Float[Tensor, "*heads D E"] | None = None,
    return_state: bool = False,
    is_causal: bool = True,
    scale: float | None = None,
    chunk: int = 64,
    backend: str = "auto",
) -> Float[Tensor, "*heads N E"] | tuple[Tensor, Tensor]:
    r"""`decayed_attention` whose key and decay are one gate: `key` holds the logits of f.

    .. math:: f_t = \beta + (1 - \beta) \sigma(k_t), \quad
              S_t = \mathrm{diag}(f_t) S_{t-1} + (1 - f_t) v_t^\top, \quad o_t = S_t^\top q_t

    Each row of the state is a running mean of the values, so it cannot outgrow them. `lower_bound`
    is beta; in the paper it is learned and rises with the layer, so that upper layers remember
    longer. Shapes, cost and errors as in `decayed_attention`.
    Source: Qin et al., "HGRN2" (2024). Derived in chapter 3.2.
    """
    check_recurrent(query, key, value, is_causal)
    key, log_decay = tied_gates(key, lower_bound)
    return decayed_attention(
        query,
        key,
        value,
        log_decay=log_decay,
        initial_state=initial_state,
        return_state=return_state,
        is_causal=is_causal,
        scale=scale,
        chunk=chunk,
        backend=backend,
    )
