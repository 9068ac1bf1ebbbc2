"""Retention: a state that fades at one fixed rate a head."""

import torch
from jaxtyping import Float
from torch import Tensor

from attnlib.atlas import Promises, mechanism
from attnlib.checks import check_count
from attnlib.memory.decay import Decay
from attnlib.memory.decayed_state import (
    RECURRENT,
    SELF,
    decayed_attention,
    decayed_attention_dense,
    decayed_attention_step,
    one_decay,
)
from attnlib.memory.lightning import heads_of


def retention_decay(heads: int) -> Float[Tensor, "heads 1"]:
    r"""The logarithms of the decays of RetNet, one a head: \gamma_h = 1 - 2^{-5 - h}.

    Head h forgets half of a token in about 22 * 2^h steps.
    Source: Sun et al. (2023), section 2.2.
    """
    check_count("heads", heads, least=1)
    return torch.log1p(-(2.0 ** (-5 - torch.arange(heads).double()))).unsqueeze(-1)


@mechanism(
    key="retention",
    paper="sun-2023",
    chapter="3-linear/recurrent-and-chunked",
    section="forgetting",
    step="memory",
    idea="a state that fades at one fixed rate a head, slow heads and fast heads",
    equation=r"S_t = \gamma S_{t-1} + k_t v_t^\top, \; o_t = S_t^\top q_t",
    cost="time N (D E + C (D + E)), state D E",
    oracle=decayed_attention_dense,
    recurrent=decayed_attention_step,
    promises=Promises(arguments=one_decay, **RECURRENT),
    taxonomy=SELF,
)
def retention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    log_decay: Decay = None,
    initial_state: Float[Tensor, "*heads D E"] | None = None,
    return_state: bool = False,
    is_causal: bool = True,
    scale: float | None = None,
    chunk: int = 128,
    backend: str = "auto",
) -> Float[Tensor, "*heads N E"] | tuple[Tensor, Tensor]:
    r"""`decayed_attention` with RetNet's decays, one a head.

    `log_decay` is `retention_decay(heads)` unless given. Shapes, cost and errors as in
    `decayed_attention`. The paper's layer also turns queries and keys (xPos; pass them turned, as
    `MultiHeadAttention(position="rope")` does) and normalizes each head's read, which makes the
    two divisors of its parallel form immaterial (see `attnlib.models.Retained`).
    Source: Sun et al. (2023), equations 5 to 7. Derived in chapter 3.2.
    """
    if log_decay is None:
        log_decay = retention_decay(heads_of(query))
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
