"""Attention that drops keys with a negative score: ReLU and its square as weights."""

from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.read.elementwise_tiles import attend_in_tiles
from attnlib.score.changes import ScoreMod
from attnlib.support import Predicate
from attnlib.weight.dense_form import dense_form
from attnlib.weight.rectified import ramp, rectified, squared_ramp, squared_rectified

CHAPTER = "2-weights/beyond-softmax"
SECTION = "rectified-weights"
TAXONOMY = Taxonomy(
    sequences="self", levels="single", positions="soft", representations="multi-head"
)


@mechanism(
    key="relu",
    paper="wortsman-2023",
    chapter=CHAPTER,
    section=SECTION,
    step="weight",
    idea="a weight is the positive part of its score, divided by n",
    equation=r"\frac1n \max(Q K^\top / \sqrt{D}, 0)\, V",
    cost="time N M (D + E), memory (N + M)(D + E) + chunk M",
    oracle=dense_form(rectified),
    promises=Promises(normalized=False),
    taxonomy=TAXONOMY,
)
def relu_attention(
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
    r"""o_i = sum_{j in S_i} max(s_ij, 0) / n_i v_j, n_i the keys in the support of row i.

    Shapes, support and errors as in `attend`. Cost: time N M (D + E), memory
    (N + M)(D + E) + chunk M for gradients. The read grows with the scores, so in float16 scores
    times values have to stay below 65504.
    Source: Wortsman et al. (2023), with alpha = 1; there n is the length of the sequence.
    Derived in chapter 2.1.
    """
    return attend_in_tiles(
        query,
        key,
        value,
        weight_of=ramp,
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
    key="squared-relu",
    paper="hua-2022",
    chapter=CHAPTER,
    section=SECTION,
    step="weight",
    idea="a weight is the square of the positive part of its score, divided by n",
    equation=r"\frac1n \max(Q K^\top / \sqrt{D}, 0)^2\, V",
    cost="time N M (D + E), memory (N + M)(D + E) + chunk M",
    oracle=dense_form(squared_rectified),
    promises=Promises(normalized=False, score_range=100.0),
    taxonomy=TAXONOMY,
)
def squared_relu_attention(
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
    r"""o_i = sum_{j in S_i} max(s_ij, 0)^2 / n_i v_j, n_i the keys in the support of row i.

    Shapes, support and errors as in `attend`. Cost: time N M (D + E), memory
    (N + M)(D + E) + chunk M for gradients. The read grows with the square of the scores: finite in
    float16 for scores up to 100.
    Source: Hua et al. (2022), who divide the score by n inside the square instead; the function is
    that of So et al. (2021). Derived in chapter 2.1.
    """
    return attend_in_tiles(
        query,
        key,
        value,
        weight_of=squared_ramp,
        score_mod=score_mod,
        support=support,
        attn_mask=attn_mask,
        is_causal=is_causal,
        query_offset=query_offset,
        scale=scale,
        enable_gqa=enable_gqa,
        chunk=chunk,
    )
