"""The global half of Based: linear attention with the second-order Taylor features of exp."""

from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.read.linear_attention import (
    LinearState,
    feature_map_attention,
    linear_attention,
    linear_attention_step,
)
from attnlib.weight.feature_maps.taylor import taylor

TERMS = 3
"""1 + s + s^2 / 2: never below 1/2, so that the sum may divide."""


def based_attention_dense(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    *,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    enable_gqa: bool = False,
) -> Float[Tensor, "*heads N E"]:
    """The same with an N x M table of weights."""
    return feature_map_attention(
        query,
        key,
        value,
        feature_map=taylor(TERMS),
        attn_mask=attn_mask,
        is_causal=is_causal,
        query_offset=query_offset,
        enable_gqa=enable_gqa,
    )


def based_attention_step(
    state: LinearState | None,
    query: Float[Tensor, "*heads 1 D"],
    key: Float[Tensor, "*key_heads 1 D"],
    value: Float[Tensor, "*key_heads 1 E"],
    *,
    enable_gqa: bool = False,
) -> tuple[Float[Tensor, "*heads 1 E"], LinearState]:
    """(read, new state) for the next token; pass None to begin."""
    return linear_attention_step(
        state, query, key, value, feature_map=taylor(TERMS), enable_gqa=enable_gqa
    )


@mechanism(
    key="based",
    paper="based",
    chapter="3-linear/recurrent-and-chunked",
    section="recall-and-memory",
    step="weight",
    idea="exp is cut after its second power, and the state holds all products of two channels",
    equation=r"w_{ij} \propto 1 + s_{ij} + s_{ij}^2 / 2, \quad s_{ij} = q_i \cdot k_j / \sqrt{D}",
    cost="time (N + M) D^2 E / 2, state D^2 E / 2",
    oracle=based_attention_dense,
    recurrent=based_attention_step,
    promises=Promises(constant_state=True, score_range=1e3),
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def based_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    *,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    enable_gqa: bool = False,
    chunk: int = 64,
    backend: str = "auto",
) -> Float[Tensor, "*heads N E"]:
    r"""Linear attention with phi(x) = [1, x / D^(1/4), vec(x x^T) / (sqrt(2) sqrt(D))].

    .. math:: \phi(q) \cdot \phi(k) = 1 + s + s^2 / 2, \qquad s = q \cdot k / \sqrt{D}

    Here vec(x x^T) holds every product of two channels once, so there are (D + 1)(D + 2) / 2
    features where the paper has 1 + D + D^2, and the same weights. D is small (16 in the paper, for
    values of 64): a state of about D^2 E / 2 numbers for each head. Based puts layers of this and
    layers of softmax over a short window one after the other: `attnlib.models.TaylorLayer`,
    `WindowLayer`. Shapes, support, errors and backend as in `linear_attention`.
    Source: Arora et al. (2024), section 4.1. Derived in chapter 3.2.
    """
    return linear_attention(
        query,
        key,
        value,
        feature_map=taylor(TERMS),
        attn_mask=attn_mask,
        is_causal=is_causal,
        query_offset=query_offset,
        enable_gqa=enable_gqa,
        chunk=chunk,
        backend=backend,
    )
