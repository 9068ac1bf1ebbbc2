"""The weight step with a rectifier: scores below zero get no weight, the others their own size."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.weight.visible_keys import visible_keys


def rectified(
    scores: Float[Tensor, "*batch N M"], support: Bool[Tensor, "*batch N M"]
) -> Float[Tensor, "*batch N M"]:
    r"""Weights that grow with the score and are zero below it: w_j = max(s_j, 0) / n.

    n is the number of keys in the row's support; rows do not sum to one. The gradient at a score of
    exactly zero is taken as zero, from the left.
    Source: Wortsman et al. (2023), with alpha = 1; there n is the length of the sequence.
    """
    return ramp(scores, visible_keys(support, scores.dtype)).masked_fill(~support, 0.0)


def squared_rectified(
    scores: Float[Tensor, "*batch N M"], support: Bool[Tensor, "*batch N M"]
) -> Float[Tensor, "*batch N M"]:
    r"""Weights that grow with the square of a positive score: w_j = max(s_j, 0)^2 / n.

    n is the number of keys in the row's support; rows do not sum to one. Smooth at zero: value and
    slope vanish there. Finite in float16 for scores up to 100, in the other dtypes up to 1e4.
    Source: the function, So et al. (2021), in a perceptron; as a weight of attention Hua et al.
    (2022), who divide the score by the length inside the square instead.
    """
    return squared_ramp(scores, visible_keys(support, scores.dtype)).masked_fill(~support, 0.0)


def ramp(
    scores: Float[Tensor, "*batch N M"], count: Float[Tensor, "*#batch #N 1"]
) -> Float[Tensor, "*batch N M"]:
    """max(s, 0) / n on any part of a row, given how many keys the whole row may see."""
    return torch.relu(scores) / count.to(scores.dtype)


def squared_ramp(
    scores: Float[Tensor, "*batch N M"], count: Float[Tensor, "*#batch #N 1"]
) -> Float[Tensor, "*batch N M"]:
    """max(s, 0)^2 / n on any part of a row, given how many keys the whole row may see."""
    return torch.relu(scores).square() / count.to(scores.dtype)
