"""The weight step with a sigmoid: every weight is decided alone, and nothing is normalized."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.weight.visible_keys import visible_keys


def sigmoid(
    scores: Float[Tensor, "*batch N M"],
    support: Bool[Tensor, "*batch N M"],
    *,
    bias: float | None = None,
) -> Float[Tensor, "*batch N M"]:
    r"""Weights between zero and one, each by itself: w_j = 1 / (1 + e^{-(s_j + b)}).

    b is -log n unless given, n the keys in the row's support. Where all scores are zero a weight is
    then 1/(n + 1), and a row sums to n/(n + 1), about one as with softmax. Without keys: zeros.
    Finite for all scores.
    Source: Ramapuram et al. (2025), section 2; there n is the length of the sequence in every row.
    """
    check_bias(bias)
    weights = gate(scores, visible_keys(support, scores.dtype), bias)
    return weights.masked_fill(~support, 0.0)


def gate(
    scores: Float[Tensor, "*batch N M"], count: Float[Tensor, "*#batch #N 1"], bias: float | None
) -> Float[Tensor, "*batch N M"]:
    """The sigmoid of any part of a row, given how many keys the whole row may see."""
    shift = -count.log().to(scores.dtype) if bias is None else bias
    return torch.sigmoid(scores + shift)


def check_bias(bias: float | None) -> None:
    """Raise unless the bias is None (then it is -log n) or a finite number."""
    if bias is None:
        return
    if isinstance(bias, bool) or not isinstance(bias, int | float):
        raise TypeError(f"bias must be a number, got {type(bias).__name__}")
    if not math.isfinite(bias):
        raise ValueError(f"bias must be a finite number, got {bias}")
