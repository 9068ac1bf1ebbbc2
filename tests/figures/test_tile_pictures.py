"""The picture of a tiled read: one frame a step, each with its own sentence."""

import pytest
from matplotlib import pyplot as plt

from attnlib.figures.tiles import tile_picture, tile_steps
from attnlib.support import causal


def test_every_step_has_a_sentence_of_its_own():
    said = []
    assert list(tile_steps(causal, 6, 6, tile=(2, 3))) == list(range(1, 9))
    for step in tile_steps(causal, 6, 6, tile=(2, 3)):
        figure, words = tile_picture(causal, 6, 6, tile=(2, 3), step=step)
        said.append(words)
        plt.close(figure)
    assert len(set(said)) == len(said) == 8
    assert said[0] == "step 1 of 8: queries 0 to 1, fold keys 0 to 2, mask a part"
    assert said[1] == "step 2 of 8: divide, write reads 0 to 1"


def test_masked_pairs_are_drawn_one_by_one():
    assert [hatched(tile=(4, 4), step=step) for step in (1, 2)] == [6, 6]


def test_the_masked_pairs_of_finished_tiles_stay_marked():
    assert [hatched(tile=(2, 2), step=step) for step in range(1, 6)] == [1, 1, 1, 2, 2]


def hatched(*, tile, step):
    figure, _ = tile_picture(causal, 4, 4, tile=tile, step=step)
    count = sum(patch.get_hatch() == "////" for patch in figure.axes[0].patches)
    plt.close(figure)
    return count


@pytest.mark.parametrize("step", [0, 9])
def test_a_step_outside_the_walk_is_refused(step):
    with pytest.raises(ValueError, match="expected 1 to 8"):
        tile_picture(causal, 6, 6, tile=(2, 3), step=step)
