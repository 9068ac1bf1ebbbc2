"""The exponential expanded in powers of the dot product, in the fewest features that it takes."""

import math
from functools import cache
from itertools import combinations_with_replacement

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from attnlib.checks import check_count, check_scale
from attnlib.score.features import FeatureMap


def taylor(terms: int = 3, scale: float | None = None) -> FeatureMap:
    r"""phi with phi(q) . phi(k) = sum over p < terms of (scale q . k)^p / p!; scale 1/sqrt(D).

    A power (q . k)^p is a sum over all D^p products of p channels. Products of the same channels in
    another order are equal, so the features are the sorted ones alone, C(D + p - 1, p) of them:

    .. math:: \frac{(q \cdot k)^p}{p!} = \sum_{i_1 \le \dots \le i_p}
              \frac{q_{i_1} \cdots q_{i_p} \; k_{i_1} \cdots k_{i_p}}{\prod_c n_c!}

    with n_c for the number of times that channel c occurs. An odd number of terms ends in an even
    power, and then every such sum is positive; an even number of terms goes negative for scores
    that are low enough (with four below -1.6).
    Source: Heinsen and Kozachkov (2026); the multiplicities are theirs divided by p!.
    """
    check_count("terms", terms, least=1)
    check_scale(scale)

    def feature_map(x: Tensor) -> Tensor:
        width = x.shape[-1]
        x = x * (width**-0.5 if scale is None else scale) ** 0.5
        powers = [torch.ones_like(x[..., :1])]
        for degree in range(1, terms):
            start, last, count = (table.to(x.device) for table in monomials(width, degree))
            # A sorted product of p channels is one of p - 1 channels times a channel not before it.
            powers.append(powers[-1][..., start] * x[..., last] * count.to(x).rsqrt())
        return torch.cat(powers, dim=-1)

    return feature_map


@cache
def monomials(width: int, degree: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each sorted product of `degree` channels: its start, its last channel, how often that is.

    The start is the place, among the sorted products of one degree less, of all but its last.
    """
    channels = range(width)
    places = {
        product: place
        for place, product in enumerate(combinations_with_replacement(channels, degree - 1))
    }
    products = list(combinations_with_replacement(channels, degree))
    start = torch.tensor([places[product[:-1]] for product in products], dtype=torch.long)
    last = torch.tensor([product[-1] for product in products], dtype=torch.long)
    count = torch.tensor([product.count(product[-1]) for product in products])
    return start, last, count


def taylor_features(width: int, terms: int) -> int:
    """How many features `taylor` has: the sum over p < terms of C(width + p - 1, p)."""
    return sum(math.comb(width + power - 1, power) for power in range(terms))


def taylor_state_size(width: int, value_width: int, terms: int) -> int:
    """How many numbers the state of one head holds: features times (E + 1), with its total.

    Source: Heinsen and Kozachkov (2026).
    """
    return taylor_features(width, terms) * (value_width + 1)


def standardized(x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
    """Each row less its mean, divided by its standard deviation: length sqrt(D), sum zero.

    1e-5 is added to the variance, so that a constant row becomes zero.
    Source: Gerami et al. (2024), section 2.
    """
    return F.layer_norm(x, x.shape[-1:], eps=1e-5)


def standardized_polynomial(order: int = 2) -> FeatureMap:
    r"""phi with phi(q) . phi(k) = sum over l <= order of s^l / l!, s = q^ . k^ standardized.

    Order 2 is always positive, as 1 + s + s^2 / 2 = ((1 + s)^2 + 1) / 2. Order 1 is negative for
    s < -1. Source: Gerami et al. (2024), section 2.
    """
    check_count("order", order, least=1)
    expand = taylor(order + 1, scale=1.0)
    return lambda x: expand(standardized(x))
