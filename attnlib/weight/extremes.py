"""Two weights at the ends of softmax: equal weights for all, and all the weight for one."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def uniform(
    scores: Float[Tensor, "*batch N M"], support: Bool[Tensor, "*batch N M"]
) -> Float[Tensor, "*batch N M"]:
    """Equal weights over the support, whatever the scores: w_j = 1/n (softmax at zero scale)."""
    count = support.sum(-1, keepdim=True).clamp(min=1)
    return support.to(scores.dtype) / count


def hardmax(
    scores: Float[Tensor, "*batch N M"], support: Bool[Tensor, "*batch N M"]
) -> Float[Tensor, "*batch N M"]:
    """Weight one for the highest score in the support (the first of equals): infinite scale.

    Its gradient with respect to the scores is zero wherever it exists.
    """
    if scores.shape[-1] == 0:
        return torch.zeros_like(scores)
    lowest = torch.finfo(scores.dtype).min
    winner = scores.masked_fill(~support, lowest).argmax(-1, keepdim=True)
    return torch.zeros_like(scores).scatter(-1, winner, 1.0).masked_fill(~support, 0.0)
