"""Performer: softmax attention estimated in linear time by positive random features."""

from functools import cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.checks import check_count, check_scale, check_tensor
from attnlib.read.linear_attention import LinearState, linear_attention, linear_attention_step
from attnlib.score.features import FeatureMap, feature_product
from attnlib.weight.division import divided_by_sum
from attnlib.weight.feature_maps.random_features import (
    orthogonal_directions,
    positive_random_features,
)


@cache
def drawn_directions(width: int, features: int, seed: int) -> Float[Tensor, "R D"]:
    """Orthogonal directions that are the same for every call with these numbers."""
    generator = torch.Generator().manual_seed(seed)
    return orthogonal_directions(width, features, generator=generator, dtype=torch.float64)


def drawn_map(query: Tensor, features: int, seed: int, scale: float | None) -> FeatureMap:
    """The positive random features for tensors like `query`."""
    check_tensor("query", query)
    check_count("features", features, least=1)
    check_count("seed", seed)
    check_scale(scale)
    return positive_random_features(drawn_directions(query.shape[-1], features, seed), scale)


def dense_performer_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    features: int = 256,
    seed: int = 0,
    scale: float | None = None,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    enable_gqa: bool = False,
) -> Tensor:
    """`performer_attention` by `attend`: the estimates of all weights as a table."""
    return attend(
        query,
        key,
        value,
        score=feature_product(drawn_map(query, features, seed, scale)),
        weight=divided_by_sum,
        attn_mask=attn_mask,
        is_causal=is_causal,
        query_offset=query_offset,
        enable_gqa=enable_gqa,
    )


def performer_attention_step(
    state: LinearState | None,
    query: Float[Tensor, "*heads 1 D"],
    key: Float[Tensor, "*key_heads 1 D"],
    value: Float[Tensor, "*key_heads 1 E"],
    *,
    features: int = 256,
    seed: int = 0,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Float[Tensor, "*heads 1 E"], LinearState]:
    """`performer_attention` with is_causal for the next token: (read, new state)."""
    return linear_attention_step(
        state,
        query,
        key,
        value,
        feature_map=drawn_map(query, features, seed, scale),
        enable_gqa=enable_gqa,
    )


@mechanism(
    key="performer",
    paper="choromanski-2021",
    chapter="3-linear/feature-maps",
    section="random-features",
    step="weight",
    idea="positive random features whose product is the exponential on average",
    equation=r"\phi_r(x) = e^{w_r^\top x - |x|^2 / 2} / \sqrt{R}",
    cost="time (N + M) R (D + E), memory (N + M)(R + E) + R E",
    oracle=dense_performer_attention,
    recurrent=performer_attention_step,
    promises=Promises(constant_state=True),
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def performer_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    *,
    features: int = 256,
    seed: int = 0,
    scale: float | None = None,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    enable_gqa: bool = False,
    chunk: int = 128,
    backend: str = "auto",
) -> Float[Tensor, "*heads N E"]:
    r"""Linear attention with R = `features` positive random features in orthogonal directions.

    The weights before division are unbiased estimates of exp(scale q . k), so the read comes near
    to that of softmax attention as R grows; how near depends on |q + k|. It equals
    `dense_performer_attention`, its own dense form, exactly. `seed` draws the directions, the same
    ones for all heads and calls. Rows with long queries and keys may underflow and then read zero.

    Shapes, support and errors as in `linear_attention`. Cost: time (N + M) R (D + E).
    Source: Choromanski et al. (2021), lemma 1, eq. 5 and section 2.4. Derived in chapter 3.1.
    """
    return linear_attention(
        query,
        key,
        value,
        feature_map=drawn_map(query, features, seed, scale),
        attn_mask=attn_mask,
        is_causal=is_causal,
        query_offset=query_offset,
        enable_gqa=enable_gqa,
        chunk=chunk,
        backend=backend,
    )
