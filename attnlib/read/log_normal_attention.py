"""LLN attention: exponential features, as widely spread as the weights of softmax."""

import math

from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.read.linear_attention import LinearState, linear_attention, linear_attention_step
from attnlib.score.kernels import sum_of_exponentials
from attnlib.weight.division import divided_by_sum
from attnlib.weight.feature_maps.log_normal import matched_exponents

UNIT = matched_exponents(1.0, 1.0)
"""alpha and beta for queries and keys whose entries have a standard deviation of one."""


def dense_log_normal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    alpha: float = UNIT.alpha,
    beta: float = UNIT.beta,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    enable_gqa: bool = False,
) -> Tensor:
    """`log_normal_attention` by `attend`, with the function that its features stand for."""
    return attend(
        query,
        key,
        value,
        score=sum_of_exponentials(alpha, beta),
        weight=divided_by_sum,
        attn_mask=attn_mask,
        is_causal=is_causal,
        query_offset=query_offset,
        enable_gqa=enable_gqa,
    )


def check_exponents(alpha: float, beta: float) -> None:
    """Raise unless both are finite numbers."""
    for name, number in (("alpha", alpha), ("beta", beta)):
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise TypeError(f"{name} must be a number, got {type(number).__name__}")
        if not math.isfinite(number):
            raise ValueError(f"{name} must be finite, got {number}")


def log_normal_attention_step(
    state: LinearState | None,
    query: Float[Tensor, "*heads 1 D"],
    key: Float[Tensor, "*key_heads 1 D"],
    value: Float[Tensor, "*key_heads 1 E"],
    *,
    alpha: float = UNIT.alpha,
    beta: float = UNIT.beta,
    enable_gqa: bool = False,
) -> tuple[Float[Tensor, "*heads 1 E"], LinearState]:
    """`log_normal_attention` with is_causal for the next token: (read, new state)."""
    check_exponents(alpha, beta)
    return linear_attention_step(
        state,
        query,
        key,
        value,
        feature_map=lambda x: (alpha * x).exp(),
        key_feature_map=lambda x: (beta * x).exp(),
        enable_gqa=enable_gqa,
    )


@mechanism(
    key="lln-attention",
    paper="lln-attention",
    chapter="3-linear/feature-maps",
    section="the-log-normal-spread",
    step="weight",
    idea="exponential features whose log-variance is matched to that of softmax",
    equation=r"\phi(q) = e^{\alpha q}, \quad \phi(k) = e^{\beta k}",
    cost="time (N + M) D E, memory (N + M)(D + E) + D E",
    oracle=dense_log_normal_attention,
    recurrent=log_normal_attention_step,
    promises=Promises(constant_state=True, score_range=1e3),
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def log_normal_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    *,
    alpha: float = UNIT.alpha,
    beta: float = UNIT.beta,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    enable_gqa: bool = False,
    chunk: int = 128,
    backend: str = "auto",
) -> Float[Tensor, "*heads N E"]:
    r"""Linear attention with phi(q) = e^{alpha q} and phi(k) = e^{beta k}, channel by channel.

    alpha and beta set how widely the weights of a row are spread; `matched_exponents` gives those
    with which they are spread as softmax weights are, from the standard deviations of query and
    key. The default is for deviations of one. They are arguments, not measured in the call: a
    measure over all tokens would let the past see the future.

    Shapes, support and errors as in `linear_attention`. Finite in float32 while alpha q and beta k
    stay below 40.
    Source: Nahshan et al. (2024). Derived in chapter 3.1.
    """
    check_exponents(alpha, beta)
    return linear_attention(
        query,
        key,
        value,
        feature_map=lambda x: (alpha * x).exp(),
        key_feature_map=lambda x: (beta * x).exp(),
        attn_mask=attn_mask,
        is_causal=is_causal,
        query_offset=query_offset,
        enable_gqa=enable_gqa,
        chunk=chunk,
        backend=backend,
    )
