"""Attention whose weights are exactly zero for keys that score far below the best one."""

from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.read.row_blocks import attend_in_rows
from attnlib.score.changes import ScoreMod
from attnlib.support import Predicate
from attnlib.weight.dense_form import dense_form
from attnlib.weight.entmax import entmax, entmax15, sparsemax

CHAPTER = "2-weights/beyond-softmax"
SECTION = "a-bent-simplex"
TAXONOMY = Taxonomy(
    sequences="self", levels="single", positions="soft", representations="multi-head"
)


@mechanism(
    key="sparsemax",
    paper="martins-2016",
    chapter=CHAPTER,
    section=SECTION,
    step="weight",
    idea="weights are the point of the simplex nearest to the scores",
    equation=r"\bigl[Q K^\top / \sqrt{D} - \tau\bigr]_+ V",
    cost="time N M (D + E + log M), memory (N + M)(D + E) + chunk M",
    oracle=dense_form(sparsemax),
    promises=Promises(),
    taxonomy=TAXONOMY,
)
def sparsemax_attention(
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
    r"""Attention with the weights [s_j - tau]_+ of `attnlib.weight.entmax.sparsemax`.

    Shapes, support and errors as in `attend`. Cost: time N M (D + E + log M), memory
    (N + M)(D + E) + chunk M: the weights exist for `chunk` queries at a time.
    Source: Martins and Astudillo (2016), algorithm 1. Derived in chapter 2.1.
    """
    return attend_in_rows(
        query,
        key,
        value,
        score_mod=score_mod,
        support=support,
        weight=sparsemax,
        attn_mask=attn_mask,
        is_causal=is_causal,
        query_offset=query_offset,
        scale=scale,
        enable_gqa=enable_gqa,
        chunk=chunk,
    )


@mechanism(
    key="entmax-1.5",
    paper="peters-2019",
    chapter=CHAPTER,
    section=SECTION,
    step="weight",
    idea="weights half way between softmax and sparsemax, exact by sorting",
    equation=r"\bigl[\tfrac12 Q K^\top / \sqrt{D} - \tau\bigr]_+^2 V",
    cost="time N M (D + E + log M), memory (N + M)(D + E) + chunk M",
    oracle=dense_form(entmax15),
    promises=Promises(),
    taxonomy=TAXONOMY,
)
def entmax15_attention(
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
    r"""Attention with the weights [s_j / 2 - tau]_+^2 of `attnlib.weight.entmax.entmax15`.

    Shapes, support and errors as in `attend`. Cost: time N M (D + E + log M), memory
    (N + M)(D + E) + chunk M: the weights exist for `chunk` queries at a time.
    Source: Peters et al. (2019), the sorting algorithm for alpha = 1.5. Derived in chapter 2.1.
    """
    return attend_in_rows(
        query,
        key,
        value,
        score_mod=score_mod,
        support=support,
        weight=entmax15,
        attn_mask=attn_mask,
        is_causal=is_causal,
        query_offset=query_offset,
        scale=scale,
        enable_gqa=enable_gqa,
        chunk=chunk,
    )


def trial_alpha(query: Tensor, key: Tensor, value: Tensor) -> dict[str, Tensor]:
    """An alpha to try entmax attention with."""
    return {"alpha": torch.tensor(1.7, dtype=query.dtype, device=query.device)}


def dense_entmax_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    alpha: float | Tensor = 1.5,
    score_mod: ScoreMod | None = None,
    support: Predicate | None = None,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`entmax_attention` by `attend`: all weights at once."""
    return attend(
        query,
        key,
        value,
        score_mod=score_mod,
        support=support,
        weight=partial(entmax, alpha=alpha),
        attn_mask=attn_mask,
        is_causal=is_causal,
        query_offset=query_offset,
        scale=scale,
        enable_gqa=enable_gqa,
    )


@mechanism(
    key="adaptively-sparse-entmax",
    paper="adaptively-sparse-entmax",
    chapter=CHAPTER,
    section=SECTION,
    step="weight",
    idea="weights anywhere between softmax and sparsemax, by an alpha that each head can learn",
    equation=r"\bigl[(\alpha - 1) Q K^\top / \sqrt{D} - \tau\bigr]_+^{1/(\alpha-1)} V",
    cost="time N M (D + E + 60), memory (N + M)(D + E) + chunk M",
    oracle=dense_entmax_attention,
    promises=Promises(arguments=trial_alpha),
    taxonomy=TAXONOMY,
)
def entmax_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    *,
    alpha: float | Float[Tensor, "..."] = 1.5,
    score_mod: ScoreMod | None = None,
    support: Predicate | None = None,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
    enable_gqa: bool = False,
    chunk: int = 512,
) -> Float[Tensor, "*heads N E"]:
    r"""Attention with the weights [(alpha - 1) s_j - tau]_+^{1/(alpha - 1)}, softmax at alpha = 1.

    `alpha` is a number from 1 to 2 or a tensor of them, the same for all rows of a head: (heads, 1,
    1) gives every head its own. It may be learnt.
    Shapes, support and errors as in `attend`. Cost: time N M (D + E + 60), memory
    (N + M)(D + E) + chunk M: the weights exist for `chunk` queries at a time. The 60 is the
    bisection. Source: Correia et al. (2019). Derived in chapter 2.1.
    """
    if isinstance(alpha, Tensor) and alpha.dim() > 1 and alpha.shape[-2] != 1:
        raise ValueError(
            "alpha must be the same for all queries of a head, shape (..., heads, 1, 1), "
            f"got {tuple(alpha.shape)}"
        )
    return attend_in_rows(
        query,
        key,
        value,
        score_mod=score_mod,
        support=support,
        weight=partial(entmax, alpha=alpha),
        attn_mask=attn_mask,
        is_causal=is_causal,
        query_offset=query_offset,
        scale=scale,
        enable_gqa=enable_gqa,
        chunk=chunk,
    )
