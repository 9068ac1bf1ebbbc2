"""The weight step with signs: a negative score subtracts what it points at."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.weight.softmax import softmax


def signed(
    scores: Float[Tensor, "*batch N M"], support: Bool[Tensor, "*batch N M"]
) -> Float[Tensor, "*batch N M"]:
    r"""Weights of either sign: w_j = sign(s_j) e^{|s_j|} / sum_{l in S} e^{|s_l|}.

    The size of a weight is a softmax of |s|, so the sizes of a row sum to one, while the weights
    themselves sum to something between -1 and 1. A score of exactly zero has no sign and no weight.
    The weight jumps from -w to w where a score passes zero; the gradient does not see the jump.
    Finite for scores up to 1e4 in every dtype.
    Source: Lv et al. (2024), "SignExp"; the normalizer is the sum of the absolute values.
    """
    return torch.sign(scores) * softmax(scores.abs(), support)
