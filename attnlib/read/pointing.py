"""Pointing: stop after the weight step and give the weights themselves as the answer."""

from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.atlas import Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.score.compare import additive


@mechanism(
    key="pointer-networks",
    paper="pointer-networks",
    chapter="1-foundations/soft-lookup",
    section="read-stop-and-point",
    step="read",
    idea="the weights are the answer: point to a key and read nothing",
    equation=r"\mathrm{softmax}_j(v^\top \tanh(W_1 k_j + W_2 q_i))",
    cost="time and memory N M A",
    promises=None,
    taxonomy=Taxonomy(
        sequences="distinctive", levels="single", positions="soft", representations="single"
    ),
)
def pointer_attention(
    query: Float[Tensor, "*batch N D"],
    key: Float[Tensor, "*batch M K"],
    *,
    query_matrix: Float[Tensor, "A D"],
    key_matrix: Float[Tensor, "A K"],
    vector: Float[Tensor, " A"],
    attn_mask: Bool[Tensor, "*#batch #N #M"] | None = None,
) -> Float[Tensor, "*batch N M"]:
    r"""A distribution over the keys for each query: softmax_j(v . tanh(W_1 k_j + W_2 q_i)).

    The number of answers is the number of keys, so it may change from one input to the next.
    Errors as in `attend`. Cost: time and memory N M A.
    Source: Vinyals et al. (2015), eq. 3. Derived in chapter 1.1.
    """
    score = additive(query_matrix, key_matrix, vector)
    return attend(query, key, key, score=score, attn_mask=attn_mask, return_weights=True)[1]
