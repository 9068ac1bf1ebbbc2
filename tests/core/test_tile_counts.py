"""Counts of tiles are what a walk over the tiles counts; masks of a video keep what they keep."""

import itertools
import math

import pytest
import torch

from attnlib.patterns import neighborhood, radial
from attnlib.probes.grid_timing import grid_seconds
from attnlib.probes.space_time import (
    decay_scores,
    kept_mass,
    mass_at_equal_keys,
    mass_kept_by,
    mean_keys,
    rivals,
)
from attnlib.support import dense, everything
from attnlib.tile_counts import flop_bound, key_tiles, tile_bound, touched_tiles

CASES = [
    ((20,), (7,), (2,), (4,), (3,)),
    ((12, 10), (5, 4), (1, 3), (4, 2), (2, 4)),
    ((8, 8), (8, 3), (8, 1), (3, 8), (4, 4)),
    ((4, 6, 5), (3, 2, 5), (2, 2, 1), (2, 4, 2), (2, 2, 3)),
]


@pytest.mark.parametrize(("grid", "window", "stride", "query_tile", "key_tile"), CASES)
def test_key_tiles_are_counted_as_by_walking_over_all_pairs(
    grid, window, stride, query_tile, key_tile
):
    places = math.prod(grid)
    seen = dense(neighborhood(grid, window, stride=stride), places, places)[0, 0]
    walked = {}
    coordinates = list(itertools.product(*(range(length) for length in grid)))
    for (i, query), (j, key) in itertools.product(enumerate(coordinates), repeat=2):
        if seen[i, j]:
            tile = tuple(a // size for a, size in zip(query, query_tile, strict=True))
            other = tuple(b // size for b, size in zip(key, key_tile, strict=True))
            walked.setdefault(tile, set()).add(other)
    got = key_tiles(grid, window, stride, query_tile=query_tile, key_tile=key_tile)
    assert got.numel() == len(walked)
    assert all(got[tile] == len(others) for tile, others in walked.items())


def test_tiles_that_begin_at_the_first_key_are_never_more():
    options = {"query_tile": (8, 4), "key_tile": (6, 8)}
    fixed = key_tiles((40, 40), 13, **options)
    moving = key_tiles((40, 40), 13, **options, tiling="dynamic")
    assert (moving <= fixed).all()
    assert moving.sum() < fixed.sum()
    # An inner tile of 8 x 4 queries sees 20 x 16 keys: 4 tiles of 6 rows, 2 of 8 columns.
    assert moving[2, 5] == 4 * 2


def test_the_packages_example_on_a_line_is_fully_block_sparse_from_a_stride_of_256_on():
    for tile in (128, 256):
        full = [
            stride
            for stride in range(1, 257)
            if tile_bound(32768, 2048, stride, query_tile=tile, key_tile=128) == 16
        ]
        assert full == [256]


def test_the_packages_examples_of_images_and_videos_save_as_much_as_their_pairs():
    image = {"query_tile": 16, "key_tile": (16, 8)}
    assert tile_bound((256, 256), 80, 16, **image) == flop_bound((256, 256), 80) == 10.24
    assert tile_bound((256, 256), 80, 1, **image) < 7.1
    video, window = (30, 48, 80), (18, 24, 24)
    tiles = {"query_tile": (4, 8, 8), "key_tile": (2, 8, 8)}
    assert tile_bound(video, window, (16, 8, 8), **tiles) == pytest.approx(
        flop_bound(video, window)
    )
    assert tile_bound(video, window, 1, **tiles) < 0.6 * flop_bound(video, window)


def test_no_tiles_save_more_than_the_pairs_where_tiles_divide_the_grid():
    for stride in range(1, 17):
        bound = tile_bound((64, 64), 16, stride, query_tile=8, key_tile=8)
        assert bound <= flop_bound((64, 64), 16) == 16


def test_tiles_of_a_row_touch_more_than_boxes_of_the_same_size():
    support = neighborhood((32, 32), 8)
    rows = touched_tiles(support, 1024, query_tile=64, key_tile=64)
    boxes = key_tiles((32, 32), 8, query_tile=8, key_tile=8)
    assert rows.numel() == boxes.numel()
    line = key_tiles(100, 9, 2, query_tile=8, key_tile=16)
    assert torch.equal(
        touched_tiles(neighborhood(100, 9, stride=2), 100, query_tile=8, key_tile=16), line
    )
    assert (touched_tiles(everything, 100, query_tile=8, key_tile=16) == 7).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query_tile": 0, "key_tile": 8}, "query_tile must be at least 1, got 0"),
        ({"query_tile": 8, "key_tile": (8, 8, 8)}, "key_tile must be one number or one for each"),
        ({"query_tile": 8, "key_tile": 8, "tiling": "fixed"}, "tiling"),
        ({"query_tile": 8, "key_tile": 8, "stride": 17}, "stride must be at most the window"),
    ],
)
def test_tiles_that_do_not_fit_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        tile_bound((64, 64), 16, **options)


def test_scores_fall_with_distance_in_space_and_in_time():
    scores = decay_scores(3, (2, 4), space=0.5, time=2.0, noise=0.0)
    assert scores[0, 0] == 0
    assert scores[0, 3] == pytest.approx(-1.5)  # three columns
    assert scores[0, 5] == pytest.approx(-0.5 * math.sqrt(2))  # a row and a column
    assert scores[0, 8 + 3] == pytest.approx(-1.5 - 2)  # and a frame
    assert torch.equal(
        decay_scores(3, (2, 4), space=1, time=1, seed=4),
        decay_scores(3, (2, 4), space=1, time=1, seed=4),
    )


def test_all_keys_keep_all_mass_and_uniform_rows_keep_the_share_of_their_keys():
    scores = decay_scores(4, (2, 2), space=0.5, time=0.5)
    assert kept_mass(scores, everything) == pytest.approx(1)
    support = radial(4, 4, sink_frames=0)
    assert kept_mass(torch.zeros(16, 16), support) == pytest.approx(mean_keys(support, 16) / 16)
    for mask in ("frames", "tube", "blocks"):
        family = rivals(mask, 4, (2, 2))
        keys = [mean_keys(member, 16) for member in family]
        assert keys == sorted(keys)
        assert keys[-1] == 16
        assert mass_at_equal_keys(torch.zeros(16, 16), family, 11) == pytest.approx(11 / 16)
    with pytest.raises(ValueError, match="keys must lie between 4 and 16, got 3"):
        mass_at_equal_keys(scores, rivals("frames", 4, (2, 2)), 3)


def test_a_cell_of_the_study_has_as_many_keys_for_every_mask():
    cells = {mask: mass_kept_by(mask, seed=1) for mask in ("radial", "blocks")}
    assert cells["radial"]["keys"] == cells["blocks"]["keys"]
    assert 0 < cells["radial"]["share"] < 0.25
    with pytest.raises(ValueError, match="mask"):
        mass_kept_by("window")


def test_a_timing_is_a_positive_number_of_seconds():
    assert all(
        grid_seconds(form, 16, repeats=1) > 0 for form in ("dense", "neighborhood", "blocks")
    )
    with pytest.raises(ValueError, match="form"):
        grid_seconds("sparse", 16)
