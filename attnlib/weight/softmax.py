"""The weight step with softmax, and softmax attention as the book's first mechanism."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def softmax(
    scores: Float[Tensor, "*batch N M"], support: Bool[Tensor, "*batch N M"]
) -> Float[Tensor, "*batch N M"]:
    r"""Positive weights that sum to one over the support: w_j = e^{s_j} / sum_{l in S} e^{s_l}.

    Outside the support, and in a row whose support is empty, the weight is zero. The lowest number
    of the dtype stands for minus infinity, so that no NaN can arise in such a row.
    Finite for scores up to 1e4 in every dtype.
    """
    lowest = torch.finfo(scores.dtype).min
    weights = torch.softmax(scores.masked_fill(~support, lowest), dim=-1)
    return weights.masked_fill(~support, 0.0)
