"""Weights from numbers that are weights already: each is divided by the sum of its row."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def divided_by_sum(
    scores: Float[Tensor, "*batch N M"], support: Bool[Tensor, "*batch N M"]
) -> Float[Tensor, "*batch N M"]:
    r"""w_j = s_j / sum_{l in S} s_l: the weight step of all linear attention.

    A row whose sum is zero has weights zero. Raises ValueError where a sum is negative (on a CPU).
    """
    kept = scores.masked_fill(~support, 0.0)
    return divided(kept, kept.sum(-1, keepdim=True))


def not_divided(
    scores: Float[Tensor, "*batch N M"], support: Bool[Tensor, "*batch N M"]
) -> Float[Tensor, "*batch N M"]:
    """w_j = s_j in the support, zero outside."""
    return scores.masked_fill(~support, 0.0)


def divided(
    sums: Float[Tensor, "*batch N E"], total: Float[Tensor, "*batch N #E"]
) -> Float[Tensor, "*batch N E"]:
    """sums / total, and zero where the total is zero.

    A total below tiny / eps of the dtype (1e-31 in float32) counts as zero: its terms are too small
    to be told apart, and its gradient would overflow.
    Raises ValueError where a total is negative: a sum of weights that may be negative can come
    close to zero, and the quotient means nothing. On a GPU nobody looks, since looking would make
    the host wait for it, and such a row reads zero.
    """
    if total.device.type == "cpu" and (total < 0).any():
        raise ValueError(
            "feature_map must give products phi(q) . phi(k) whose sum over a row is not negative, "
            f"got a sum of {total.min().item():.3g}; use a map without negative products, or "
            "normalize=False"
        )
    limits = torch.finfo(total.dtype)
    return sums / total.masked_fill(total < limits.tiny / limits.eps, math.inf)
