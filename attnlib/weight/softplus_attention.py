"""Attention with softplus in the place of exp, a length scale, and a second, sharpening step."""

from functools import partial

from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.read.row_blocks import attend_in_rows
from attnlib.score.changes import ScoreMod
from attnlib.score.cosine import cosine
from attnlib.support import Predicate
from attnlib.weight.dense_form import dense_form
from attnlib.weight.softplus import (
    check_sharpening,
    length_scaled_softplus,
    reweighted_softplus,
)

CHAPTER = "2-weights/beyond-softmax"
SECTION = "another-function"
TAXONOMY = Taxonomy(
    sequences="self", levels="single", positions="soft", representations="multi-head"
)


@mechanism(
    key="softplus",
    paper="lssar-softplus",
    chapter=CHAPTER,
    section=SECTION,
    step="weight",
    idea="softplus of length-scaled cosines, divided by the row's sum",
    equation=r"\mathrm{softplus}(\log D \log n \cos(Q, K)) / \mathrm{row\ sum} \cdot V",
    cost="time N M (D + E), memory (N + M)(D + E) + chunk M",
    oracle=dense_form(length_scaled_softplus, cosine),
    promises=Promises(),
    taxonomy=TAXONOMY,
)
def softplus_attention(
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
    r"""Weights softplus(scale log(n_i) cos(q_i, k_j)) over their sum, scale log D unless given.

    n_i is the number of keys in the support of row i. Scores are cosines, so the lengths of query
    and key do not matter. Shapes, support and errors as in `attend`; D = 1 needs a scale. Cost:
    time N M (D + E), memory (N + M)(D + E) + chunk M for gradients.
    Source: Gao et al. (2025), "LSSA". Derived in chapter 2.1.
    """
    return attend_in_rows(
        query,
        key,
        value,
        score=cosine,
        weight=length_scaled_softplus,
        score_mod=score_mod,
        support=support,
        attn_mask=attn_mask,
        is_causal=is_causal,
        query_offset=query_offset,
        scale=scale,
        enable_gqa=enable_gqa,
        chunk=chunk,
    )


@mechanism(
    key="lssar-softplus",
    paper="lssar-softplus",
    chapter=CHAPTER,
    section=SECTION,
    step="weight",
    idea="softplus weights, of which those above the row's mean are raised to a power",
    equation=r"\max(n A - o, 0)^p / \mathrm{row\ sum} \cdot V",
    cost="time N M (D + E), memory (N + M)(D + E) + chunk M",
    oracle=dense_form(reweighted_softplus, cosine),
    promises=Promises(),
    taxonomy=TAXONOMY,
)
def reweighted_softplus_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    *,
    power: float = 15.0,
    offset: float = 1.0,
    first_rows: int = 3,
    score_mod: ScoreMod | None = None,
    support: Predicate | None = None,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
    enable_gqa: bool = False,
    chunk: int = 512,
) -> Float[Tensor, "*heads N E"]:
    r"""Weights max(n_i A_ij - offset, 0)^power over their sum, A those of `softplus_attention`.

    Rows of up to `first_rows` keys have no offset; a row in which nothing stands above the offset
    keeps A. At the default power the highest score takes nearly all of its row.
    Shapes, support and errors as in `softplus_attention`; power at least 1, offset at least 0.
    Cost: time N M (D + E), memory (N + M)(D + E) + chunk M for gradients.
    Source: Gao et al. (2025), "LSSAR": power 3 for the length of training, 15 beyond it; offset 1,
    none in the first three rows. Derived in chapter 2.1.
    """
    check_sharpening(power, offset, first_rows)
    weight = partial(reweighted_softplus, power=power, offset=offset, first_rows=first_rows)
    return attend_in_rows(
        query,
        key,
        value,
        score=cosine,
        weight=weight,
        score_mod=score_mod,
        support=support,
        attn_mask=attn_mask,
        is_causal=is_causal,
        query_offset=query_offset,
        scale=scale,
        enable_gqa=enable_gqa,
        chunk=chunk,
    )
