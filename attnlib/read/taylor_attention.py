"""Softmax attention with the exponential cut off after a few powers, at constant cost a token."""

from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.read.linear_attention import LinearState, linear_attention, linear_attention_step
from attnlib.score.kernels import truncated_exponential
from attnlib.weight.division import divided_by_sum
from attnlib.weight.feature_maps.taylor import taylor


def dense_taylor_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    terms: int = 3,
    scale: float | None = None,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    enable_gqa: bool = False,
) -> Tensor:
    """`taylor_attention` by `attend`, with the function that its features stand for."""
    return attend(
        query,
        key,
        value,
        score=truncated_exponential(terms),
        weight=divided_by_sum,
        attn_mask=attn_mask,
        is_causal=is_causal,
        query_offset=query_offset,
        scale=scale,
        enable_gqa=enable_gqa,
    )


def taylor_attention_step(
    state: LinearState | None,
    query: Float[Tensor, "*heads 1 D"],
    key: Float[Tensor, "*key_heads 1 D"],
    value: Float[Tensor, "*key_heads 1 E"],
    *,
    terms: int = 3,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Float[Tensor, "*heads 1 E"], LinearState]:
    """`taylor_attention` with is_causal for the next token: (read, new state)."""
    return linear_attention_step(
        state,
        query,
        key,
        value,
        feature_map=taylor(terms, scale),
        enable_gqa=enable_gqa,
    )


@mechanism(
    key="sata-taylor",
    paper="sata-taylor",
    chapter="3-linear/feature-maps",
    section="expanding-the-exponential",
    step="weight",
    idea="the exponential as a polynomial of the dot product, in sorted monomials",
    equation=r"\sum_{p<P} (q \cdot k / \sqrt D)^p / p!",
    cost="time (N + M) R E, memory (N + M)(R + E) + R E, R = C(D + terms - 1, terms - 1)",
    oracle=dense_taylor_attention,
    recurrent=taylor_attention_step,
    promises=Promises(constant_state=True),
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def taylor_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    *,
    terms: int = 3,
    scale: float | None = None,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    enable_gqa: bool = False,
    chunk: int = 128,
    backend: str = "auto",
) -> Float[Tensor, "*heads N E"]:
    r"""Linear attention whose weights are sum over p < terms of s^p / p!, s the scaled product.

    The features are the sorted monomials of query and key, the smallest basis there is for such a
    sum: C(D + terms - 1, terms - 1) of them for a head of width D, so that heads must be narrow.
    With an odd number of terms, such as the three here, all weights are positive, whatever the
    scores. An even number goes negative for low scores: with four (the number of the paper) below
    -1.6. Then weights may be negative, and a sum that is negative raises ValueError on a CPU.

    Shapes, support and errors as in `linear_attention`. Cost: time and state R E a token.
    Source: Heinsen and Kozachkov (2026). Derived in chapter 3.1.
    """
    return linear_attention(
        query,
        key,
        value,
        feature_map=taylor(terms, scale),
        attn_mask=attn_mask,
        is_causal=is_causal,
        query_offset=query_offset,
        enable_gqa=enable_gqa,
        chunk=chunk,
        backend=backend,
    )
