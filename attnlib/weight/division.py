"""Weights from numbers that are weights already: each is divided by the sum of its row."""

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
    return kept * inverse_of(kept.sum(-1)).unsqueeze(-1)


def not_divided(
    scores: Float[Tensor, "*batch N M"], support: Bool[Tensor, "*batch N M"]
) -> Float[Tensor, "*batch N M"]:
    """w_j = s_j in the support, zero outside."""
    return scores.masked_fill(~support, 0.0)


def inverse_of(total: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """1 / total, and zero where the total is zero, so that such a row reads zero.

    Raises ValueError where a total is negative: a sum of weights that may be negative can come
    close to zero, and the quotient means nothing. On a GPU nobody looks, since looking would make
    the host wait for it.
    """
    if total.device.type == "cpu" and (total < 0).any():
        raise ValueError(
            "feature_map must give products phi(q) . phi(k) whose sum over a row is not negative, "
            f"got a sum of {total.min().item():.3g}; use a map without negative products, or "
            "normalize=False"
        )
    zero = total == 0
    return torch.where(zero, 0.0, 1 / total.masked_fill(zero, 1.0))
