"""The exercises of chapter K.1 with numbers: bytes of a chain, tiles against a chip, lost bits."""

from attnlib.exercises.answers import close, numbers, require
from attnlib.exercises.registry import checker, mutant, solution

# ---- K.1.9 bytes of a chain of operations, apart and fused

ROWS, WIDTH, BYTES, BANDWIDTH = 2**14, 2**12, 2, 4.3e12
APART, FUSED = 7 * BYTES, 2 * BYTES
MICROSECONDS = ROWS * WIDTH * FUSED / BANDWIDTH * 1e6


@checker("K.1.9")
def bytes_of_a_chain(answer) -> str:
    """Root-mean-square norm: 14 bytes a number apart, 4 fused, factor 7/2, 62.4 microseconds."""
    apart, fused, factor, time = numbers(answer, 4).tolist()
    for wrong, message in (
        (7, "count bytes: a number has two"),
        (28, "twice too much: a number has two bytes here, not four"),
        (3 * BYTES, "every operation reads its input and writes its result"),
        (4 * BYTES, "the mean has to read all squares, though it writes only one number a row"),
        (6 * BYTES, "one pass is missing: square, mean, times the factor, times the gain"),
        (8 * BYTES, "the mean writes one number a row, not one for each number"),
    ):
        require(not close(apart, wrong, 1e-3), f"apart: {message}")
    require(close(apart, APART, 1e-3), "apart: two passes for each map, one for the mean")
    require(not close(fused, BYTES, 1e-3), "fused: the result must be written too")
    require(not close(fused, 3 * BYTES, 1e-3), "fused: the row stays in registers, read it once")
    require(close(fused, FUSED, 1e-3), "fused: every number is read once and written once")
    require(not close(factor, FUSED / APART, 1e-3), "factor: upside down, how much *less*?")
    require(close(factor, APART / FUSED, 1e-3), "factor: bytes apart over bytes fused")
    for wrong, message in (
        (MICROSECONDS * APART / FUSED, "that is the time of the operations apart"),
        (MICROSECONDS / 1e6, "in seconds; microseconds are asked for"),
        (MICROSECONDS / 1e3, "in milliseconds; microseconds are asked for"),
        (MICROSECONDS / FUSED, "numbers are not bytes: four bytes move for each"),
    ):
        require(not close(time, wrong, 1e-3), f"time: {message}")
    require(close(time, MICROSECONDS, 2e-2), "time: bytes over bytes a second")
    return "Fusing wins what the intermediate results would cost on their way out and back."


solution("K.1.9")((APART, FUSED, APART / FUSED, MICROSECONDS))
mutant("K.1.9", "a number has two", "numbers")((7, 2, 3.5, MICROSECONDS))
mutant("K.1.9", "not four", "float32")((28, 8, 3.5, 2 * MICROSECONDS))
mutant("K.1.9", "mean has to read", "no read of the mean")((8, 4, 2.0, MICROSECONDS))
mutant("K.1.9", "one number a row, not", "mean written")((16, 4, 4.0, MICROSECONDS))
mutant("K.1.9", "one pass is missing", "no gain")((12, 4, 3.0, MICROSECONDS))
mutant("K.1.9", "must be written too", "reads only")((14, 2, 7.0, MICROSECONDS / 2))
mutant("K.1.9", "upside down", "inverse")((14, 4, 4 / 14, MICROSECONDS))
mutant("K.1.9", "in milliseconds", "milliseconds")((14, 4, 3.5, MICROSECONDS / 1e3))
mutant("K.1.9", "the operations apart", "time apart")((14, 4, 3.5, 3.5 * MICROSECONDS))

# ---- K.1.10 operations for each byte of a tile

RIDGE = 790e12 / 4.3e12
SQUARE, OBLONG, ONE_ROW, SIDE = 64.0, 256 / 3, 1.0, 512.0


@checker("K.1.10")
def tiles_against_a_chip(answer) -> str:
    """2 T U / (b (T + U)): 64 for 128 x 128, 256/3 for 128 x 256, 1 for one row; side 512."""
    square, oblong, one_row, side = numbers(answer, 4).tolist()
    for wrong, message in (
        (32, "a multiplication and an addition are two operations"),
        (128, "both factors are read; or a number has two bytes, not one"),
        (256, "both factors are read, and a number has two bytes"),
        (1 / 64, "upside down: these are bytes for an operation"),
    ):
        require(not close(square, wrong, 1e-3), f"square tile: {message}")
    require(close(square, SQUARE, 1e-3), "square tile: 2 T^2 operations for 2 T numbers, each step")
    require(
        not close(oblong, 96, 1e-3),
        "oblong tile: the mean of both sides is too much; the shorter side counts more",
    )
    require(not close(oblong, 128, 1e-3), "oblong tile: both sides are read, 128 + 256 numbers")
    require(close(oblong, OBLONG, 1e-3), "oblong tile: 2 T U operations for T + U numbers")
    require(not close(one_row, 2, 1e-3), "one row: each number of the wide factor has two bytes")
    require(not close(one_row, 0.5, 1e-3), "one row: two operations for each number that is read")
    require(close(one_row, ONE_ROW, 1e-2), "one row: let U grow in 2 U / (b (1 + U))")
    require(not close(side, 256, 1e-3), "side: 256 gives 128 operations a byte, below the balance")
    require(
        not close(side, RIDGE, 2e-2),
        "side: that is the balance in operations a byte; the side is b times as long",
    )
    require(
        not close(side, 2 * RIDGE, 2e-2),
        "side: right so far; tiles have powers of two, so round up",
    )
    require(close(side, SIDE, 1e-3), "side: T / b must reach the balance; then the next power of 2")
    return "A tile of one row does one operation a byte, whatever its width: decoding waits."


solution("K.1.10")((SQUARE, OBLONG, ONE_ROW, SIDE))
mutant("K.1.10", "are two operations", "one operation")((32, 128 / 3, 0.5, 512))
mutant("K.1.10", "both factors are read", "one factor")((128, 256 / 3, 1, 512))
mutant("K.1.10", "upside down", "inverse")((1 / 64, 3 / 256, 1, 512))
mutant("K.1.10", "mean of both sides", "arithmetic mean")((64, 96, 1, 512))
mutant("K.1.10", "one row: each number", "bytes forgotten")((64, 256 / 3, 2, 512))
mutant("K.1.10", "below the balance", "too small")((64, 256 / 3, 1, 256))
mutant("K.1.10", "b times as long", "balance itself")((64, 256 / 3, 1, 184))
mutant("K.1.10", "round up", "not rounded")((64, 256 / 3, 1, 367.4))

# ---- K.1.11 how the error of half-precision sums grows


@checker("K.1.11")
def growth_of_the_error(answer) -> str:
    """Log-log slope of the relative error of a running sum in float16: 1/2; in float32 far less."""
    slope, ratio = numbers(answer, 2).tolist()
    require(
        not 0.85 <= slope <= 1.15,
        "slope 1 is that of the absolute error; divide by the size of the sums, which grows too",
    )
    require(slope > -0.2, "a falling error: are the lengths in order, and is it error against k?")
    require(
        slope > 0.2,
        "nearly no growth: was only the result rounded? Round to float16 after every addition",
    )
    require(
        not 1.8 <= slope <= 2.2, "these are factors for a fourfold length; the slope is log of them"
    )
    require(0.35 <= slope <= 0.65, "the slope of log(relative error) against log(k) is near 1/2")
    require(
        not 0 < ratio < 1e-2, "ratio: upside down; by how much is the error of float16 *larger*?"
    )
    require(
        1e3 <= ratio <= 5e4,
        "ratio: float16 keeps 11 bits and float32 keeps 24; expect about 2 to the power 13",
    )
    return "Errors add up like a random walk, in both; float32 begins 13 bits lower."


solution("K.1.11")((0.5, 8000.0))
mutant("K.1.11", "absolute error", "absolute")((1.0, 8000.0))
mutant("K.1.11", "falling error", "lengths backwards")((-0.5, 8000.0))
mutant("K.1.11", "nearly no growth", "rounded once")((0.0, 8000.0))
mutant("K.1.11", "these are factors", "factors")((2.0, 8000.0))
mutant("K.1.11", "upside down", "inverse")((0.5, 1 / 8000))
mutant("K.1.11", "11 bits", "same dtype")((0.5, 1.0))
