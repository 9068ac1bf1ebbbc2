"""State-space duality (Mamba-2): a selective state space is linear attention with decay."""

import torch
from jaxtyping import Float
from torch import Tensor

from attnlib.atlas import Promises, mechanism
from attnlib.checks import check_tensor, fits
from attnlib.memory.decayed_state import (
    RECURRENT,
    SELF,
    decayed_attention,
    decayed_attention_dense,
    decayed_attention_step,
)
from attnlib.memory.matrix_state import check_recurrent

Step = Float[Tensor, "..."]
"""Delta: a tensor that broadcasts to (*heads, N)."""

Rate = Float[Tensor, "..."] | float
"""A: a number, or a tensor that broadcasts to (*heads, N)."""


def discretized(
    value: Float[Tensor, "*heads N E"], step: Step, rate: Rate
) -> tuple[Float[Tensor, "*heads N E"], Float[Tensor, "*heads N"]]:
    r"""(value \Delta, log decay -\Delta A): a step of length \Delta of h' = -A h + B x.

    Raises ValueError where a step or a rate is negative or not finite.
    """
    check_tensor("value", value)
    if isinstance(rate, int | float) and not isinstance(rate, bool):
        rate = value.new_tensor(rate)
    for name, tensor in (("step", step), ("rate", rate)):
        check_tensor(name, tensor)
        if not fits(tensor.shape, value.shape[:-1]):
            raise ValueError(
                f"{name} must broadcast to {tuple(value.shape[:-1])}, one number a token, got "
                f"{tuple(tensor.shape)}"
            )
        if not ((tensor >= 0) & tensor.isfinite()).all():
            raise ValueError(f"{name} must be finite and not negative, got {tensor.min().item()}")
    return value * step.unsqueeze(-1).to(value.dtype), (-step * rate).expand(value.shape[:-1])


def state_space_duality_dense(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    step: Step,
    rate: Rate = 1.0,
    is_causal: bool = True,
    scale: float | None = None,
) -> Float[Tensor, "*heads N E"]:
    r"""The quadratic side of the duality: (L \odot C B^\top) (\Delta X), L the decay matrix."""
    value, log_decay = discretized(value, step, rate)
    return decayed_attention_dense(
        query, key, value, log_decay=log_decay, is_causal=is_causal, scale=scale
    )


def state_space_duality_step(
    state: Float[Tensor, "*heads D E"] | None,
    query: Float[Tensor, "*heads C D"],
    key: Float[Tensor, "*heads C D"],
    value: Float[Tensor, "*heads C E"],
    *,
    step: Step,
    rate: Rate = 1.0,
    scale: float | None = None,
) -> tuple[Float[Tensor, "*heads C E"], Float[Tensor, "*heads D E"]]:
    """The linear side of the duality, one token at a time: (read, new state)."""
    value, log_decay = discretized(value, step, rate)
    return decayed_attention_step(state, query, key, value, log_decay=log_decay, scale=scale)


def one_step(query: Tensor, key: Tensor, value: Tensor) -> dict[str, Tensor | float]:
    """The same step for all tokens, for a trial call."""
    return {"step": torch.tensor([0.3], dtype=value.dtype), "rate": 0.5}


@mechanism(
    key="state-space-duality",
    paper="dao-gu-2024",
    chapter="3-linear/recurrent-and-chunked",
    section="state-space-duality",
    step="memory",
    idea="a state space whose step length comes from the token: one scalar decay a token",
    equation=r"S_t = e^{-\Delta_t A} S_{t-1} + \Delta_t k_t v_t^\top, \; o_t = S_t^\top q_t",
    cost="time N (D E + C (D + E)), state D E",
    oracle=state_space_duality_dense,
    recurrent=state_space_duality_step,
    promises=Promises(arguments=one_step, **RECURRENT),
    taxonomy=SELF,
)
def state_space_duality(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    step: Step,
    rate: Rate = 1.0,
    initial_state: Float[Tensor, "*heads D E"] | None = None,
    return_state: bool = False,
    is_causal: bool = True,
    scale: float | None = None,
    chunk: int = 128,
    backend: str = "auto",
) -> Float[Tensor, "*heads N E"] | tuple[Tensor, Tensor]:
    r"""`decayed_attention` with decay exp(-step * rate) and values times step.

    .. math:: S_t = e^{-\Delta_t A} S_{t-1} + \Delta_t B_t x_t^\top, \qquad y_t = S_t^\top C_t

    In the letters of the paper query is C, key is B, value is x, `step` \Delta and `rate` A > 0
    (there the state is called h, and A carries the minus sign). step and rate broadcast to
    (..., N). The paper has no scale and adds D x_t to the read, here a skip of the layer's own.
    Shapes, cost and errors as in `decayed_attention`.
    Source: Dao and Gu (2024), section 5 and 6, listing 1. Derived in chapter 3.2.
    """
    check_recurrent(query, key, value, is_causal)
    value, log_decay = discretized(value, step, rate)
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
