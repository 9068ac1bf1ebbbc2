"""Exponential features whose weights are spread as widely as those of softmax."""

from typing import NamedTuple

from torch import Tensor

SLOPE = 0.14855178144710912
"""a: what the log-variance of the weights gains for each unit of alpha^2 var(q) + beta^2 var(k)."""
OFFSET = -0.35487039130661086
"""b: where that line starts. Both as fitted by Nahshan et al. (2024), for all widths."""


class Exponents(NamedTuple):
    """The factors before the exponential: phi(q) = e^{alpha q}, phi(k) = e^{beta k}."""

    alpha: float
    beta: float


def matched_exponents(
    query_deviation: float, key_deviation: float, slope: float = SLOPE, offset: float = OFFSET
) -> Exponents:
    r"""alpha and beta with which LLN weights are spread as softmax weights are.

    For normal q and k the softmax weights of scale 1/sqrt(D) are log-normal with log-variance
    var(q) var(k). Those of exponential features are nearly so, with log-variance
    a (alpha^2 var(q) + beta^2 var(k)) + b. Both are equal, with equal shares, for

    .. math:: \alpha = \frac{\tilde\sigma}{\sqrt 2\, \sigma_q}, \quad
              \beta = \frac{\tilde\sigma}{\sqrt 2\, \sigma_k}, \quad
              \tilde\sigma^2 = \frac{\sigma_q^2 \sigma_k^2 - b}{a}

    Source: Nahshan et al. (2024), moment matching; a and b from the code of its authors.
    """
    for name, deviation in (("query_deviation", query_deviation), ("key_deviation", key_deviation)):
        if not deviation > 0:
            raise ValueError(f"{name} must be positive, got {deviation}")
    variance = (query_deviation**2 * key_deviation**2 - offset) / slope
    if not variance > 0:
        raise ValueError(
            f"slope and offset must leave a positive variance, got {variance:.3g} "
            f"for slope {slope} and offset {offset}"
        )
    share = (variance / 2) ** 0.5
    return Exponents(share / query_deviation, share / key_deviation)


def log_variance(log_weights: Tensor) -> float:
    """The variance of the logarithms of the weights within a row, averaged over the rows."""
    return log_weights.var(dim=-1).mean().item()
