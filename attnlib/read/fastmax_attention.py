"""FAST: a polynomial of standardized queries and keys, always positive at order two."""

from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.read.linear_attention import LinearState, linear_attention, linear_attention_step
from attnlib.score.kernels import standardized_product
from attnlib.weight.division import divided_by_sum
from attnlib.weight.feature_maps.taylor import standardized_polynomial


def dense_fastmax_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    order: int = 2,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    enable_gqa: bool = False,
) -> Tensor:
    """`fastmax_attention` by `attend`, with the function that its features stand for."""
    return attend(
        query,
        key,
        value,
        score=standardized_product(order),
        weight=divided_by_sum,
        attn_mask=attn_mask,
        is_causal=is_causal,
        query_offset=query_offset,
        enable_gqa=enable_gqa,
    )


def fastmax_attention_step(
    state: LinearState | None,
    query: Float[Tensor, "*heads 1 D"],
    key: Float[Tensor, "*key_heads 1 D"],
    value: Float[Tensor, "*key_heads 1 E"],
    *,
    order: int = 2,
    enable_gqa: bool = False,
) -> tuple[Float[Tensor, "*heads 1 E"], LinearState]:
    """`fastmax_attention` with is_causal for the next token: (read, new state)."""
    return linear_attention_step(
        state,
        query,
        key,
        value,
        feature_map=standardized_polynomial(order),
        enable_gqa=enable_gqa,
    )


@mechanism(
    key="fastmax",
    paper="fastmax",
    chapter="3-linear/feature-maps",
    section="expanding-the-exponential",
    step="weight",
    idea="a polynomial of the product of standardized queries and keys",
    equation=r"f(\hat q \cdot \hat k), \quad f(s) = 1 + s + s^2 / 2",
    cost="time (N + M) D^order E, memory (N + M)(D^order + E) + D^order E",
    oracle=dense_fastmax_attention,
    recurrent=fastmax_attention_step,
    promises=Promises(constant_state=True),
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def fastmax_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    *,
    order: int = 2,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    enable_gqa: bool = False,
    chunk: int = 128,
    backend: str = "auto",
) -> Float[Tensor, "*heads N E"]:
    r"""Linear attention with weights f(s) = sum over l <= order of s^l / l!, s = q^ . k^.

    q^ and k^ are query and key less their mean over the channels, divided by their standard
    deviation, so that |s| <= D however long they were. Order 2 is positive everywhere. Order 1 is
    negative for s < -1, and a row whose sum is negative raises ValueError on a CPU.

    Shapes, support and errors as in `linear_attention`; there is no scale. Cost: time (N + M) R E,
    R = 1 + D for order 1 and C(D + 2, 2) for order 2 (the paper keeps all D^2 products).
    Source: Gerami et al. (2024), section 2. Derived in chapter 3.1.
    """
    return linear_attention(
        query,
        key,
        value,
        feature_map=standardized_polynomial(order),
        attn_mask=attn_mask,
        is_causal=is_causal,
        query_offset=query_offset,
        enable_gqa=enable_gqa,
        chunk=chunk,
        backend=backend,
    )
