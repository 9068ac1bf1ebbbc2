"""The weight step with another function than exp under the same division by the row's sum."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.checks import check_count
from attnlib.weight.softmax import softmax
from attnlib.weight.visible_keys import visible_keys

FAR_BELOW = -40.0
"""From here down log(1 + e^s) is e^s in every dtype."""


def softplus(
    scores: Float[Tensor, "*batch N M"], support: Bool[Tensor, "*batch N M"]
) -> Float[Tensor, "*batch N M"]:
    r"""Softmax with log(1 + e^s) in the place of e^s: w_j = softplus(s_j) / sum_l softplus(s_l).

    Computed as the softmax of log softplus(s), which divides by the row's sum and loses no row of
    tiny numbers. High scores weigh in the ratio of the scores, not of their exponentials; far below
    zero softplus is exp, and this is softmax. The weights of a row sum to one.
    Finite for scores up to 1e4; half precision is computed in float32.
    Source: Gao et al. (2025): softmax is a positive function and a division by the row's sum.
    """
    return softmax(log_softplus(exact(scores)), support).to(scores.dtype)


def length_scaled_softplus(
    scores: Float[Tensor, "*batch N M"], support: Bool[Tensor, "*batch N M"]
) -> Float[Tensor, "*batch N M"]:
    r"""Softplus weights of scores that grow with the row: softplus(log(n) s_j) / row sum.

    n is the number of keys in the row's support. Source: Gao et al. (2025), "LSSA", with
    s = log(D) cos(q, k), which is `attnlib.score.cosine.cosine`.
    """
    return softplus(length_scaled(scores, support), support).to(scores.dtype)


def length_scaled_softmax(
    scores: Float[Tensor, "*batch N M"], support: Bool[Tensor, "*batch N M"]
) -> Float[Tensor, "*batch N M"]:
    r"""Softmax of scores that grow with the row: w_j = n^{s_j} / sum_l n^{s_l}.

    The same length scale under softmax, so that it can be told apart from softplus. A key that is
    a score a above n others keeps the weight 1/(1 + n^{1 - a}): for a > 1 it survives any n.
    Source: Chiang and Cholak (2022), section 5; Nakanishi (2025) with a learned factor.
    """
    return softmax(length_scaled(scores, support), support).to(scores.dtype)


def reweighted_softplus(
    scores: Float[Tensor, "*batch N M"],
    support: Bool[Tensor, "*batch N M"],
    *,
    power: float = 15.0,
    offset: float = 1.0,
    first_rows: int = 3,
) -> Float[Tensor, "*batch N M"]:
    r"""Length-scaled softplus weights, sharpened by `reweighted`. Source: Gao et al., "LSSAR"."""
    weights = length_scaled_softplus(exact(scores), support)
    sharp = reweighted(weights, support, power=power, offset=offset, first_rows=first_rows)
    return sharp.to(scores.dtype)


def reweighted(
    weights: Float[Tensor, "*batch N M"],
    support: Bool[Tensor, "*batch N M"],
    *,
    power: float = 15.0,
    offset: float = 1.0,
    first_rows: int = 3,
) -> Float[Tensor, "*batch N M"]:
    r"""Sharpen weights that sum to one: w_j <- max(n w_j - o, 0)^p, divided by the row's sum.

    n w_j has mean one, so offset 1 keeps the keys above the average of their row, and the power
    separates those. Rows of up to `first_rows` keys have no offset. A row in which nothing stands
    above the offset (all weights equal up to rounding) keeps the weights that it had; near such a
    row a small change of the scores moves the weights far.
    Source: Gao et al. (2025), second stage; p = 3 or 15 there, o = 1 but 0 in the first three rows.
    """
    check_sharpening(power, offset, first_rows)
    first = exact(weights)
    if first.shape[-1] == 0:
        return weights
    count = visible_keys(support, first.dtype)
    excess = torch.relu(count * first - offset * (count > first_rows)).masked_fill(~support, 0.0)
    # The highest excess cancels in the division, so no power of it need be small or large.
    highest = excess.detach().amax(-1, keepdim=True)
    stands_out = highest > 16 * torch.finfo(first.dtype).eps
    powers = (excess / highest.masked_fill(~stands_out, 1.0)).pow(power)
    total = powers.sum(-1, keepdim=True)
    sharp = torch.where(stands_out, powers / total.masked_fill(~stands_out, 1.0), first)
    return sharp.to(weights.dtype)


def length_scaled(
    scores: Float[Tensor, "*batch N M"], support: Bool[Tensor, "*batch N M"]
) -> Float[Tensor, "*batch N M"]:
    """log(n) s_j, n the keys in the row's support; in float32 at least."""
    scores = exact(scores)
    return visible_keys(support, scores.dtype).log() * scores


def log_softplus(scores: Float[Tensor, "*batch N M"]) -> Float[Tensor, "*batch N M"]:
    """log log(1 + e^s), which far below zero is s itself."""
    near = scores.clamp(min=FAR_BELOW)
    return torch.where(
        scores < FAR_BELOW, scores, torch.logaddexp(near, torch.zeros_like(near)).log()
    )


def exact(tensor: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The same numbers in float32 at least."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def check_sharpening(power: float, offset: float, first_rows: int) -> None:
    """Raise unless the power is at least 1, the offset not negative and both are numbers."""
    for name, number, least in (("power", power, 1.0), ("offset", offset, 0.0)):
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise TypeError(f"{name} must be a number, got {type(number).__name__}")
        if not least <= number < float("inf"):
            raise ValueError(f"{name} must be at least {least:g} and finite, got {number}")
    check_count("first_rows", first_rows)
