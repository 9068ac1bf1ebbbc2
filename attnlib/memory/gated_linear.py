"""Gated linear attention: each key channel forgets as its token says."""

import torch
from jaxtyping import Float
from torch import Tensor

from attnlib.atlas import Promises, mechanism
from attnlib.memory.decay import Decay
from attnlib.memory.decayed_state import (
    RECURRENT,
    SELF,
    decayed_attention,
    decayed_attention_dense,
    decayed_attention_step,
)


def decay_of_channels(query: Tensor, key: Tensor, value: Tensor) -> dict[str, Tensor]:
    """A decay for each channel, the same for all tokens and heads, for a trial call."""
    width = query.shape[-1]
    decay = torch.linspace(-0.5, -0.02, width, dtype=query.dtype)
    return {"log_decay": decay.view((1,) * (query.dim() - 1) + (width,))}


@mechanism(
    key="gated-linear-attention",
    paper="yang-2024-gla",
    chapter="3-linear/recurrent-and-chunked",
    section="forgetting",
    step="memory",
    idea="a state whose rows fade by gates that each token sets",
    equation=r"S_t = \mathrm{diag}(\alpha_t) S_{t-1} + k_t v_t^\top, \; o_t = S_t^\top q_t",
    cost="time N (D E + C (D log C + E)), state D E",
    oracle=decayed_attention_dense,
    recurrent=decayed_attention_step,
    promises=Promises(arguments=decay_of_channels, **RECURRENT),
    taxonomy=SELF,
)
def gated_linear_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    log_decay: Decay,
    initial_state: Float[Tensor, "*heads D E"] | None = None,
    return_state: bool = False,
    is_causal: bool = True,
    scale: float | None = None,
    chunk: int = 64,
    backend: str = "auto",
) -> Float[Tensor, "*heads N E"] | tuple[Tensor, Tensor]:
    r"""`decayed_attention` with gates alpha = exp(log_decay), (..., N, D), one a token and channel.

    `attnlib.models.GatedLinearAttention` computes them with `channel_gate`. Shapes, cost and errors
    as in `decayed_attention`. Inside a chunk the decay stands under the sum over channels; the
    paper cuts a chunk into smaller ones, we halve it again and again (see
    `attnlib.memory.decay.scores_by_channel`).
    Source: Yang et al. (2024), section 4. Derived in chapter 3.2.
    """
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


def channel_gate(logits: Float[Tensor, "*any"], slowness: float = 16.0) -> Float[Tensor, "*any"]:
    r"""log of \alpha = \sigma(logits)^{1 / slowness}: near zero, so that a new layer remembers.

    Source: Yang et al. (2024), section 4.4 (there tau = 16).
    """
    if isinstance(slowness, bool) or not isinstance(slowness, int | float):
        raise TypeError(f"slowness must be a number, got {type(slowness).__name__}")
    if not 0 < slowness < torch.inf:
        raise ValueError(f"slowness must be positive and finite, got {slowness}")
    return torch.nn.functional.logsigmoid(logits) / slowness
