"""Softmax attention: `attend` with the steps that everybody uses."""

from collections.abc import Callable

from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.memory.cache import softmax_attention_step
from attnlib.weight.softmax import softmax


@mechanism(
    key="softmax",
    paper="vaswani-2017",
    chapter="1-foundations/soft-lookup",
    section="four-lines-five-steps",
    step="weight",
    idea="weights are a softmax of scaled dot products",
    equation=r"\mathrm{softmax}(Q K^\top / \sqrt{D})\, V",
    cost="time N M (D + E), memory N M",
    oracle=attend,
    recurrent=softmax_attention_step,
    promises=Promises(),
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def softmax_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    *,
    score_mod: Callable[..., Tensor] | None = None,
    support: Callable[..., Tensor] | None = None,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Float[Tensor, "*heads N E"]:
    r"""Softmax attention, softmax(Q K^T / sqrt(D)) V over the support.

    Shapes, support and errors as in `attend`. Cost: time N M (D + E), memory N M for each head.
    Source: Vaswani et al. (2017), eq. 1. Derived in chapter 1.1.
    """
    return attend(
        query,
        key,
        value,
        score_mod=score_mod,
        support=support,
        weight=softmax,
        attn_mask=attn_mask,
        is_causal=is_causal,
        query_offset=query_offset,
        scale=scale,
        enable_gqa=enable_gqa,
    )
