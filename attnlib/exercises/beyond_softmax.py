"""The exercises of chapter 2.1, what replaces the softmax, that are answered with numbers."""

import math

from attnlib.exercises.answers import close, numbers, require
from attnlib.exercises.registry import checker, mutant, solution

LOG_7, LOG_8, LOG_9, LOG_72 = (math.log(number) for number in (7, 8, 9, 72))


def _named(given: float, right: float, likely: tuple, otherwise: str) -> None:
    """Refuse `given` unless it is `right`: with its own message if it is a likely mistake."""
    for wrong, message in likely:
        require(not close(given, wrong, 1e-3), message)
    require(close(given, right, 1e-3), otherwise)


# ---- 2.1.1 the bias of a sigmoid


@checker("2.1.1")
def bias_by_hand(answer) -> str:
    """Eight keys, scores zero: 4 without a bias, 8/9 with -log 8, one at -log 7; 2/9; log 72."""
    without, with_bias, exact, early, score = numbers(answer, 5).tolist()
    _named(
        without,
        4,
        (
            (1 / 2, "sum without a bias: that is one weight; the row has eight of them"),
            (1, "sum without a bias: nothing divides by the sum; sigmoid(0) is 1/2, eight times"),
            (8, "sum without a bias: sigmoid(0) is 1/2, not 1"),
        ),
        "sum without a bias: eight times sigmoid(0)",
    )
    _named(
        with_bias,
        8 / 9,
        (
            (1, "sum with -log 8: about one, but not one; e^(-b) is 8, so a weight is 1/(1 + 8)"),
            (1 / 9, "sum with -log 8: that is one weight; the row has eight of them"),
            (64 / 9, "sum with -log 8: the sign; sigmoid(log 8) is 8/9, and the bias is -log 8"),
        ),
        "sum with -log 8: sigmoid(-log 8) = 1/(1 + 8), eight times",
    )
    _named(
        exact,
        -LOG_7,
        (
            (LOG_7, "bias for a sum of one: the sign; small weights need a negative bias"),
            (-LOG_8, "bias for a sum of one: -log 8 gives 8/9; solve sigmoid(b) = 1/8"),
            (-LOG_9, "bias for a sum of one: solve 1/(1 + e^(-b)) = 1/8 for b; e^(-b) is 8 - 1"),
        ),
        "bias for a sum of one: solve sigmoid(b) = 1/8",
    )
    _named(
        early,
        2 / 9,
        (
            (2 / 3, "second row: that is the bias of this row's own n; here it is -log 8 for all"),
            (8 / 9, "second row: under the causal rule it sees two keys, not eight"),
            (1 / 4, "second row: sigmoid(-log 8) is 1/9, not 1/8"),
        ),
        "second row: two keys, each with the weight sigmoid(-log 8)",
    )
    _named(
        score,
        LOG_72,
        (
            (LOG_9, "score for 9/10: the bias is missing; s - log 8 = log 9"),
            (LOG_9 - LOG_8, "score for 9/10: the sign of the bias; s - log 8 = log 9"),
            (LOG_8 * LOG_9, "score for 9/10: logarithms are added, not multiplied"),
            (LOG_8, "score for 9/10: there the weight is 1/2"),
        ),
        "score for 9/10: the odds 9 are e^(s + b), b = -log 8",
    )
    return "A bias of -log n gives the first rows the size of softmax rows, whatever n is."


solution("2.1.1")((4.0, 8 / 9, -LOG_7, 2 / 9, LOG_72))
mutant("2.1.1", "bias: that is one weight", "one half")((0.5, 8 / 9, -LOG_7, 2 / 9, LOG_72))
mutant("2.1.1", "nothing divides", "normalized")((1.0, 8 / 9, -LOG_7, 2 / 9, LOG_72))
mutant("2.1.1", "is 1/2, not 1", "ones")((8.0, 8 / 9, -LOG_7, 2 / 9, LOG_72))
mutant("2.1.1", "but not one", "rounded up")((4.0, 1.0, -LOG_7, 2 / 9, LOG_72))
mutant("2.1.1", "8: that is one weight", "one ninth")((4.0, 1 / 9, -LOG_7, 2 / 9, LOG_72))
mutant("2.1.1", "sigmoid(log 8) is 8/9", "sign")((4.0, 64 / 9, -LOG_7, 2 / 9, LOG_72))
mutant("2.1.1", "small weights need", "sign of the bias")((4.0, 8 / 9, LOG_7, 2 / 9, LOG_72))
mutant("2.1.1", "-log 8 gives 8/9", "the book's bias")((4.0, 8 / 9, -LOG_8, 2 / 9, LOG_72))
mutant("2.1.1", "is 8 - 1", "8 + 1")((4.0, 8 / 9, -LOG_9, 2 / 9, LOG_72))
mutant("2.1.1", "own n", "n of the row")((4.0, 8 / 9, -LOG_7, 2 / 3, LOG_72))
mutant("2.1.1", "two keys, not eight", "no causal rule")((4.0, 8 / 9, -LOG_7, 8 / 9, LOG_72))
mutant("2.1.1", "not 1/8", "two eighths")((4.0, 8 / 9, -LOG_7, 1 / 4, LOG_72))
mutant("2.1.1", "bias is missing", "log 9")((4.0, 8 / 9, -LOG_7, 2 / 9, LOG_9))
mutant("2.1.1", "sign of the bias; s", "log 9/8")((4.0, 8 / 9, -LOG_7, 2 / 9, LOG_9 - LOG_8))
mutant("2.1.1", "not multiplied", "product")((4.0, 8 / 9, -LOG_7, 2 / 9, LOG_8 * LOG_9))
mutant("2.1.1", "there the weight is 1/2", "log 8")((4.0, 8 / 9, -LOG_7, 2 / 9, LOG_8))

# ---- 2.1.2 1.5-entmax of three scores, with its threshold and a slope


@checker("2.1.2")
def entmax_by_hand(answer) -> str:
    """Scores 2, 1.6, -1: tau 0.2, weights 0.64, 0.36, 0; s_3 above 0.4; slope 12/35."""
    tau, first, second, third, border, slope = numbers(answer, 6).tolist()
    _named(
        tau,
        0.2,
        (
            (1.3, "tau: that is sparsemax; here the weights are squares of s / 2 - tau"),
            (1.1217, "tau: the scores are halved before tau is subtracted"),
            (0.4, "tau: it is subtracted from s / 2, so it is 0.2, not 0.4"),
            (1.6, "tau: the wrong root; tau lies below the scores that have weight"),
        ),
        "tau: with the first two in the support, (1 - tau)^2 + (0.8 - tau)^2 = 1",
    )
    weights = (first, second, third)
    require(
        not close(weights, (0.5814, 0.3897, 0.0289), 1e-3),
        "weights: that is softmax; its third weight is small, here it is zero",
    )
    require(not close(weights, (0.7, 0.3, 0.0), 1e-3), "weights: that is sparsemax")
    require(
        not close(weights, (0.8, 0.6, 0.0), 1e-3),
        "weights: they sum to 1.4; s / 2 - tau is still to be squared",
    )
    require(close(third, 0.0, 1e-9), "weights: the third is exactly zero, since s_3 / 2 < tau")
    require(close(weights, (0.64, 0.36, 0.0), 1e-3), "weights: (s / 2 - tau)^2 where s / 2 > tau")
    _named(
        border,
        0.4,
        (
            (0.2, "border: s_3 / 2 has to pass tau; that is s_3 above 0.4"),
            (1.3, "border: that is sparsemax, which needs more of a key"),
        ),
        "border: the third key enters where s_3 / 2 = tau",
    )
    _named(
        slope,
        12 / 35,
        (
            (0.8, "slope: tau moves with s_1 too; it takes back 0.8 / 1.4 of the change"),
            (0.64 * 0.36, "slope: w (1 - w) is softmax"),
            (24 / 35, "slope: twice too much; s enters with the factor 1/2"),
            (1 / 2, "slope: that is sparsemax with two keys, 1 - 1/2"),
        ),
        "slope: differentiate (s_1 / 2 - tau)^2, and sum w = 1 for the change of tau",
    )
    return "Half way to sparsemax: still zero below a threshold, but smooth where a key enters."


_WEIGHTS = (0.64, 0.36, 0.0)
solution("2.1.2")((0.2, *_WEIGHTS, 0.4, 12 / 35))
mutant("2.1.2", "tau: that is sparsemax", "tau of sparsemax")((1.3, *_WEIGHTS, 0.4, 12 / 35))
mutant("2.1.2", "are halved before", "not halved")((1.1217, *_WEIGHTS, 0.4, 12 / 35))
mutant("2.1.2", "not 0.4", "tau doubled")((0.4, *_WEIGHTS, 0.4, 12 / 35))
mutant("2.1.2", "the wrong root", "other root")((1.6, *_WEIGHTS, 0.4, 12 / 35))
mutant("2.1.2", "that is softmax; its", "softmax")((0.2, 0.5814, 0.3897, 0.0289, 0.4, 12 / 35))
mutant("2.1.2", "weights: that is sparsemax", "sparsemax")((0.2, 0.7, 0.3, 0.0, 0.4, 12 / 35))
mutant("2.1.2", "still to be squared", "not squared")((0.2, 0.8, 0.6, 0.0, 0.4, 12 / 35))
mutant("2.1.2", "exactly zero", "small third")((0.2, 0.62, 0.35, 0.03, 0.4, 12 / 35))
mutant("2.1.2", "has to pass tau", "border at tau")((0.2, *_WEIGHTS, 0.2, 12 / 35))
mutant("2.1.2", "needs more of a key", "border of sparsemax")((0.2, *_WEIGHTS, 1.3, 12 / 35))
mutant("2.1.2", "tau moves", "tau held")((0.2, *_WEIGHTS, 0.4, 0.8))
mutant("2.1.2", "is softmax", "slope of softmax")((0.2, *_WEIGHTS, 0.4, 0.64 * 0.36))
mutant("2.1.2", "factor 1/2", "slope doubled")((0.2, *_WEIGHTS, 0.4, 24 / 35))
mutant("2.1.2", "with two keys", "slope of sparsemax")((0.2, *_WEIGHTS, 0.4, 0.5))

# ---- 2.1.7 how many keys a row reads as it grows

SLOPES = (0.99, -0.05, 0.96, 0.31)
"""Measured with 200 rows of normal scores at n = 64 to 2048; seeds differ by about 0.02."""


@checker("2.1.7")
def keys_read_as_rows_grow(answer) -> str:
    """Slopes of log e^H over log n: softmax 1, n^s about 0, softplus 0.96, sharpened 0.3."""
    plain, scaled, softplus, sharp = numbers(answer, 4).tolist()
    of_entropy = close(plain, 0.19, 0.04) and close(softplus, 0.2, 0.04)
    require(
        not of_entropy,
        "these are slopes of the logarithm of H; the number of keys is e^H, and its logarithm is H",
    )
    inverse = close(plain, 1.0, 0.06) and abs(scaled) > 3
    require(not inverse, "the axes are swapped: fit the logarithm of e^H against log n")
    of_highest = close(plain, 0.69, 0.04) and close(softplus, 0.88, 0.04)
    require(not of_highest, "that is one over the highest weight; take the entropy of the row")
    negative = close(plain, -1.0, 0.06)
    require(not negative, "the sign: rows read more keys as they grow, and H is -sum of w log w")
    require(abs(plain - SLOPES[0]) < 0.05, "softmax: a fixed share of the keys is read, slope 1")
    require(
        abs(scaled - SLOPES[0]) > 0.05,
        "length-scaled softmax: the same as softmax; is n the number of keys in the support?",
    )
    require(abs(scaled - SLOPES[1]) < 0.12, "length-scaled softmax: n^s holds the number of keys")
    require(
        softplus > 0.5,
        "length-scaled softplus: softplus of a large score is the score, not a power of n",
    )
    require(abs(softplus - SLOPES[2]) < 0.05, "length-scaled softplus: slope a little below 1")
    require(
        abs(sharp - SLOPES[2]) > 0.1,
        "sharpened softplus: with power 3 it grows like softplus; take power 15",
    )
    require(abs(sharp - SLOPES[3]) < 0.12, "sharpened softplus: slope near 0.3 with power 15")
    return (
        "The factor log n holds the row under softmax. Under softplus it does not: there the "
        "sharpening does most of it."
    )


solution("2.1.7")(SLOPES)
mutant("2.1.7", "logarithm of H", "log of the entropy")((0.189, -0.044, 0.197, 0.349))
mutant("2.1.7", "axes are swapped", "swapped")((1.01, -20.0, 1.04, 3.2))
mutant("2.1.7", "highest weight", "one over the maximum")((0.692, -0.024, 0.878, 0.122))
mutant("2.1.7", "the sign", "negative entropy")((-0.994, 0.05, -0.96, -0.3))
mutant("2.1.7", "a fixed share", "guess")((0.5, 0.0, 0.96, 0.3))
mutant("2.1.7", "the same as softmax", "no length scale")((0.99, 0.99, 0.96, 0.3))
mutant("2.1.7", "holds the number", "half a scale")((0.99, 0.4, 0.96, 0.3))
mutant("2.1.7", "not a power of n", "softmax for softplus")((0.99, -0.05, -0.05, 0.3))
mutant("2.1.7", "take power 15", "power 3")((0.99, -0.05, 0.965, 0.96))
mutant("2.1.7", "near 0.3", "argmax")((0.99, -0.05, 0.965, 0.0))
