"""The exercises of chapter 1.1, the soft lookup, that are answered with numbers."""

import math

import torch
from torch import Tensor

from attnlib.exercises.answers import close, numbers, require
from attnlib.exercises.registry import checker, mutant, solution

# ---- 1.1.1 logits of the posterior over the entries of a Gaussian dictionary

QUERY = torch.tensor([1.0, 2.0], dtype=torch.float64)
KEYS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]], dtype=torch.float64)
PRIOR = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
BETA = 0.5  # precision of the noise: variance 1 / BETA in each coordinate


@checker("1.1.1")
def posterior_logits(answer) -> str:
    """log prior_j + beta q.k_j - beta |k_j|^2 / 2, up to one constant for all entries."""
    given = numbers(answer, 3)
    dot, square = KEYS @ QUERY, (KEYS**2).sum(-1)
    log_prior = PRIOR.log()
    right = log_prior + BETA * dot - BETA * square / 2

    def same(logits: Tensor) -> bool:
        return close(given - given.mean(), logits - logits.mean(), 2e-3)

    if same(right):
        return "Your logits give the posterior, whatever constant you left in them."
    require(
        not close(given, torch.softmax(right, -1), 2e-3),
        "these are the posterior probabilities; the logits are what stands in the exponent, "
        "before the softmax",
    )
    distance = dot - square / 2
    likely = (
        (BETA * distance, "the logarithm of the prior is missing"),
        (PRIOR + BETA * distance, "the prior enters as its logarithm, not as itself"),
        (log_prior + BETA * dot, "the term with the squared length of the key is missing"),
        (log_prior + 2 * BETA * distance, "a factor two: the exponent is -beta/2 |q - k|^2"),
        (log_prior + distance / BETA, "beta is the precision: it multiplies, it does not divide"),
        (log_prior - BETA * distance, "the sign of the exponent: far keys must get less"),
    )
    for logits, message in likely:
        require(not same(logits), message)
    require(False, "not the posterior: write prior times Gaussian density and take the logarithm")


solution("1.1.1")([math.log(0.5) + 0.25, math.log(0.25) + 0.75, math.log(0.25) + 1.0])
mutant("1.1.1", "logarithm of the prior is missing", "no prior")([0.25, 0.75, 1.0])
mutant("1.1.1", "as its logarithm", "prior itself")([0.75, 1.0, 1.25])
mutant("1.1.1", "squared length of the key", "no key length")(
    [math.log(0.5) + 0.5, math.log(0.25) + 1.0, math.log(0.25) + 3.0]
)
mutant("1.1.1", "factor two", "beta instead of beta/2")(
    [math.log(0.5) + 0.5, math.log(0.25) + 1.5, math.log(0.25) + 2.0]
)
mutant("1.1.1", "precision", "divided by beta")(
    [math.log(0.5) + 1.0, math.log(0.25) + 3.0, math.log(0.25) + 4.0]
)
mutant("1.1.1", "sign", "plus in the exponent")(
    [math.log(0.5) - 0.25, math.log(0.25) - 0.75, math.log(0.25) - 1.0]
)
mutant("1.1.1", "posterior probabilities", "probabilities")([0.346878, 0.285952, 0.36717])
mutant("1.1.1", "expected 3 number(s), got 2", "two logits")([0.0, 1.0])
mutant("1.1.1", "not the posterior", "guess")([0.0, 0.0, 0.0])

# ---- 1.1.2 variance of a dot product and the scale that makes it one

WIDTH, VARIANCE = 64, 9.0


@checker("1.1.2")
def variance_of_a_dot_product(answer) -> str:
    """(D, 1/sqrt(D), D s^4, 1/(s^2 sqrt(D))) for D = 64 and s^2 = 9."""
    variance, scale, wide_variance, wide_scale = numbers(answer, 4).tolist()
    require(
        not close(variance, WIDTH**0.5),
        "the first number is the standard deviation; the variance is its square",
    )
    require(
        close(variance, WIDTH),
        "first number: q.k is a sum of D independent products, each with variance one",
    )
    require(
        not close(scale, 1 / WIDTH),
        "second number: a scale c multiplies the variance by c squared, so 1/D is too small",
    )
    require(close(scale, WIDTH**-0.5), "second number: solve c^2 * variance = 1 for c")
    require(
        not close(wide_variance, WIDTH * VARIANCE),
        "third number: both factors of a product have variance s^2, so each product has s^4",
    )
    require(
        not close(wide_variance, WIDTH * VARIANCE**4),
        "third number: s^2 is 9, so s^4 is 81",
    )
    require(close(wide_variance, WIDTH * VARIANCE**2), "third number: it is D s^4")
    require(
        close(wide_scale, 1 / (VARIANCE * WIDTH**0.5), 1e-4),
        "fourth number: solve c^2 * (third number) = 1 for c",
    )
    return "Variance and scale agree, for unit and for other coordinates."


solution("1.1.2")((64.0, 1 / 8, 64 * 81.0, 1 / 72))
mutant("1.1.2", "standard deviation", "root")((8.0, 1 / 8, 72.0, 1 / 72))
mutant("1.1.2", "sum of D independent products", "square")((4096.0, 1 / 64, 1.0, 1.0))
mutant("1.1.2", "1/D is too small", "scale 1/D")((64.0, 1 / 64, 5184.0, 1 / 72))
mutant("1.1.2", "second number: solve", "scale D")((64.0, 8.0, 5184.0, 1 / 72))
mutant("1.1.2", "both factors", "one factor")((64.0, 1 / 8, 576.0, 1 / 24))
mutant("1.1.2", "s^4 is 81", "variance taken for s")((64.0, 1 / 8, 64 * 6561.0, 1 / 648))
mutant("1.1.2", "it is D s^4", "square of all")((64.0, 1 / 8, 64.0**2 * 81, 1 / 72))
mutant("1.1.2", "fourth number", "s instead of s^2")((64.0, 1 / 8, 5184.0, 1 / 24))

# ---- 1.1.6 entropy of the weights against the width, with and without the scale

KEYS_MEASURED, WIDTHS_MEASURED = 64, (4, 16, 64, 256)


@checker("1.1.6")
def entropy_against_width(answer) -> str:
    """Mean entropies (nats) over 64 keys at D = 4, 16, 64, 256: with the scale, and without.

    Scores with variance t are nearly normal, and for small t the entropy is log M - t / 2: with
    the scale t = 1 at every D. Without it t = D, the few highest scores share the weight, and the
    gaps between them grow like sqrt(D): four times the width halves the entropy.
    """
    scaled, unscaled = numbers(answer, 8).view(2, 4)
    most = math.log(KEYS_MEASURED)
    expected = most - 0.5
    in_bits = close(scaled, torch.full((4,), expected / math.log(2)), 0.03)
    require(not in_bits, "these entropies are in bits: use the natural logarithm")
    require(
        _possible(scaled, most) and _possible(unscaled, most),
        f"an entropy above log 64 = {most:.3f} cannot be: is it a sum and not a mean over queries?",
    )
    swapped = (unscaled - expected).abs().max() < 0.2 < (scaled - expected).abs().max()
    require(not swapped, "the two lists are swapped: with the scale comes first")
    require((scaled > 0).all() and (unscaled > 0).all(), "entropies are positive: mind the sign")
    require(
        not close(scaled[-1], most, 1e-3),
        "nearly uniform weights at D = 256: was the score divided by D instead of sqrt(D)?",
    )
    require(
        (scaled - expected).abs().max() < 0.2,
        f"with the scale theory says about log 64 - 1/2 = {expected:.3f} at every D: are queries "
        "and keys of unit variance, with 64 keys and at least 500 queries?",
    )
    ratio = (unscaled[2] / unscaled[3]).item()
    require(
        1.5 < ratio < 2.8 and (unscaled.diff() < 0).all() and 0.2 < unscaled[3] < 0.4,
        "without the scale the entropy should fall with D and about halve from D = 64 to 256, "
        f"here it goes from {unscaled[2]:.3f} to {unscaled[3]:.3f}",
    )
    return (
        f"Flat at log 64 - 1/2 with the scale; without it the entropy falls {ratio:.1f} times "
        "from D = 64 to 256 (theory: 2)."
    )


def _possible(entropies: Tensor, most: float) -> bool:
    """Whether no entropy is above the highest there can be."""
    return bool((entropies <= most + 1e-6).all())


def mean_entropies(scale_of_width) -> list[float]:
    """Mean entropy of softmax weights of random queries over 64 random keys, for each width."""
    generator = torch.Generator().manual_seed(116)
    means = []
    for width in WIDTHS_MEASURED:
        query = torch.randn(1000, width, generator=generator)
        key = torch.randn(KEYS_MEASURED, width, generator=generator)
        log_weights = torch.log_softmax(query @ key.T * scale_of_width(width), -1)
        means.append(-(log_weights.exp() * log_weights).sum(-1).mean().item())
    return means


_SCALED, _UNSCALED = mean_entropies(lambda width: width**-0.5), mean_entropies(lambda width: 1.0)
solution("1.1.6")((_SCALED, _UNSCALED))
mutant("1.1.6", "in bits", "bits")(
    ([h / math.log(2) for h in _SCALED], [h / math.log(2) for h in _UNSCALED])
)
mutant("1.1.6", "sum and not a mean", "sum")(
    ([1000 * h for h in _SCALED], [1000 * h for h in _UNSCALED])
)
mutant("1.1.6", "are swapped", "swapped")((_UNSCALED, _SCALED))
mutant("1.1.6", "mind the sign", "negative")(([-h for h in _SCALED], [-h for h in _UNSCALED]))
mutant("1.1.6", "instead of sqrt(D)", "scale 1/D")((mean_entropies(lambda d: 1 / d), _UNSCALED))
mutant("1.1.6", "of unit variance", "variance two")(
    (mean_entropies(lambda d: 2 * d**-0.5), mean_entropies(lambda d: 2.0))
)
mutant("1.1.6", "about halve", "scaled twice")((_SCALED, _SCALED[:1] * 4))
