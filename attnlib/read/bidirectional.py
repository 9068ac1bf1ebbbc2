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
    _check_sequences(context, question)
    for name, mask, tokens in (
        ("question_mask", question_mask, question),
        ("context_mask", context_mask, context),
    ):
        if mask is not None:
            _check_real_tokens(name, mask, tokens)
    score = trilinear(vector)
    seen = None if question_mask is None else question_mask[..., None, :]
    to_context = attend(context, question, question, score=score, attn_mask=seen)

    scores = score(context, question)
    asked = torch.ones_like(scores, dtype=torch.bool) if seen is None else seen.expand_as(scores)
    lowest = torch.finfo(scores.dtype).min
    # One more column of lowest scores: the maximum of no words at all.
    words = torch.nn.functional.pad(scores.masked_fill(~asked, lowest), (0, 1), value=lowest)
    best, real = words.amax(-1)[..., None, :], asked.any(-1)[..., None, :]
    if context_mask is not None:
        real = real & context_mask[..., None, :]
    return to_context, softmax(best, real) @ context


def flow(
    context: Float[Tensor, "*batch T D"],
    to_context: Float[Tensor, "*batch T D"],
    to_question: Float[Tensor, "*batch 1 D"],
) -> Float[Tensor, "*batch T four_D"]:
    """One vector a context token: G_t = [h_t; u~_t; h_t * u~_t; h_t * h~] (Seo et al., eq. 4)."""
    return torch.cat((context, to_context, context * to_context, context * to_question), dim=-1)


def _check_sequences(context: Tensor, question: Tensor) -> None:
    for name, tokens in (("context", context), ("question", question)):
        check_tensor(name, tokens)
        if tokens.dim() < 2:
            raise ValueError(f"{name} must have shape (..., length, D), got {tuple(tokens.shape)}")
    if question.dtype != context.dtype:
        raise TypeError(
            f"question must have the dtype of context ({context.dtype}), got {question.dtype}"
        )
    if (*question.shape[:-2], question.shape[-1]) != (*context.shape[:-2], context.shape[-1]):
        raise ValueError(
            f"question must have the batch and the width of context {tuple(context.shape)}, "
            f"got {tuple(question.shape)}"
        )


def _check_real_tokens(name: str, mask: Tensor, tokens: Tensor) -> None:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        came = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{name} must be a bool tensor (True = a real token), got {came}")
    if mask.shape != tokens.shape[:-1]:
        raise ValueError(
            f"{name} must have shape {tuple(tokens.shape[:-1])}, got {tuple(mask.shape)}"
        )
