"""Attention that looks at nothing: equal weights for every key of the support."""

from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.read.row_blocks import attend_in_rows
from attnlib.score.changes import ScoreMod
from attnlib.support import Predicate
from attnlib.weight.dense_form import dense_form
from attnlib.weight.extremes import uniform

CHAPTER = "2-weights/beyond-softmax"
SECTION = "equal-weights"
TAXONOMY = Taxonomy(
    sequences="self", levels="single", positions="soft", representations="multi-head"
)


@mechanism(
    key="uniform",
    paper=None,
    chapter=CHAPTER,
    section=SECTION,
    step="weight",
    idea="every key of the support has the weight 1/n, whatever the scores",
    equation=r"\tfrac1n \mathbf{1}\mathbf{1}^\top V",
    cost="time N M (D + E), memory (N + M)(D + E) + chunk M",
    oracle=dense_form(uniform),
    promises=Promises(),
    taxonomy=TAXONOMY,
)
def uniform_attention(
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
    r"""o_i = (1 / n_i) sum_{j in S_i} v_j: the mean of the values in the support of row i.

    Query and key are taken so that it fits where another mechanism stood; only their lengths
    matter. Shapes, support and errors as in `attend`. Cost as written: time N M (D + E), memory
    (N + M)(D + E) + chunk M; a running mean would need M E.
    Source: the limit of softmax at scale zero; as a layer Hyeon-Woo et al. (2023), eq. of CB, in
    `attnlib.models.context_broadcasting`. Derived in chapter 2.1.
    """
    return attend_in_rows(
        query,
        key,
        value,
        weight=uniform,
        score_mod=score_mod,
        support=support,
        attn_mask=attn_mask,
        is_causal=is_causal,
        query_offset=query_offset,
        scale=scale,
        enable_gqa=enable_gqa,
        chunk=chunk,
    )
