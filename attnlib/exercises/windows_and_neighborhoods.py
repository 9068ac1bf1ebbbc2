"""Checked exercises of chapter 8.1, windows and neighborhoods: numbers, counts and a bug hunt."""

import math

import torch
from torch import Tensor

from attnlib.exercises.answers import call, close, numbers, require
from attnlib.exercises.registry import checker, mutant, solution

# ---- 8.1.1 a window by hand


@checker("8.1.1")
def window_by_hand(answer) -> str:
    """Ten places, window 5: first keys 0, 2 and 5; 3 queries see key 0 and 7 see key 4."""
    first, middle, last, seen_first, seen_inside = numbers(answer, 5).tolist()
    require(
        first not in (-2, -1),
        "query 0: there is no key before 0; the window is moved until it lies inside",
    )
    require(first == 0, "query 0: the window 0 to 4 is the nearest one that lies inside")
    likely = {
        4: "that window begins at the query; the query stands in its middle",
        0: "that window ends at the query, as a causal one does; the query stands in its middle",
        1: "one too low: two keys before the query, itself, and two after it",
        3: "one too high: two keys before the query, itself, and two after it",
    }
    require(middle == 2, f"query 4: {likely.get(middle, 'the window begins at 4 - 5 // 2')}")
    likely = {
        7: "that window reaches to key 11, which does not exist; it is moved, not cut",
        6: "that window reaches to key 10, and the last key is 9",
        9: "a query at the end has five keys as all others have",
    }
    require(last == 5, f"query 9: {likely.get(last, 'the last window is 5 to 9')}")
    likely = {
        5: "key 0 has fewer: its own query and those whose window begins at 0",
        1: "queries 1 and 2 see it too: their windows begin at 0",
        2: "query 2 sees it too: its window begins at 2 - 2 = 0",
    }
    require(seen_first == 3, f"key 0: {likely.get(seen_first, 'which windows begin at 0?')}")
    require(
        seen_inside != 5,
        "key 4: queries 0 and 1 see it too: their windows were moved, and so reach further ahead",
    )
    require(
        seen_inside not in (6, 8),
        "key 4: one off; write down the first key of every query: 0 0 0 1 2 3 4 5 5 5",
    )
    require(seen_inside == 7, "key 4: the windows that begin at 0, 1, 2, 3 or 4 hold it")
    return "Every query has five keys, but a key has from three to seven queries."


solution("8.1.1")((0, 2, 5, 3, 7))
mutant("8.1.1", "no key before 0", "not clamped")((-2, 2, 5, 3, 7))
mutant("8.1.1", "begins at the query", "ahead")((0, 4, 5, 3, 7))
mutant("8.1.1", "as a causal one", "behind")((0, 0, 5, 3, 7))
mutant("8.1.1", "one too low", "off by one")((0, 1, 5, 3, 7))
mutant("8.1.1", "moved, not cut", "cut at the end")((0, 2, 7, 3, 7))
mutant("8.1.1", "the last key is 9", "length for last")((0, 2, 6, 3, 7))
mutant("8.1.1", "has fewer", "window for queries")((0, 2, 5, 5, 7))
mutant("8.1.1", "queries 1 and 2", "itself alone")((0, 2, 5, 1, 7))
mutant("8.1.1", "queries 0 and 1 see it too", "moved windows forgotten")((0, 2, 5, 3, 5))
mutant("8.1.1", "one off", "miscounted")((0, 2, 5, 3, 6))

# ---- 8.1.2 a head that looks at one place

NEXT = math.exp(-2)
SHARP = math.log(100)


@checker("8.1.2")
def quadratic_head(answer) -> str:
    """v = (-2, 0, 4); the place next to the center has e^-2; a = ln 100; 25 heads."""
    *embedding, ratio, locality, heads = numbers(answer, 6).tolist()
    likely = (
        ((2, 0, -4), "the sign: the score must fall with the distance from the center"),
        ((-2, 0, -4), "-a |r - c|^2 has + 2 a r.c in it: the sign of the last entry"),
        ((-2, 4, 0), "rows come first: c = (0, 1) is one place to the right"),
        ((-2, 0, 2), "the factor 2 of 2 r.c is missing"),
        ((-1, 0, 2), "a = 2 multiplies all of it"),
    )
    for wrong, message in likely:
        require(not close(embedding, wrong, 1e-3), f"v: {message}")
    require(close(embedding, (-2, 0, 4), 1e-3), "v: multiply out -a |r - c|^2 and read off")
    likely = (
        (math.exp(2), "the other way round: the center weighs more"),
        (0.0, "the score at r = 0 is 0, and a score of 0 is no weight of 0"),
        (1.0, "at the center the score is a |c|^2 = 2, not 0"),
        (math.exp(-4), "squared once too often: the distance is 1, so its square is 1"),
        (math.exp(-1), "a = 2 is missing"),
    )
    for wrong, message in likely:
        require(not close(ratio, wrong, 1e-3), f"the ratio: {message}")
    require(close(ratio, NEXT, 1e-3), "the ratio: the exponential of the difference of the scores")
    likely = (
        (math.log(25), "each of the four may have a hundredth, not all of them together"),
        (math.log(400), "each of the four may have a hundredth, not all of them together"),
        (math.log10(100), "the natural logarithm: weights are powers of e"),
        (100.0, "the weight falls as e^-a, not as 1 / a"),
        (SHARP / 2, "the places next to the center are at distance 1, not at sqrt(2)"),
    )
    for wrong, message in likely:
        require(not close(locality, wrong, 1e-3), f"a: {message}")
    require(close(locality, SHARP, 1e-3), "a: solve e^-a = 1 / 100")
    require(heads != 5, "heads: one for each place of the kernel, and there are 5 times 5")
    require(heads != 24, "heads: the middle of the kernel needs one too")
    require(heads == 25, "heads: one for each place of the kernel")
    return (
        "A softmax of a quadratic is a bump; its center is learnt, and its width goes as "
        "1 / sqrt(alpha)."
    )


HEAD = (-2, 0, 4)
solution("8.1.2")((*HEAD, NEXT, SHARP, 25))
mutant("8.1.2", "fall with the distance", "sign")((2, 0, -4, NEXT, SHARP, 25))
mutant("8.1.2", "the last entry", "sign of the center")((-2, 0, -4, NEXT, SHARP, 25))
mutant("8.1.2", "rows come first", "swapped")((-2, 4, 0, NEXT, SHARP, 25))
mutant("8.1.2", "the factor 2 of 2 r.c", "half")((-2, 0, 2, NEXT, SHARP, 25))
mutant("8.1.2", "multiplies all of it", "a left out")((-1, 0, 2, NEXT, SHARP, 25))
mutant("8.1.2", "other way round", "inverse")((*HEAD, math.exp(2), SHARP, 25))
mutant("8.1.2", "not 0", "center forgotten")((*HEAD, 1.0, SHARP, 25))
mutant("8.1.2", "squared once too often", "four")((*HEAD, math.exp(-4), SHARP, 25))
mutant("8.1.2", "not all of them together", "all four")((*HEAD, NEXT, math.log(400), 25))
mutant("8.1.2", "natural logarithm", "base ten")((*HEAD, NEXT, 2.0, 25))
mutant("8.1.2", "not as 1 / a", "inverse of a")((*HEAD, NEXT, 100.0, 25))
mutant("8.1.2", "5 times 5", "five heads")((*HEAD, NEXT, SHARP, 5))
mutant("8.1.2", "the middle of the kernel", "without the middle")((*HEAD, NEXT, SHARP, 24))

# ---- 8.1.7 tiles that a window touches

STRIDES = (1, 2, 4, 8, 16)
SIDE, WINDOW, TILE = 64, 16, 8


def tiles_on_an_axis(stride: int) -> list[int]:
    """How many key tiles each of the query tiles touches on one axis."""
    counts = []
    for start in range(0, SIDE, TILE):
        leaders = [
            min(i // stride * stride + stride // 2, SIDE - 1) for i in range(start, start + TILE)
        ]
        firsts = [min(max(leader - WINDOW // 2, 0), SIDE - WINDOW) for leader in leaders]
        counts.append((max(firsts) + WINDOW - 1) // TILE - min(firsts) // TILE + 1)
    return counts


MOST = tuple(max(tiles_on_an_axis(stride)) ** 2 for stride in STRIDES)
DENSE = (SIDE // TILE) ** 4
BOUNDS = tuple(DENSE / sum(tiles_on_an_axis(stride)) ** 2 for stride in (1, 16))


@checker("8.1.7")
def tiles_and_strides(answer) -> str:
    """Most tiles 9, 9, 9, 9, 4; speed-ups 8.46 and 16."""
    given = numbers(answer, 7).tolist()
    most, (loose, tight) = tuple(given[:5]), given[5:]
    require(
        most != tuple(math.isqrt(count) for count in MOST),
        "the counts are those of one axis: on two axes a query tile visits their product",
    )
    require(
        most != (4,) * 5,
        "4 tiles hold the 256 keys of ONE query; the queries of a tile see more keys together",
    )
    require(
        most != tuple(reversed(MOST)), "the strides are in the wrong order: stride 1 comes first"
    )
    require(
        most[3] != 4,
        "stride 8: the leader stands in the middle of its 8 places, so its window begins 4 places "
        "before a tile does, and touches 3 tiles an axis",
    )
    for stride, got, wanted in zip(STRIDES, most, MOST, strict=True):
        require(
            got == wanted,
            f"stride {stride}: {got:.0f} tiles, expected {wanted}: take the keys from the first of "
            "the tile's first query to the last of its last, on each axis",
        )
    require(
        not close(loose, 16, 1e-3),
        "stride 1: 16 counts needed pairs, 4096 / 256; a tile is computed as a whole",
    )
    require(
        not close(loose, 64 / 9, 1e-2),
        "stride 1: tiles at the border visit fewer than 9; add up the visits of all query tiles",
    )
    require(
        not close(loose, 1 / BOUNDS[0], 1e-2), "stride 1: upside down; dense visits over visits"
    )
    require(
        close(loose, BOUNDS[0], 5e-3),
        f"stride 1: {loose:.3f}, expected 64 * 64 visits of dense attention over those needed",
    )
    require(
        close(tight, 16, 5e-3),
        f"stride 16: {tight:.3f}; every query tile visits 4 of the 64 key tiles",
    )
    return "Up to a stride of 8 nothing is won; at 16 tiles hold no pair that nobody asked for."


solution("8.1.7")((*MOST, *BOUNDS))
mutant("8.1.7", "of one axis", "one axis")((3, 3, 3, 3, 2, *BOUNDS))
mutant("8.1.7", "of ONE query", "one query")((4, 4, 4, 4, 4, *BOUNDS))
mutant("8.1.7", "in the wrong order", "reversed")((4, 9, 9, 9, 9, *BOUNDS))
mutant("8.1.7", "in the middle of its 8", "leader at the start")((9, 9, 9, 4, 4, *BOUNDS))
mutant("8.1.7", "stride 2: 6 tiles", "two axes mixed")((9, 6, 9, 9, 4, *BOUNDS))
mutant("8.1.7", "counts needed pairs", "pairs")((*MOST, 16, 16))
mutant("8.1.7", "at the border visit fewer", "most for all")((*MOST, 64 / 9, 16))
mutant("8.1.7", "upside down", "inverse")((*MOST, 1 / BOUNDS[0], 1 / 16))
mutant("8.1.7", "visits 4 of the 64", "stride 16 wrong")((*MOST, BOUNDS[0], 8))

# ---- 8.1.8 a property that exposes wrong neighborhoods


@checker("8.1.8")
def property_that_exposes_neighborhood_bugs(answer) -> str:
    """A function attention -> bool: True for right neighborhoods, False for six wrong ones."""
    for name, attention in RIGHT.items():
        require(_verdict(answer, attention), f"your property rejects a right one: {name}")
    for name, attention in BUGS.items():
        require(not _verdict(answer, attention), f"your property accepts a bug: {name}")
    return "Two right neighborhoods pass, six bugs do not."


def _verdict(answer, attention) -> bool:
    def unnamed(query, key, value, grid, window):
        return attention(query, key, value, grid, window)

    verdict = call(answer, unnamed)
    if isinstance(verdict, Tensor) and verdict.numel() == 1:
        verdict = verdict.item()
    require(isinstance(verdict, bool), f"return True or False, got {type(verdict).__name__}")
    return verdict


def _first(places: Tensor, length: int, window: int) -> Tensor:
    return (places - window // 2).clamp(0, length - window)


def _axis(length: int, window: int, first=_first) -> Tensor:
    """Which keys each query of a line sees."""
    places = torch.arange(length)
    start = first(places, length, window)[:, None]
    return (places >= start) & (places < start + window)


def _grid_table(grid, window, axis=_axis) -> Tensor:
    rows, columns = (axis(length, window) for length in grid)
    return torch.kron(rows.int(), columns.int()).bool()


def _read(query, key, value, seen) -> Tensor:
    scores = (query @ key.mT * query.shape[-1] ** -0.5).masked_fill(~seen, -math.inf)
    return scores.softmax(-1) @ value


def _right(query, key, value, grid, window):
    return _read(query, key, value, _grid_table(grid, window))


def _gathered(query, key, value, grid, window):
    """The keys of each query gathered, last one first, and the weights divided in the end."""
    seen = _grid_table(grid, window).nonzero()[:, 1].view(math.prod(grid), -1).flip(-1)
    powers = (
        (torch.einsum("...nd,...nwd->...nw", query, key[..., seen, :]))
        .mul(query.shape[-1] ** -0.5)
        .exp()
    )
    read = torch.einsum("...nw,...nwe->...ne", powers, value[..., seen, :])
    return read / powers.sum(-1, keepdim=True)


def _cut(query, key, value, grid, window):
    near = lambda length, window: _axis(length, window, lambda i, n, w: i - w // 2)  # noqa: E731
    return _read(query, key, value, _grid_table(grid, window, near))


def _zero_padded(query, key, value, grid, window):
    """As many keys for everybody: what lies outside the grid has a score and a value of zero."""
    near = lambda length, window: _axis(length, window, lambda i, n, w: i - w // 2)  # noqa: E731
    seen = _grid_table(grid, window, near)
    powers = (query @ key.mT * query.shape[-1] ** -0.5).exp() * seen
    missing = window**2 - seen.sum(-1, keepdim=True)
    return powers @ value / (powers.sum(-1, keepdim=True) + missing)


def _wrapped(query, key, value, grid, window):
    def around(length, window):
        places = torch.arange(length)
        ahead = (places - places[:, None] + window // 2) % length
        return ahead < window

    return _read(query, key, value, _grid_table(grid, window, around))


def _swapped(query, key, value, grid, window):
    return _read(query, key, value, _grid_table(grid[::-1], window))


def _one_further(query, key, value, grid, window):
    later = lambda length, window: _axis(  # noqa: E731
        length, window, lambda i, n, w: (i - w // 2 + 1).clamp(0, n - w)
    )
    return _read(query, key, value, _grid_table(grid, window, later))


def _weights_of_all(query, key, value, grid, window):
    weights = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1)
    return (weights * _grid_table(grid, window)) @ value


RIGHT = {
    "the plain one": _right,
    "one that gathers and divides in the end (compare with a tolerance)": _gathered,
}
BUGS = {
    "the window is cut at the border, where it should be moved": _cut,
    "zeros around the image enter the softmax as keys": _zero_padded,
    "the window wraps around to the other side of the image": _wrapped,
    "rows and columns of the grid are exchanged": _swapped,
    "the window lies one place too far": _one_further,
    "the softmax runs over all keys, and the mask comes after it": _weights_of_all,
}


def _trial(grid=(4, 7)):
    generator = torch.Generator().manual_seed(818)
    return torch.randn(3, 2, math.prod(grid), 3, generator=generator).double()


@solution("8.1.8")
def place_by_place(attention) -> bool:
    """A loop over queries on a grid that is not square, with its own window for each."""
    (query, key, value), (rows, columns), window = _trial(), (4, 7), 3
    wanted = torch.zeros_like(value)
    for row in range(rows):
        for column in range(columns):
            top = min(max(row - 1, 0), rows - window)
            left = min(max(column - 1, 0), columns - window)
            keys = [
                (top + down) * columns + left + right
                for down in range(window)
                for right in range(window)
            ]
            place = row * columns + column
            scores = query[:, place, None] @ key[:, keys].mT / 3**0.5
            wanted[:, place] = (scores.softmax(-1) @ value[:, keys])[:, 0]
    return torch.allclose(attention(query, key, value, (rows, columns), window), wanted)


@mutant("8.1.8", "accepts a bug: the window is cut")
def always_true(attention):
    return True


@mutant("8.1.8", "rejects a right one: the plain one")
def always_false(attention):
    return False


@mutant("8.1.8", "compare with a tolerance")
def exactly_equal(attention):
    tensors = _trial()
    return torch.equal(attention(*tensors, (4, 7), 3), _right(*tensors, (4, 7), 3))


@mutant("8.1.8", "accepts a bug: rows and columns")
def on_a_square(attention):
    tensors = _trial((5, 5))
    return torch.allclose(attention(*tensors, (5, 5), 3), _right(*tensors, (5, 5), 3))


@mutant("8.1.8", "accepts a bug: the window is cut")
def rows_sum_to_one(attention):
    query, key, value = _trial()
    ones = torch.ones_like(value)
    return torch.allclose(attention(query, key, ones, (4, 7), 3), ones)


@mutant("8.1.8", "accepts a bug: the window is cut")
def in_the_middle_alone(attention):
    tensors = _trial((5, 5))
    middle = attention(*tensors, (5, 5), 3)[:, 12]
    return torch.allclose(middle, _right(*tensors, (5, 5), 3)[:, 12])


@mutant("8.1.8", "return True or False")
def the_difference(attention):
    tensors = _trial()
    return attention(*tensors, (4, 7), 3) - _right(*tensors, (4, 7), 3)


@mutant("8.1.8", "accepts a bug: the window wraps around")
def nine_keys_each(attention):
    """Counts keys and adds up weights: the window may lie anywhere."""
    query, key, _ = _trial()
    eye = torch.eye(28).double().expand(2, 28, 28)
    weights = attention(query, key, eye, (4, 7), 3)
    whole = torch.ones(2, 28).double()
    return bool(((weights > 0).sum(-1) == 9).all()) and torch.allclose(weights.sum(-1), whole)
