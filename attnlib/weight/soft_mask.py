"""The soft mask: a causal mask that closes slowly, laid onto the weights after the softmax."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.checks import check_attention, check_count
from attnlib.score.compare import dot_product


def soft_mask(length: int, share: float, *, dtype=None) -> Float[Tensor, "N N"]:
    r"""S = c B + (1 - c) C: the mask on the way from everything (c = 1) to the past alone (c = 0).

    B is all ones, C is one for the keys j <= i and zero for the others; c is `share`.
    S stands on weights that are already normalized over all keys, so even at c = 0 a row's
    denominator has seen the future.
    Source: Wang et al. (2024), section 3.6.
    Raises ValueError for a share outside 0 ... 1.
    """
    check_count("length", length, least=1)
    check_share(share)
    everything = torch.ones(length, length, dtype=dtype)
    return share * everything + (1 - share) * everything.tril()


def dense_soft_masked_attention(
    query: Tensor, key: Tensor, value: Tensor, *, share: float = 0.0
) -> Tensor:
    """The read of `soft_masked_attention` row by row: the past as it is, the future times c."""
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    weights = scores.softmax(-1)
    return weights.tril() @ value + share * weights.triu(1) @ value


@mechanism(
    key="illama-post-class-token",
    paper="illama-post-class-token",
    chapter="4-sinks/where-sinks-come-from",
    section="where-the-mask-puts-it",
    step="support",
    idea="weights on the future shrink to zero early in training; the class token stands last",
    equation=r"(c\,B + (1 - c)\,C) \odot \mathrm{softmax}(Q K^\top / \sqrt{D})\; V",
    cost="time N^2 (D + E), memory N^2",
    oracle=dense_soft_masked_attention,
    promises=Promises(
        causal=False,
        cross=False,
        query_equivariant=False,
        key_invariant=False,
        normalized=False,
        grouped_query=False,
        padding=False,
        arguments=lambda query, key, value: {"share": 0.5},
    ),
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def soft_masked_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    share: float = 0.0,
) -> Float[Tensor, "*heads N E"]:
    r"""The soft mask on top of the softmax: o = (S \odot softmax(Q K^T / sqrt(D))) V.

    The softmax runs over all keys and the mask comes after it, so rows are not normalized again:
    with `share` = 0 a row keeps only the weight that its past got beside its future, and the size
    of that weight still tells of the future's scores.
    Cost: time N^2 (D + E), memory N^2. Raises ValueError for a share outside 0 ... 1, and for
    queries and keys of different number.
    Source: Wang et al. (2024), section 3.6; S as in `soft_mask`. Derived in chapter 4.1.
    """
    check_attention(query, key, value)
    check_share(share)
    if query.shape[-2] != key.shape[-2]:
        raise ValueError(
            f"key must have one row for each of the {query.shape[-2]} queries, got {key.shape[-2]}"
        )
    if query.shape[-2] == 0:
        return torch.zeros_like(value)
    weights = torch.softmax(dot_product(query, key), dim=-1)
    mask = soft_mask(query.shape[-2], share, dtype=query.dtype).to(query.device)
    return (mask * weights) @ value


def check_share(share: float) -> None:
    """Check that a share lies between nothing and everything."""
    if isinstance(share, bool) or not isinstance(share, int | float):
        raise TypeError(f"share must be a number, got {type(share).__name__}")
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in 0 ... 1, got {share}")
