"""The weight step with one null logit: a row may keep a part of its weight to itself."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.checks import fits


def softmax_with_null(
    scores: Float[Tensor, "*batch N M"],
    support: Bool[Tensor, "*batch N M"],
    null_logit: float | Float[Tensor, "..."] = 0.0,
) -> Float[Tensor, "*batch N M"]:
    r"""Softmax over the support and one null: w_j = e^{s_j} / (e^a + sum_{l in S} e^{s_l}).

    The null is one more key with the logit a = `null_logit` and the value zero: it takes weight and
    says nothing, so the weights of a row sum to less than one. `null_logit` is a number or one for
    each head. A row whose support is empty has no weights.
    Finite for scores and null logits up to 1e4 in every dtype.
    Source: Miller (2023), softmax_1, where a = 0.
    """
    null = null_column(null_logit, scores)
    lowest = torch.finfo(scores.dtype).min
    # The null stands in the row, so the largest logit that softmax subtracts may be its own.
    row = torch.cat((null, scores.masked_fill(~support, lowest)), dim=-1)
    return torch.softmax(row, dim=-1)[..., 1:].masked_fill(~support, 0.0)


def null_column(
    null_logit: float | Float[Tensor, "..."], scores: Float[Tensor, "*batch N M"]
) -> Float[Tensor, "*batch N 1"]:
    """The logit of the null for each row of the scores, as a column."""
    check_null_logit(null_logit, scores)
    if not isinstance(null_logit, Tensor):
        return scores.new_full((*scores.shape[:-1], 1), null_logit)
    column = null_logit.to(scores)
    if column.dim() == 1:
        column = column[:, None, None]
    return column.expand(*scores.shape[:-1], 1)


def check_null_logit(null_logit: float | Tensor, scores: Tensor) -> None:
    """Check that a null logit is a number, or a tensor with one number for each head.

    `scores` may be any tensor (..., heads, N, anything). Minus infinity is no null at all.
    """
    if isinstance(null_logit, Tensor):
        if not null_logit.is_floating_point():
            raise TypeError(f"null_logit must be a floating-point tensor, got {null_logit.dtype}")
        heads = scores.shape[-3:-2]
        if null_logit.dim() > 1 or not fits(null_logit.shape, heads):
            raise ValueError(
                f"null_logit must be a number or have shape {tuple(heads)}, one for each head, "
                f"got {tuple(null_logit.shape)}"
            )
        return
    if isinstance(null_logit, bool) or not isinstance(null_logit, int | float):
        raise TypeError(
            f"null_logit must be a number or a torch.Tensor, got {type(null_logit).__name__}"
        )
    if math.isnan(null_logit) or null_logit == math.inf:
        raise ValueError(f"null_logit must be a number below infinity, got {null_logit}")
