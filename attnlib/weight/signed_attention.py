"""Attention with weights of either sign: one head can subtract."""

from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.read.row_blocks import attend_in_rows
from attnlib.score.changes import ScoreMod
from attnlib.support import Predicate
from attnlib.weight.dense_form import dense_form
from attnlib.weight.signed import signed

CHAPTER = "2-weights/beyond-softmax"
SECTION = "negative-weights"
TAXONOMY = Taxonomy(
    sequences="self", levels="single", positions="soft", representations="multi-head"
)


@mechanism(
    key="cog-attention",
    paper="cog-attention",
    chapter=CHAPTER,
    section=SECTION,
    step="weight",
    idea="a softmax of the sizes of the scores, with their signs put back",
    equation=r"\mathrm{sign}(S) \odot \mathrm{softmax}(|S|)\, V,\; S = Q K^\top / \sqrt{D}",
    cost="time N M (D + E), memory (N + M)(D + E) + chunk M",
    oracle=dense_form(signed),
    promises=Promises(normalized=False, positive=False),
    taxonomy=TAXONOMY,
)
def signed_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    *,
    score_mod: ScoreMod | None = None,
    support: Predicate | None = None,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
    enable_gqa: bool = False,
    chunk: int = 512,
) -> Float[Tensor, "*heads N E"]:
    r"""o_i = sum_{j in S_i} sign(s_ij) e^{|s_ij|} v_j / sum_{l in S_i} e^{|s_il|}.

    The sizes of a row's weights sum to one, so a read is never longer than the longest value; it
    may lie outside the values' convex hull. A weight jumps where its score passes zero.
    Shapes, support and errors as in `attend`. Cost: time N M (D + E), memory
    (N + M)(D + E) + chunk M for gradients.
    Source: Lv et al. (2024), "Cog attention". Derived in chapter 2.1.
    """
    return attend_in_rows(
        query,
        key,
        value,
        weight=signed,
        score_mod=score_mod,
        support=support,
        attn_mask=attn_mask,
        is_causal=is_causal,
        query_offset=query_offset,
        scale=scale,
        enable_gqa=enable_gqa,
        chunk=chunk,
    )
