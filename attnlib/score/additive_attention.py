"""Additive attention: the read that taught translation models to look back."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.score.compare import additive


def trial_matrices(query: Tensor, key: Tensor, value: Tensor) -> dict[str, Tensor]:
    """Matrices to try additive attention with: the same for every call with these widths."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "query_matrix": (5, query.shape[-1]),
        "key_matrix": (5, key.shape[-1]),
        "vector": (5,),
    }
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(query)
        for name, shape in shapes.items()
    }


@mechanism(
    key="additive",
    paper="bahdanau-2015",
    chapter="1-foundations/soft-lookup",
    section="score-a-small-network-or-a-product",
    step="score",
    idea="a small network with one hidden layer scores each pair of query and key",
    equation=r"\mathrm{softmax}_j\bigl(v^\top \tanh(W q_i + U k_j)\bigr)\, V",
    cost="time N M (A + E), memory N M A",
    promises=Promises(grouped_query=False, shared_width=False, arguments=trial_matrices),
    taxonomy=Taxonomy(
        sequences="distinctive", levels="single", positions="soft", representations="single"
    ),
)
def additive_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M K"],
    value: Float[Tensor, "*heads M E"],
    *,
    query_matrix: Float[Tensor, "A D"],
    key_matrix: Float[Tensor, "A K"],
    vector: Float[Tensor, " A"],
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
) -> Float[Tensor, "*heads N E"]:
    r"""Softmax read with the score v . tanh(W q_i + U k_j).

    Shapes, support and errors as in `attend`; query and key may differ in width.
    Cost: time N M (A + E), memory N M A for each head: every pair has its own hidden vector.
    Source: Bahdanau et al. (2015), eq. 6 and appendix A.1.2. Derived in chapter 1.1.
    """
    return attend(
        query,
        key,
        value,
        score=additive(query_matrix, key_matrix, vector),
        attn_mask=attn_mask,
        is_causal=is_causal,
        query_offset=query_offset,
    )
