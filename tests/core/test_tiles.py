"""Tiles of the scores: what is skipped, masked or full, and the walk over them."""

import pytest
import torch

from attnlib.read.tiles import FULL, PARTIAL, SKIP, tile_table, tile_walk
from attnlib.support import causal, dense, everything, window


def test_causal_tiles_lie_on_and_under_the_diagonal():
    assert tile_table(causal, 6, 6, tile=(2, 2)).tolist() == [
        [PARTIAL, SKIP, SKIP],
        [FULL, PARTIAL, SKIP],
        [FULL, FULL, PARTIAL],
    ]


def test_an_offset_moves_the_diagonal_and_ragged_tiles_count_what_exists():
    table = tile_table(causal, 3, 5, tile=(2, 2), query_offset=1)
    assert table.tolist() == [[FULL, PARTIAL, SKIP], [FULL, FULL, SKIP]]
    assert tile_table(everything, 3, 5, tile=(2, 2)).unique().tolist() == [FULL]


@pytest.mark.parametrize("support", [causal, window(3), everything])
def test_a_table_says_of_each_tile_what_the_mask_says(support):
    table = tile_table(support, 7, 9, tile=(3, 4), query_offset=2)
    allowed = dense(support, 7, 9, query_offset=2)[0, 0]
    for row in range(3):
        for column in range(3):
            share = allowed[3 * row : 3 * row + 3, 4 * column : 4 * column + 4].double().mean()
            expected = FULL if share == 1 else PARTIAL if share > 0 else SKIP
            assert table[row, column] == expected


def test_the_walk_folds_what_is_seen_and_writes_each_block_of_reads_once():
    table = tile_table(causal, 6, 6, tile=(2, 2))
    walk = tile_walk(table)
    assert [(s.query_block, s.key_block) for s in walk] == [
        (0, 0), (0, None), (1, 0), (1, 1), (1, None), (2, 0), (2, 1), (2, 2), (2, None),
    ]  # fmt: skip
    assert len(walk) == int((table != SKIP).sum()) + len(table)


def test_sizes_must_be_positive_integers():
    with pytest.raises(ValueError, match="tile must be at least 1"):
        tile_table(causal, 4, 4, tile=(0, 2))
    with pytest.raises(TypeError, match="queries"):
        tile_table(causal, 4.0, 4, tile=(2, 2))


def test_a_kernel_that_skips_by_the_table_loses_nothing():
    table = tile_table(window(3), 9, 9, tile=(2, 2))
    covered = table.repeat_interleave(2, 0).repeat_interleave(2, 1)[:9, :9] != SKIP
    assert torch.equal(covered | dense(window(3), 9, 9)[0, 0], covered)
