"""Lightning attention: a state in blocks, with one fixed decay a head."""

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


def lightning_decay(heads: int, layer: int = 0, layers: int = 1) -> Float[Tensor, "heads 1"]:
    r"""The logarithms of the decays of one layer of TransNormerLLM, one a head.

    .. math:: \log \lambda_h = - \frac{8 h}{H} \Big( 1 - \frac{l}{L} \Big), \quad h = 0 \dots H - 1

    The first head never forgets, and later layers (l counts from 0) forget less.
    Source: Qin et al., "TransNormerLLM" (2023); kept in Qin et al. (2024).
    """
    check_count("heads", heads, least=1)
    check_count("layers", layers, least=1)
    check_count("layer", layer)
    if layer >= layers:
        raise ValueError(f"layer must be less than layers = {layers}, got {layer}")
    return (-8 * torch.arange(heads).double() / heads * (1 - layer / layers)).unsqueeze(-1)


@mechanism(
    key="lightning-attention",
    paper="lightning-attention",
    chapter="3-linear/recurrent-and-chunked",
    section="blocks",
    step="memory",
    idea="quadratic inside a block, a state between blocks, one fixed decay a head",
    equation=r"O = ((Q K^\top) \odot M) V, \; M_{ts} = \lambda^{t-s} [s \le t]",
    cost="time N (D E + C (D + E)), state D E",
    oracle=decayed_attention_dense,
    recurrent=decayed_attention_step,
    promises=Promises(arguments=one_decay, **RECURRENT),
    taxonomy=SELF,
)
def lightning_attention(
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
    r"""`decayed_attention` with a decay that is the same for all tokens of a head.

    .. math:: O_t = ((Q_t K_t^\top) \odot M) V_t + \Lambda Q_t S, \qquad
              S \leftarrow \lambda^C S + (\lambda^C \Lambda^{-1} K_t)^\top V_t

    for the blocks t of C = `chunk` tokens. `log_decay` is `lightning_decay(heads)` unless given.
    Shapes, cost and errors as in `decayed_attention`. The paper's layer has no scale, and divides
    the read by its root mean square instead of a sum of weights (see `attnlib.models.Retained`).
    Source: Qin et al. (2024). Derived in chapter 3.2.
    """
    if log_decay is None:
        log_decay = lightning_decay(heads_of(query))
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


def heads_of(query: Tensor) -> int:
    """How many heads the query has: (heads, N, D), or (N, D) for one."""
    return query.shape[-3] if isinstance(query, Tensor) and query.dim() > 2 else 1
