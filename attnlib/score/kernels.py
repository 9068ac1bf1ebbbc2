"""Scores that are weights already, each a function of query and key: what feature maps compute."""

from collections.abc import Callable

import torch
from torch import Tensor

from attnlib.checks import check_count
from attnlib.score.compare import dot_product
from attnlib.weight.feature_maps.taylor import standardized


def truncated_exponential(terms: int) -> Callable[..., Tensor]:
    r"""Score sum over p < terms of s^p / p!, s the scaled dot product."""
    check_count("terms", terms, least=1)

    def score(query, key, scale=None):
        product = dot_product(query, key, scale)
        power = total = torch.ones_like(product)
        for degree in range(1, terms):
            power = power * product / degree
            total = total + power
        return total

    return score


def standardized_product(order: int) -> Callable[..., Tensor]:
    r"""Score sum over l <= order of s^l / l!, s the product of standardized query and key."""
    of_product = truncated_exponential(order + 1)

    def score(query, key, scale=None):
        return of_product(standardized(query), standardized(key), scale=1.0)

    return score


def sum_of_exponentials(alpha: float, beta: float) -> Callable[..., Tensor]:
    r"""Score sum over channels d of e^{alpha q_d + beta k_d}. Cost: memory N M D."""

    def score(query, key, scale=None):
        return (alpha * query.unsqueeze(-2) + beta * key.unsqueeze(-3)).exp().sum(-1)

    return score
