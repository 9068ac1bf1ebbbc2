"""Additive attention: the read that taught translation models to look back."""

from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.attend import attend
from attnlib.score.compare import additive


def additive_attention(
    query: Float[Tensor, "*batch heads N D"],
    key: Float[Tensor, "*batch heads M K"],
    value: Float[Tensor, "*batch heads M E"],
    *,
    query_matrix: Float[Tensor, "A D"],
    key_matrix: Float[Tensor, "A K"],
    vector: Float[Tensor, " A"],
    attn_mask: Bool[Tensor, "*#batch #heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
) -> Float[Tensor, "*batch heads N E"]:
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
