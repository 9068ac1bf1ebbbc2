"""Reading in two directions between two sequences, one vector for each context token kept."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.atlas import Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.checks import check_tensor
from attnlib.score.compare import trilinear
from attnlib.weight.softmax import softmax


@mechanism(
    key="bidaf",
    paper="bidaf",
    chapter="1-foundations/soft-lookup",
    section="read-in-two-directions",
    step="read",
    idea="two sequences read each other, and one vector a context token is kept",
    equation=r"\tilde u_t = \mathrm{softmax}_j(s_{tj})\,u_j,\;"
    r"\tilde h = \mathrm{softmax}_t(\max_j s_{tj})\,h_t",
    cost="time T J D, memory T J",
    promises=None,
    taxonomy=Taxonomy(sequences="co", levels="single", positions="soft", representations="single"),
)
def bidirectional_attention(
    context: Float[Tensor, "*batch T D"],
    question: Float[Tensor, "*batch J D"],
    vector: Float[Tensor, " three_D"],
    *,
    question_mask: Bool[Tensor, "*batch J"] | None = None,
    context_mask: Bool[Tensor, "*batch T"] | None = None,
) -> tuple[Float[Tensor, "*batch T D"], Float[Tensor, "*batch 1 D"]]:
    r"""Bidirectional attention flow: what the question says to each context token, and back.

    With s_tj = w . [h_t; u_j; h_t * u_j] the two reads are

    .. math:: \tilde u_t = \sum_j \mathrm{softmax}_j(s_{tj})\,u_j, \qquad
              \tilde h = \sum_t \mathrm{softmax}_t(\max_j s_{tj})\,h_t

    Returns (context-to-question reads u~, question-to-context read h~). Masks mark real tokens.
    Cost: time T J D, memory T J. Errors as in `attend`.
    Source: Seo et al. (2017), eqs. 1 to 3. Derived in chapter 1.1.
    """
    for name, mask, tokens in (
        ("question_mask", question_mask, question),
        ("context_mask", context_mask, context),
    ):
        check_tensor(name.removesuffix("_mask"), tokens)
        if mask is not None and (mask.dtype != torch.bool or mask.shape != tokens.shape[:-1]):
            raise ValueError(
                f"{name} must be bool of shape {tuple(tokens.shape[:-1])}, "
                f"got {mask.dtype} {tuple(mask.shape)}"
            )
    score = trilinear(vector)
    seen = None if question_mask is None else question_mask[..., None, :]
    to_context = attend(context, question, question, score=score, attn_mask=seen)

    scores = score(context, question)
    if seen is not None:
        scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    best = scores.amax(-1)[..., None, :]
    real = torch.ones_like(best, dtype=torch.bool)
    if context_mask is not None:
        real = context_mask[..., None, :]
    return to_context, softmax(best, real) @ context


def flow(
    context: Float[Tensor, "*batch T D"],
    to_context: Float[Tensor, "*batch T D"],
    to_question: Float[Tensor, "*batch 1 D"],
) -> Float[Tensor, "*batch T four_D"]:
    """One vector a context token: G_t = [h_t; u~_t; h_t * u~_t; h_t * h~] (Seo et al., eq. 4)."""
    return torch.cat((context, to_context, context * to_context, context * to_question), dim=-1)
