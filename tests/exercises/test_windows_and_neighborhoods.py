"""The tables by which the exercises of chapter 8.1 judge are those of the book."""

import pytest
import torch

from attnlib.exercises import windows_and_neighborhoods as hand
from attnlib.exercises import windows_and_neighborhoods_gathers as gathers
from attnlib.exercises import windows_and_neighborhoods_programs as programs
from attnlib.patterns.grid import blocks, halo, neighborhood
from attnlib.support import dense


def table(support, grid):
    places = grid[0] * grid[1]
    return dense(support, places, places)[0, 0]


@pytest.mark.parametrize("grid, window, dilation", [((5, 7), 3, 1), ((8, 6), 4, 1), ((9, 7), 3, 2)])
def test_neighborhoods(grid, window, dilation):
    wanted = table(neighborhood(grid, window, dilation), grid)
    assert torch.equal(gathers.near_table(grid, window, dilation), wanted)


@pytest.mark.parametrize("grid, block, width", [((6, 8), 2, 1), ((4, 4), 4, 1), ((9, 6), 3, 2)])
def test_halos(grid, block, width):
    wanted = table(halo(grid, block, width), grid)
    assert torch.equal(gathers.halo_table(grid, block, width), wanted)


@pytest.mark.parametrize("grid, window, shift", [((4, 8), 4, 0), ((8, 12), 4, 2), ((6, 9), 3, 2)])
def test_shifted_windows(grid, window, shift):
    wanted = table(blocks(grid, window, shift), grid)
    assert torch.equal(programs.window_table(grid, window, shift), wanted)


@pytest.mark.parametrize("length, window, stride", [(10, 5, 1), (12, 4, 4), (13, 6, 3), (7, 7, 2)])
def test_first_keys(length, window, stride):
    support = neighborhood((length,), window, stride=stride)
    seen = dense(support, length, length)[0, 0]
    assert programs.firsts(length, window, stride) == seen.int().argmax(-1).tolist()
    by_hand = neighborhood((10,), 5)
    seen = dense(by_hand, 10, 10)[0, 0]
    counts = (*seen.int().argmax(-1)[[0, 4, 9]].tolist(), *seen.sum(0)[[0, 4]].tolist())
    assert counts == (0, 2, 5, 3, 7)


def test_tiles():
    for stride, most in zip(hand.STRIDES, hand.MOST, strict=True):
        axis = neighborhood((hand.SIDE,), hand.WINDOW, stride=stride)
        seen = dense(axis, hand.SIDE, hand.SIDE)[0, 0]
        touched = seen.view(8, 8, 8, 8).any(3).any(1)  # query tiles, key tiles
        assert touched.sum(-1).tolist() == hand.tiles_on_an_axis(stride)
        assert int(touched.sum(-1).max()) ** 2 == most
