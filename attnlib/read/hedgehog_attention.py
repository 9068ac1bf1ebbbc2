"""Hedgehog attention: linear attention with learnt features that are trained to copy softmax."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.checks import check_tensor, fits
from attnlib.read.linear_attention import LinearState, linear_attention, linear_attention_step
from attnlib.score.features import feature_product
from attnlib.weight.division import divided_by_sum
from attnlib.weight.feature_maps.hedgehog import HedgehogMap, hedgehog


def trial_matrices(query: Tensor, key: Tensor, value: Tensor) -> dict[str, Tensor]:
    """Matrices to try Hedgehog attention with: the same for every call with these widths."""
    generator = torch.Generator().manual_seed(0)
    width = query.shape[-1]
    draws = torch.randn(2, width, width, generator=generator, dtype=torch.float64) * width**-0.5
    return {"query_matrix": draws[0].to(query), "key_matrix": draws[1].to(query)}


def dense_hedgehog_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    query_matrix: Tensor,
    key_matrix: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    return_weights: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`hedgehog_attention` by `attend`: the form that is trained to copy softmax weights."""
    return attend(
        query,
        key,
        value,
        score=feature_product(
            lambda x: hedgehog(x, query_matrix), lambda x: hedgehog(x, key_matrix)
        ),
        weight=divided_by_sum,
        attn_mask=attn_mask,
        is_causal=is_causal,
        query_offset=query_offset,
        return_weights=return_weights,
    )


def check_matrices(query: Tensor, query_matrix: Tensor, key_matrix: Tensor) -> None:
    """Check that both matrices are (F, D), or (..., heads, F, D) that broadcast to the heads."""
    check_tensor("query", query)
    for name, matrix in (("query_matrix", query_matrix), ("key_matrix", key_matrix)):
        check_tensor(name, matrix)
        if matrix.dim() < 2 or not fits(matrix.shape[:-2], query.shape[:-2]):
            raise ValueError(
                f"{name} must have shape (F, D) or {(*query.shape[:-2], 'F', 'D')}, "
                f"got {tuple(matrix.shape)}"
            )


def hedgehog_attention_step(
    state: LinearState | None,
    query: Float[Tensor, "*heads 1 D"],
    key: Float[Tensor, "*heads 1 D"],
    value: Float[Tensor, "*heads 1 E"],
    *,
    query_matrix: Float[Tensor, "*#heads F D"],
    key_matrix: Float[Tensor, "*#heads F D"],
) -> tuple[Float[Tensor, "*heads 1 E"], LinearState]:
    """`hedgehog_attention` with is_causal for the next token: (read, new state)."""
    check_matrices(query, query_matrix, key_matrix)
    return linear_attention_step(
        state,
        query,
        key,
        value,
        feature_map=lambda x: hedgehog(x, query_matrix),
        key_feature_map=lambda x: hedgehog(x, key_matrix),
    )


@mechanism(
    key="hedgehog",
    paper="hedgehog",
    chapter="3-linear/feature-maps",
    section="spikes-and-order",
    step="weight",
    idea="learnt features, trained to copy the weights of softmax attention",
    equation=r"\phi(x) = \mathrm{softmax}\,[W x,\, -W x]",
    cost="time (N + M) D (D + E), memory (N + M)(D + E) + D E",
    oracle=dense_hedgehog_attention,
    recurrent=hedgehog_attention_step,
    promises=Promises(grouped_query=False, constant_state=True, arguments=trial_matrices),
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def hedgehog_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    value: Float[Tensor, "*heads M E"],
    *,
    query_matrix: Float[Tensor, "*#heads F D"],
    key_matrix: Float[Tensor, "*#heads F D"],
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    chunk: int = 128,
    backend: str = "auto",
) -> Float[Tensor, "*heads N E"]:
    r"""Linear attention with phi(x) = softmax of [W x, -W x], one W for queries and one for keys.

    The matrices are trained so that the weights copy those of a softmax teacher, by the
    cross-entropy between the two (`attnlib.weight.feature_maps.HedgehogMap` holds them, with an
    offset b); then this form runs in linear time.

    Shapes, support and errors as in `linear_attention`. Cost: time (N + M) F (D + E).
    Source: Zhang et al. (2024), section 4. Derived in chapter 3.1.
    """
    check_matrices(query, query_matrix, key_matrix)
    return linear_attention(
        query,
        key,
        value,
        feature_map=lambda x: hedgehog(x, query_matrix),
        key_feature_map=lambda x: hedgehog(x, key_matrix),
        attn_mask=attn_mask,
        is_causal=is_causal,
        query_offset=query_offset,
        chunk=chunk,
        backend=backend,
    )


class HedgehogAttention(nn.Module):
    """Hedgehog attention with its own maps of queries and of keys: an operator for a layer.

    With heads=1 all heads share them. Both start as the identity.
    """

    def __init__(self, head_width: int, heads: int = 1):
        super().__init__()
        self.query_map = HedgehogMap(head_width, heads)
        self.key_map = HedgehogMap(head_width, heads)

    def weights(
        self,
        query: Float[Tensor, "*batch heads N D"],
        key: Float[Tensor, "*batch heads M D"],
        is_causal: bool = False,
    ) -> Float[Tensor, "*batch heads N M"]:
        """The weights as a table, which is what is trained to copy a teacher."""
        return attend(
            query,
            key,
            key,
            score=feature_product(self.query_map, self.key_map),
            weight=divided_by_sum,
            is_causal=is_causal,
            return_weights=True,
        )[1]

    def forward(
        self,
        query: Float[Tensor, "*batch heads N D"],
        key: Float[Tensor, "*batch heads M D"],
        value: Float[Tensor, "*batch heads M E"],
        *,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        query_offset: int = 0,
    ) -> Float[Tensor, "*batch heads N E"]:
        """The read in linear time."""
        return linear_attention(
            query,
            key,
            value,
            feature_map=self.query_map,
            key_feature_map=self.key_map,
            attn_mask=attn_mask,
            is_causal=is_causal,
            query_offset=query_offset,
        )
