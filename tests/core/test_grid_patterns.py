"""Patterns on a grid say the pairs that their definitions say, place by place."""

import itertools
import math

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from attnlib import attend
from attnlib.patterns import axial, blocks, disc, halo, neighborhood, rectangles
from attnlib.support import dense

GRIDS = [(1, 1), (5, 7), (9, 9), (3, 4, 5), (15,), (4, 6)]


def places(grid):
    return list(itertools.product(*(range(length) for length in grid)))


def table(support, queries, keys=None):
    return dense(support, queries, queries if keys is None else keys)[0, 0]


def said_by(rule, grid, query_grid=None):
    """The table of a rule (coordinates of a query, coordinates of a key) -> bool."""
    rows = [[rule(query, key) for key in places(grid)] for query in places(query_grid or grid)]
    return torch.tensor(rows)


def nearest(place, length, window):
    """The `window` places of a line that are nearest to one of them."""
    return sorted(range(length), key=lambda other: abs(other - place))[:window]


@pytest.mark.parametrize("grid", GRIDS)
def test_a_neighborhood_is_the_nearest_places_on_each_axis(grid):
    window = 3 if min(grid) >= 3 else 1
    wanted = said_by(
        lambda i, j: all(b in nearest(a, n, window) for a, b, n in zip(i, j, grid, strict=True)),
        grid,
    )
    got = table(neighborhood(grid, window), math.prod(grid))
    assert torch.equal(got, wanted)
    assert (got.sum(-1) == window ** len(grid)).all()


def test_dilated_neighbors_are_the_nearest_of_the_same_remainder():
    def near(query, key):
        mine = range(query % 3, 20, 3)
        others = [mine[at] for at in nearest(mine.index(query), len(mine), 5)]
        return key in others

    wanted = torch.tensor([[near(i, j) for j in range(20)] for i in range(20)])
    assert torch.equal(table(neighborhood(20, 5, dilation=3), 20), wanted)


RULES = [
    {"window": 4},
    {"window": (2, 3), "stride": (2, 1)},
    {"window": 3, "dilation": (3, 1), "is_causal": (True, False)},
    {"window": (4, 2), "dilation": (2, 5), "stride": (3, 2), "is_causal": True},
]


@pytest.mark.parametrize("rule", RULES)
def test_stride_dilation_and_causal_axes_follow_the_kernels_definition(rule):
    pytest.importorskip("triton")
    from attnlib.kernels.neighborhood_attention_proof import grid_support

    options = {
        name: given if isinstance(given, tuple) else (given,) * 2 for name, given in rule.items()
    }
    got = table(neighborhood((9, 10), **rule), 90)
    assert torch.equal(got, grid_support((9, 10), options))


def test_a_window_as_large_as_the_grid_is_every_key():
    assert table(neighborhood((5, 7), (5, 7)), 35).all()


def test_a_stride_as_long_as_the_window_is_blocks():
    got = table(neighborhood((8, 12), (4, 3), stride=(4, 3)), 96)
    assert torch.equal(got, table(blocks((8, 12), (4, 3)), 96))


@pytest.mark.parametrize(
    ("grid", "size", "shift"), [((6, 9), 3, 0), ((6, 9), 3, (1, 2)), (8, 4, 2)]
)
def test_blocks_cut_the_grid_and_nothing_wraps_around(grid, size, shift):
    axes = grid if isinstance(grid, tuple) else (grid,)
    shifts = shift if isinstance(shift, tuple) else (shift,) * len(axes)
    cuts = [
        [sum(place >= cut for cut in range(start, n, size)) for place in range(n)]
        for n, start in zip(axes, shifts, strict=True)
    ]
    wanted = said_by(
        lambda i, j: all(cut[a] == cut[b] for a, b, cut in zip(i, j, cuts, strict=True)), axes
    )
    assert torch.equal(table(blocks(grid, size, shift), math.prod(axes)), wanted)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_halo_is_a_block_and_what_lies_around_it(stride):
    grid, size, reach = (8, 4), 4, 1
    query_grid = tuple(length // stride for length in grid)

    def near(a, b):
        own = range(a * stride // size * size, a * stride // size * size + size)
        return min(abs(b - place) for place in own) <= reach

    wanted = said_by(
        lambda i, j: all(near(a, b) for a, b in zip(i, j, strict=True)), grid, query_grid
    )
    got = table(halo(grid, size, reach, stride), math.prod(query_grid), math.prod(grid))
    assert torch.equal(got, wanted)


def test_a_halo_of_nothing_is_blocks():
    assert torch.equal(table(halo((6, 6), 3, 0), 36), table(blocks((6, 6), 3), 36))


@pytest.mark.parametrize("grid", [(7, 9), (3, 4, 5), (11,)])
def test_a_disc_holds_what_is_nearer_than_its_radius(grid):
    got = table(disc(grid, 2.5), math.prod(grid))
    assert torch.equal(got, said_by(lambda i, j: math.dist(i, j) < 2.5, grid))
    assert torch.equal(
        table(disc(grid, 2), math.prod(grid)), said_by(lambda i, j: math.dist(i, j) < 2, grid)
    )


def test_rectangles_are_blocks_with_two_sides():
    got = table(rectangles((6, 8), 2, 4, shift=(1, 0)), 48)
    rule = lambda i, j: (i[0] + 1) // 2 == (j[0] + 1) // 2 and i[1] // 4 == j[1] // 4  # noqa: E731
    assert torch.equal(got, said_by(rule, (6, 8)))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_axial_support_is_one_line_of_the_grid(axis):
    def on_a_line(i, j):
        return all(a == b for number, (a, b) in enumerate(zip(i, j, strict=True)) if number != axis)

    assert torch.equal(table(axial((3, 4, 5), axis), 60), said_by(on_a_line, (3, 4, 5)))


SUPPORTS = [
    neighborhood((4, 8), 3, dilation=(1, 2)),
    halo((4, 8), (2, 4), 1),
    disc((4, 8), 2.5),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("support", SUPPORTS, ids=str)
def test_flex_attention_takes_every_pattern_unchanged(support):
    from torch.nn.attention.flex_attention import create_block_mask

    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 32, 16, generator=draw) for _ in range(3))
    mask = create_block_mask(support, None, None, 32, 32, device="cpu", BLOCK_SIZE=16)
    got = flex_attention(query, key, value, block_mask=mask)
    assert torch.allclose(got, attend(query, key, value, support=support), atol=1e-5)


WRONG = [
    (lambda: neighborhood((5, 7), 6), ValueError, "window times dilation must fit.*axis 0 of 5"),
    (lambda: neighborhood((9, 9), 3, dilation=(1, 4)), ValueError, "dilation 4 on axis 1 of 9"),
    (lambda: neighborhood((9, 9), 3, stride=4), ValueError, "stride must be at most the window"),
    (lambda: neighborhood((9, 9), (3, 3, 3)), ValueError, "window must be one number or one for"),
    (lambda: neighborhood((9, 9), 0), ValueError, "window must be at least 1, got 0"),
    (lambda: neighborhood((9, 9), 3.0), TypeError, "window must be an int, got float"),
    (lambda: neighborhood(9, 3, is_causal=1), TypeError, "is_causal must be a bool"),
    (lambda: neighborhood(9, 3, is_causal=(True, False)), ValueError, "is_causal must be one bool"),
    (lambda: neighborhood((2, 2, 2, 2), 1), ValueError, "grid must have one to 3 axes"),
    (lambda: neighborhood((0, 3), 1), ValueError, "grid must be at least 1, got 0"),
    (lambda: blocks((6, 9), 4), ValueError, r"size must divide the grid \(6, 9\), got 4 for the 6"),
    (lambda: blocks((6, 9), 3, shift=3), ValueError, "shift must be less than size"),
    (lambda: blocks((6, 9), 3, shift=-1), ValueError, "shift must be at least 0, got -1"),
    (lambda: halo((6, 9), 3, -1), ValueError, "halo must be at least 0, got -1"),
    (lambda: halo((6, 9), 3, 1, stride=2), ValueError, "stride must divide size, got 2 and 3"),
    (lambda: disc((6, 9), 0), ValueError, "radius must be a positive finite number, got 0"),
    (lambda: disc((6, 9), "2"), TypeError, "radius must be a number, got str"),
    (lambda: rectangles((6, 9), 4, 3), ValueError, r"height must divide the grid \(6, 9\), got 4"),
    (lambda: rectangles((6, 9), 3, 4), ValueError, "width must divide"),
    (lambda: rectangles(6, 3, 3), ValueError, r"grid must be \(rows, columns\)"),
    (lambda: axial((6, 9), 2), ValueError, "axis must be one of the 2 axes"),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG)
def test_what_does_not_fit_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()
