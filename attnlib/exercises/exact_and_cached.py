"""The exercises of chapter 1.4, exact attention computed well, that are answered with numbers."""

import math

import torch
from torch import Tensor

from attnlib.exercises.answers import close, numbers, require
from attnlib.exercises.registry import checker, mutant, solution

# ---- 1.4.1 two parts of a softmax read become one

FIRST = (math.log(4), 3 / 2, 3.0)  # highest score, total, read; here the values are numbers
SECOND = (math.log(8), 5 / 4, 1.0)


@checker("1.4.1")
def two_parts_by_hand(answer) -> str:
    """Maximum log 8, so the first part is halved: total 2, read 5/2, finished 5/4, lse log 16."""
    highest, total, read, finished, log_sum_exp = numbers(answer, 5).tolist()
    _named(
        highest,
        math.log(8),
        (
            (math.log(4), "maximum: that is the lower of the two"),
            (math.log(32), "maximum: the two were added; the higher one counts for both parts"),
        ),
        "maximum: it is the higher of log 4 and log 8",
    )
    _named(
        total,
        2,
        (
            (11 / 4, "total: added as they stand; first bring both to the common maximum"),
            (17 / 8, "total: the wrong part is rescaled; the one with the highest score stays"),
            (17 / 4, "total: the sign of the exponent; the factor is e^(own maximum - common one)"),
        ),
        "total: the factors of the two parts are e^(log 4 - log 8) and 1",
    )
    _named(
        read,
        5 / 2,
        (
            (4, "read: the total is rescaled but the read is not; both have the same factor"),
            (7 / 2, "read: the wrong part is rescaled; the one with the highest score stays"),
        ),
        "read: the factors are those of the total",
    )
    _named(
        finished,
        5 / 4,
        (
            (7 / 5, "finished read: that is the mean of the two reads; the parts weigh unequally"),
            (14 / 5, "finished read: the two finished reads were added"),
            (5 / 2, "finished read: the read is still to be divided by the total"),
            (16 / 11, "finished read: divided sums that were not brought to a common maximum"),
        ),
        "finished read: divide the merged read by the merged total",
    )
    _named(
        log_sum_exp,
        math.log(16),
        (
            (math.log(60), "log-sum-exp: log 6 + log 10 is the logarithm of a product, not a sum"),
            (math.log(8) + 2, "log-sum-exp: add the logarithm of the total, not the total"),
            (math.log(2), "log-sum-exp: the maximum is still to be added to log(total)"),
        ),
        "log-sum-exp: it is the maximum plus the logarithm of the total",
    )
    return "The first part counts half: its highest score is log 2 below the common maximum."


def _named(given: float, right: float, likely: tuple, otherwise: str) -> None:
    """Refuse `given` unless it is `right`: with its own message if it is a likely mistake."""
    for wrong, message in likely:
        require(not close(given, wrong, 1e-3), message)
    require(close(given, right, 1e-3), otherwise)


_LOG_8, _LOG_16 = math.log(8), math.log(16)
solution("1.4.1")((_LOG_8, 2.0, 5 / 2, 5 / 4, _LOG_16))
mutant("1.4.1", "lower of the two", "minimum")((math.log(4), 4.0, 5.0, 5 / 4, _LOG_16))
mutant("1.4.1", "the two were added", "sum of maxima")((math.log(32), 2.0, 2.5, 1.25, _LOG_16))
mutant("1.4.1", "added as they stand", "no rescaling")((_LOG_8, 11 / 4, 4.0, 16 / 11, _LOG_16))
mutant("1.4.1", "total: the wrong part", "second part halved")(
    (_LOG_8, 17 / 8, 7 / 2, 28 / 17, _LOG_16)
)
mutant("1.4.1", "sign of the exponent", "first part doubled")(
    (_LOG_8, 17 / 4, 7.0, 28 / 17, _LOG_16)
)
mutant("1.4.1", "the read is not", "read not rescaled")((_LOG_8, 2.0, 4.0, 2.0, _LOG_16))
mutant("1.4.1", "read: the wrong part", "second read halved")((_LOG_8, 2.0, 3.5, 1.75, _LOG_16))
mutant("1.4.1", "parts weigh unequally", "mean of reads")((_LOG_8, 2.0, 2.5, 7 / 5, _LOG_16))
mutant("1.4.1", "reads were added", "sum of reads")((_LOG_8, 2.0, 2.5, 14 / 5, _LOG_16))
mutant("1.4.1", "divided by the total", "not finished")((_LOG_8, 2.0, 2.5, 2.5, _LOG_16))
mutant("1.4.1", "logarithm of a product", "sum of lse")((_LOG_8, 2.0, 2.5, 1.25, math.log(60)))
mutant("1.4.1", "not the total", "total added")((_LOG_8, 2.0, 2.5, 1.25, _LOG_8 + 2))

# ---- 1.4.2 bytes of a cache, operations per byte, and the ceiling of tokens per second

LAYERS, HEADS, WIDTH, BYTES, TOKENS, BATCH = 32, 32, 128, 2, 2**15, 8
KEY_HEADS, LATENT, ROTARY = 8, 512, 64
GIB_A_SECOND = 2**12
NAMES = ("multi-head", "grouped-query", "multi-query", "latent")


def cache_size(numbers_kept: float) -> float:
    """GiB of a cache that keeps so many numbers for each token and layer."""
    return numbers_kept * BYTES * LAYERS * TOKENS * BATCH / 2**30


KEPT = (2 * HEADS * WIDTH, 2 * KEY_HEADS * WIDTH, 2 * WIDTH, LATENT + ROTARY)
OPERATIONS = (*[4 * HEADS * WIDTH] * 3, 2 * HEADS * (LATENT + ROTARY) + 2 * HEADS * LATENT)
SIZES = [cache_size(kept) for kept in KEPT]
INTENSITIES = [done / (kept * BYTES) for done, kept in zip(OPERATIONS, KEPT, strict=True)]
RATES = [GIB_A_SECOND / size * BATCH for size in SIZES]


@checker("1.4.2")
def bytes_of_a_cache(answer) -> str:
    """GiB of the cache, FLOP per byte and tokens per second: plain, grouped, one head, latent."""
    sizes, intensities, rates = numbers(answer, 12).view(3, 4)
    _sizes(sizes)
    _intensities(intensities)
    _rates(rates)
    return (
        "One key head for all makes the cache smallest; a latent does most arithmetic for a byte, "
        "about twice the number of heads."
    )


def _sizes(given: Tensor) -> None:
    right = torch.tensor(SIZES, dtype=torch.float64)
    for factor, message in (
        (1 / 2, "half of it: keys and values are both kept"),
        (1 / BATCH, "that is one sequence; there are 8 in the batch"),
        (1 / LAYERS, "that is one layer; there are 32"),
        (2.0, "twice too much: a number has two bytes"),
        (2**30 / 1e9, "in units of 10^9 bytes; one GiB is 2^30"),
    ):
        require(not close(given[:3], factor * right[:3], 1e-3), f"cache, GiB: {message}")
    wrong_group = close(given[1], cache_size(2 * HEADS / KEY_HEADS * WIDTH), 1e-3)
    require(not wrong_group, "cache, GiB: 8 is the number of key heads, not of queries that share")
    for kept, message in (
        (2 * (LATENT + ROTARY), "the latent is kept once: keys and values are both made from it"),
        (LATENT, "the rotary part of the key is kept too, beside the latent"),
        (HEADS * (LATENT + ROTARY), "one latent a token, not one for each head"),
        (LATENT + HEADS * ROTARY, "one rotary key a token, shared by all heads"),
    ):
        require(not close(given[3], cache_size(kept), 1e-3), f"cache of the latent: {message}")
    for name, came, expected in zip(NAMES, given, right, strict=True):
        require(
            close(came, expected, 1e-3),
            f"cache, {name}: count the numbers kept for one token and layer, then times bytes, "
            "layers, tokens and sequences",
        )


def _intensities(given: Tensor) -> None:
    right = torch.tensor(INTENSITIES, dtype=torch.float64)
    half = close(given, right / 2, 1e-3)
    require(not half, "FLOP per byte: half of it; a multiplication and an addition are two")
    same = close(given[:3], right[:1].expand(3), 1e-3)
    require(
        not same,
        "FLOP per byte: sharing keys saves bytes but no arithmetic; every query head still makes "
        "its own scores",
    )
    require(not close(given, 1 / right, 1e-3), "FLOP per byte: upside down, these are bytes a FLOP")
    for wrong, message in (
        (HEADS, "that is the scores alone; the read works on the same bytes again"),
        (2 * HEADS, "the rotary part enters the scores, not the read"),
        (INTENSITIES[3] / 2, "the latent is read once for scores and read together"),
    ):
        require(not close(given[3], wrong, 1e-3), f"FLOP per byte of the latent: {message}")
    for name, came, expected in zip(NAMES, given, right, strict=True):
        require(
            close(came, expected, 1e-3),
            f"FLOP per byte, {name}: for one cached token, 2 FLOP for each product in the scores "
            "and in the read of every query head, over the bytes kept for the token",
        )


def _rates(given: Tensor) -> None:
    right = torch.tensor(RATES, dtype=torch.float64)
    steps = close(given, right / BATCH, 1e-3)
    require(not steps, "tokens per second: these are steps; a step gives one token a sequence")
    upside_down = close(given, 1 / right, 1e-3) or close(given, BATCH / right, 1e-3)
    require(not upside_down, "tokens per second: upside down, these are seconds")
    decimal = close(given, right * 1e12 / 2**40, 1e-3)
    require(not decimal, "tokens per second: 4 TiB are 4 * 2^40 bytes, not 4 * 10^12")
    require(
        close(given, right, 1e-3),
        "tokens per second: a step reads the whole cache once; bandwidth over size, times batch",
    )


solution("1.4.2")((SIZES, INTENSITIES, RATES))


def _with(values: list[float], place: int, wrong: float) -> list[float]:
    return [*values[:place], wrong, *values[place + 1 :]]


mutant("1.4.2", "keys and values are both kept", "keys only")(
    ([size / 2 for size in SIZES[:3]] + SIZES[3:], INTENSITIES, RATES)
)
mutant("1.4.2", "one sequence", "batch forgotten")(
    ([size / BATCH for size in SIZES], INTENSITIES, RATES)
)
mutant("1.4.2", "one layer", "layers forgotten")(
    ([size / LAYERS for size in SIZES], INTENSITIES, RATES)
)
mutant("1.4.2", "number has two bytes", "four bytes")(
    ([2 * size for size in SIZES], INTENSITIES, RATES)
)
mutant("1.4.2", "10^9 bytes", "gigabytes")(
    ([size * 2**30 / 1e9 for size in SIZES], INTENSITIES, RATES)
)
mutant("1.4.2", "not of queries that share", "groups of 8")(
    (_with(SIZES, 1, 16.0), INTENSITIES, RATES)
)
mutant("1.4.2", "latent is kept once", "latent twice")((_with(SIZES, 3, 18.0), INTENSITIES, RATES))
mutant("1.4.2", "rotary part of the key", "no rotary")((_with(SIZES, 3, 8.0), INTENSITIES, RATES))
mutant("1.4.2", "not one for each head", "latent a head")(
    (_with(SIZES, 3, 288.0), INTENSITIES, RATES)
)
mutant("1.4.2", "are two", "one FLOP a product")((SIZES, [i / 2 for i in INTENSITIES], RATES))
mutant("1.4.2", "saves bytes but no arithmetic", "arithmetic shared")(
    (SIZES, [1.0, 1.0, 1.0, INTENSITIES[3]], RATES)
)
mutant("1.4.2", "scores alone", "latent without read")((SIZES, _with(INTENSITIES, 3, 32.0), RATES))
mutant("1.4.2", "not the read", "rotary in the read")((SIZES, _with(INTENSITIES, 3, 64.0), RATES))
mutant("1.4.2", "these are steps", "steps per second")(
    (SIZES, INTENSITIES, [rate / BATCH for rate in RATES])
)
mutant("1.4.2", "these are seconds", "seconds")((SIZES, INTENSITIES, [1 / rate for rate in RATES]))

# ---- 1.4.8 how the largest tensor and the arithmetic grow with the length


@checker("1.4.8")
def growth_with_length(answer) -> str:
    """Log-log slopes: largest tensor dense 2, in chunks about 1 or less, FLOP in chunks 2."""
    dense, chunked, arithmetic = numbers(answer, 3).tolist()
    factors = close(dense, 4.0, 0.02) and close(arithmetic, 4.0, 0.02)
    require(not factors, "these are factors for a doubled length; a slope is their log of base 2")
    inverse = close(dense, 0.5, 0.02) and close(arithmetic, 0.5, 0.02)
    require(not inverse, "the axes are swapped: fit the logarithm of the count against log N")
    swapped = close(chunked, 2.0, 0.02) and dense <= 1.05
    require(not swapped, "the first two are swapped: the dense form comes first")
    require(dense > 0, "a slope must be positive: the counts grow with the length")
    require(
        close(dense, 2.0, 0.02),
        "dense: all scores are one tensor of N times N numbers. Are both axes logarithms, and is "
        "each count taken at its own length?",
    )
    require(
        not close(chunked, 2.0, 0.1),
        "in chunks: the largest tensor still grows like N squared: keep one chunk for all lengths",
    )
    require(
        -0.05 <= chunked <= 1.05,
        "in chunks: the largest tensor is the read (N times E) or one tile, so at most slope 1",
    )
    linear = close(arithmetic, 1.0, 0.1)
    require(not linear, "operations: chunks save memory, not arithmetic; count FLOP, not tensors")
    require(
        close(arithmetic, 2.0, 0.02),
        "operations: every query meets every key, in chunks too; count those of all matmuls",
    )
    return "Chunks take one power of N from the memory and none from the arithmetic."


solution("1.4.8")((2.0, 1.0, 2.0))
mutant("1.4.8", "log of base 2", "factors")((4.0, 2.0, 4.0))
mutant("1.4.8", "axes are swapped", "inverse")((0.5, 1.0, 0.5))
mutant("1.4.8", "first two are swapped", "swapped")((1.0, 2.0, 2.0))
mutant("1.4.8", "keep one chunk", "chunk grows with the length")((2.0, 2.0, 2.0))
mutant("1.4.8", "Are both axes logarithms", "fit without logarithms")((2370.8, 64.0, 606920.3))
mutant("1.4.8", "must be positive", "lengths backwards")((-2.0, 1.0, 2.0))
mutant("1.4.8", "not arithmetic", "tensors counted again")((2.0, 1.0, 1.0))
mutant("1.4.8", "at most slope 1", "guess")((2.0, 1.5, 2.0))
mutant("1.4.8", "every query meets every key", "cubic")((2.0, 1.0, 3.0))
