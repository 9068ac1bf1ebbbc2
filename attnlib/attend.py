"""`attend`: the whole book in one function. Score, support, weight, read."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.checks import check_attention, check_count, check_mask, check_scale
from attnlib.read.heads import repeat_key_heads, weighted_sum
from attnlib.score.changes import changed
from attnlib.score.compare import dot_product
from attnlib.support import allowed_keys, index_grid
from attnlib.weight.softmax import softmax


def attend(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    *,
    score: Callable[..., Tensor] = dot_product,
    score_mod: Callable[..., Tensor] | None = None,
    support: Callable[..., Tensor] | None = None,
    weight: Callable[[Tensor, Tensor], Tensor] = softmax,
    read: Callable[[Tensor, Tensor], Tensor] = weighted_sum,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_weights: bool = False,
) -> Float[Tensor, "*heads N E"] | tuple[Tensor, Tensor]:
    r"""Dense attention in four steps, differentiable in every input: the oracle of the book.

    .. math:: o_i = \sum_{j \in S_i} w(s_i, S_i)_j \, v_j, \qquad s_{ij} = \mathrm{score}(q_i, k_j)

    Shapes: query (..., heads, N, D), key (..., heads, M, D), value (..., heads, M, E); a single
    head may be given as (N, D), (M, D), (M, E). With `enable_gqa` the keys may have fewer heads.
    Cost: time N M (D + E) and memory N M for each head.

    The support is the intersection of `support` (a predicate `(b, h, q_idx, kv_idx) -> bool`),
    `attn_mask` (bool, True = may attend) and, with `is_causal`, the keys j <= i + `query_offset`.
    Predicates and score changes see query positions with the offset added. A row whose support
    is empty reads zero. With `return_weights` the result is the pair (read, weights).
    Raises ValueError or TypeError naming the argument that does not fit.
    Source: the dot-product softmax read is Vaswani et al. (2017), eq. 1. Derived in chapter 1.1.
    """
    check_attention(query, key, value, enable_gqa)
    check_scale(scale)
    check_count("query_offset", query_offset)
    if enable_gqa:
        key, value = repeat_key_heads(query, key, value)
    where = index_grid(query, key.shape[-2], query_offset)

    scores = score(query, key, scale=scale)
    if score_mod is not None:
        scores = changed(score_mod, scores, where)
    if attn_mask is not None:
        check_mask(attn_mask, scores.shape)
    allowed = allowed_keys(where, support, attn_mask, is_causal)
    weights = weight(scores, torch.broadcast_to(allowed, scores.shape))
    out = read(weights, value)
    return (out, weights) if return_weights else out
