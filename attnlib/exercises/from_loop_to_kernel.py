"""The exercises of chapter K.2 with numbers: bytes of walks, three limits, slopes of traffic."""

import numpy

from attnlib.exercises.answers import close, numbers, require
from attnlib.exercises.registry import ExerciseError, checker, mutant, solution

# ---- K.2.1 bytes of four walks

TOKENS, WIDTH = 4096, 128


def mebibytes(visits: int, block: int, rows: int = 2) -> float:
    """`visits` tiles of `block` keys with values; `rows`: queries and reads, once a token."""
    return (4 * block * WIDTH * visits + 2 * rows * TOKENS * WIDTH) / 2**20


def _window(blocks: int) -> int:
    return sum(min(k + 1, blocks) for k in range(32))


def _stretch() -> int:
    """Keys that some query of a block sees in its window, over all blocks."""
    return sum(min(128 * (k + 1), 511 + 128) for k in range(32))


VISITS = ((64**2, 64), (32**2, 128), (32 * 33 // 2, 128), (_window(5), 128))
WALKS = tuple(mebibytes(visits, block) for visits, block in VISITS)


@checker("K.2.1")
def bytes_of_four_walks(answer) -> str:
    """MiB of programs of 64 queries, of 128, causal, in a window of 512: 130, 66, 35, 11.375."""
    given = numbers(answer, 4).tolist()
    for name, value, right, (visits, block) in zip(
        ("B = 64", "B = 128", "causal", "window"), given, WALKS, VISITS, strict=True
    ):
        kind = name if name in ("causal", "window") else "all"
        for wrong, message in (
            *_wrong_visits(kind),
            *_wrong_units(right),
            (mebibytes(visits, block, 0), "queries and reads are missing: once for each token"),
            (mebibytes(visits, block, 1), "queries are loaded and reads are stored: both count"),
            ((mebibytes(visits, block, 0) + 4) / 2, "keys without values: a visit loads both"),
            (
                mebibytes(visits, 1),
                "B counted twice: N M / B^2 visits are right, each loads B keys and not one",
            ),
        ):
            require(not close(value, wrong), f"{name}: {message}")
        require(close(value, right), f"{name}: 2 MiB, and 4 B D bytes for each visit of a tile")
    return "130, 66, 35 and 11.375 MiB: larger blocks halve, bounds save what no mask saves."


def _wrong_visits(kind: str) -> list[tuple[float, str]]:
    if kind == "causal":
        return [
            (
                mebibytes(32**2 // 2, 128),
                "exactly half: but block row k visits k + 1 tiles, its diagonal one included",
            ),
            (mebibytes(32 * 31 // 2, 128), "the tile on the diagonal is visited too"),
            (WALKS[1], "the future is loaded: the bounds end at the diagonal"),
        ]
    if kind == "window":
        return [
            (mebibytes(32 * 5, 128), "the ends: for k < 4 there are only k + 1 blocks"),
            (
                mebibytes(_window(4), 128),
                "4 blocks hold 512 keys, but key 128 k - 511 of the first query lies in block "
                "k - 4: five blocks",
            ),
            (
                mebibytes(32 * 4, 128),
                "4 blocks, and the ends not counted: key 128 k - 511 lies in block k - 4, and for "
                "k < 4 there are only k + 1",
            ),
            (mebibytes(_stretch(), 1), "whole blocks are loaded, not only the keys that are seen"),
        ]
    return []


def _wrong_units(right: float) -> list[tuple[float, str]]:
    return [
        (right * 2**20, "bytes; MiB are asked for, of 2^20 bytes"),
        (right * 2**20 / 1e6, "that is in MB; a MiB has 2^20 bytes"),
        (right * 2**10, "KiB; MiB are asked for, of 2^20 bytes"),
        (right / 2, "numbers are not bytes: each has two"),
        (right * 2, "twice too much: a number has two bytes here, not four"),
    ]


solution("K.2.1")(WALKS)
for _says, _name, _place, _value in (
    ("B counted twice", "one key a visit", 0, 4.0),
    ("bytes; MiB", "bytes", 0, 130 * 2.0**20),
    ("in MB", "decimal megabytes", 0, 136.314880),
    ("keys without values", "no values", 1, 34.0),
    ("queries and reads are missing", "keys and values only", 0, 128.0),
    ("both count", "reads not counted", 0, 129.0),
    ("not four", "float32", 0, 260.0),
    ("numbers are not bytes", "numbers", 0, 65.0),
    ("exactly half", "half of the tiles", 2, 34.0),
    ("on the diagonal is visited", "strictly causal", 2, 33.0),
    ("the future is loaded", "mask alone", 2, 66.0),
    ("the ends: for k < 4", "five everywhere", 3, 12.0),
    ("five blocks", "four blocks", 3, mebibytes(_window(4), 128)),
    ("and the ends not counted", "four everywhere", 3, 10.0),
    ("whole blocks", "keys that are seen", 3, mebibytes(_stretch(), 1)),
):
    mutant("K.2.1", _says, _name)((*WALKS[:_place], _value, *WALKS[_place + 1 :]))

# ---- K.2.2 three limits

LIMITS = (50.0, 100.0, 400.0, 0.5)


@checker("K.2.2")
def three_limits(answer) -> str:
    """Widths 50 and 100, length 400, half a picosecond."""
    softmax, sigmoid, length, time = numbers(answer, 4).tolist()
    _named(
        "width for softmax",
        softmax,
        50,
        (
            (100, "the read costs as many operations as the score: 4 D, not 2 D"),
            (200, "a multiplication and an addition are two operations: 4 D, not D"),
            (25, "twice as many functions as there are: softmax takes one for each score"),
            (0.02, "upside down"),
        ),
        "4 D operations at 800 take as long as one special function at 4",
    )
    _named(
        "width for sigmoid",
        sigmoid,
        100,
        (
            (50, "that is softmax again: sigmoid takes two special functions, not one"),
            (25, "two functions take longer, so products must be longer too: the width grows"),
            (200, "4 D operations for a score with its read, not 2 D"),
        ),
        "4 D operations take as long as two special functions",
    )
    matrix = 256 / (0.64 - 0.5)  # where two bytes a score are moved once: 0.64 N = 256 + 0.5 N
    _named(
        "length",
        length,
        400,
        (
            (matrix, "bytes of the N x M matrix are counted; a kernel never moves it"),
            (800, "twice too long: 4 N^2 D operations, and two bytes a number"),
            (300, "three of four: queries, keys, values and reads"),
            (200, "two of four: queries, keys, values and reads; or one byte a number"),
            (100, "bytes: there are four times N D numbers, of two bytes each"),
        ),
        "4 N^2 D operations at 800 take as long as 8 N D bytes at 4",
    )
    _named(
        "picoseconds",
        time,
        0.5,
        (
            (0.32 + 0.5, "the sum; the units work at the same time, so the maximum counts"),
            (0.32, "that is the time of the products; the special functions take longer"),
            (0.25, "one special function; sigmoid takes two, and the longest of all times counts"),
            (0.5e-12, "in seconds; picoseconds are asked for"),
            (0.16, "the time of half of the products; and another unit takes longer"),
        ),
        "the largest of 256 / 800, the bytes, and 2 / 4",
    )
    return "At width 64 sigmoid attention waits for its special functions, softmax for products."


def _named(what, given, right, likely, otherwise) -> None:
    for wrong, message in likely:
        require(not close(given / wrong, 1.0), f"{what}: {message}")
    require(close(given, right), f"{what}: {otherwise}")


solution("K.2.2")(LIMITS)
mutant("K.2.2", "4 D, not 2 D", "score without read")((100, 200, 800, 0.5))
mutant("K.2.2", "4 D, not D", "one operation for both")((200, 400, 800, 0.5))
mutant("K.2.2", "that is softmax again", "one function for sigmoid")((50, 50, 400, 0.32))
mutant("K.2.2", "the width grows", "half of the width")((50, 25, 400, 0.5))
mutant("K.2.2", "the N x M matrix", "matrix moved")((50, 100, 12800 / 7, 0.5))
mutant("K.2.2", "two of four", "keys and values")((50, 100, 200, 0.5))
mutant("K.2.2", "twice too long", "four bytes")((50, 100, 800, 0.5))
mutant("K.2.2", "three of four", "reads not counted")((50, 100, 300, 0.5))
mutant("K.2.2", "the maximum counts", "sum")((50, 100, 400, 0.82))
mutant("K.2.2", "time of the products", "products only")((50, 100, 400, 0.32))
mutant("K.2.2", "one special function; sigmoid", "one function")((50, 100, 400, 0.25))
mutant("K.2.2", "in seconds", "seconds")((50, 100, 400, 0.5e-12))

# ---- K.2.7 slopes of the traffic against the block

BLOCKS = 2 ** numpy.arange(4, 9)


def slopes(rows: int = 2, logarithms=(numpy.log, numpy.log)) -> tuple[float, float]:
    """(K.2.1) at N = M = 256, fitted over three small and three large blocks."""
    counted = 8 * 16 * 256 * (rows + 2 * 256 / BLOCKS)
    x, y = logarithms[0](BLOCKS), logarithms[1](counted)
    return tuple(float(numpy.polyfit(x[p], y[p], 1)[0]) for p in (slice(3), slice(2, 5)))


SLOPES = slopes()


@checker("K.2.7")
def slopes_of_traffic(answer) -> str:
    """Slopes of log bytes against log block: -0.88 for small blocks, -0.66 for large ones."""
    given = numbers(answer, 2)

    def is_near(wrong) -> bool:
        return bool((given - numbers(wrong, 2)).abs().max() < 3e-3)

    if is_near(SLOPES):
        return "The keys fall as 1 / B, queries and reads do not: the line bends."
    require(
        not (given.abs() > 10).any(),
        "these are bytes for each row of the block: fit logarithms of both",
    )
    require(not is_near([-s for s in SLOPES]), "positive: larger blocks move less, slopes fall")
    require(not is_near(SLOPES[::-1]), "swapped: the small blocks come first, and are steeper")
    require(
        not (given + 1).abs().max() < 0.02,
        "both are -1: that is the second term of (K.2.1) alone; the first does not fall at all",
    )
    for wrong, message in (
        (slopes(rows=1), "loads only: the stores of the reads count too, sum(traffic_of(...))"),
        (slopes(logarithms=(numpy.log, numpy.log2)), "two kinds of logarithm: take the same one"),
        (slopes(logarithms=(numpy.log2, numpy.log)), "two kinds of logarithm: take the same one"),
        ([_whole()] * 2, "one line over all five blocks; two are asked for, over three each"),
    ):
        require(not is_near(wrong), message)
    raise ExerciseError(
        "slopes of log(bytes) against log(block), over 16, 32, 64 and over 64, 128, 256"
    )


def _whole() -> float:
    counted = 2 + 2 * 256 / BLOCKS
    return float(numpy.polyfit(numpy.log(BLOCKS), numpy.log(counted), 1)[0])


solution("K.2.7")(SLOPES)
mutant("K.2.7", "both are -1", "second term alone")((-1.0, -1.0))
mutant("K.2.7", "swapped", "swapped")(SLOPES[::-1])
mutant("K.2.7", "positive", "positive")([-s for s in SLOPES])
mutant("K.2.7", "loads only", "loads only")(slopes(rows=1))
mutant("K.2.7", "fit logarithms", "no logarithms")(slopes(logarithms=(numpy.array, numpy.array)))
mutant("K.2.7", "two kinds", "two logarithms")(slopes(logarithms=(numpy.log, numpy.log2)))
mutant("K.2.7", "one line over all", "one line")((_whole(), _whole()))
