"""The picture of a tiled read: one frame a step, each with its own sentence."""

from matplotlib import pyplot as plt

from attnlib.figures.tiles import tile_picture, tile_steps
from attnlib.support import causal


def test_every_step_has_a_sentence_of_its_own():
    said = []
    for step in tile_steps(causal, 6, 6, tile=(2, 3)):
        figure, words = tile_picture(causal, 6, 6, tile=(2, 3), step=step)
        said.append(words)
        plt.close(figure)
    assert len(set(said)) == len(said) == 8
    assert said[0] == "step 1 of 8: queries 0 to 1, fold keys 0 to 2, mask a part"
    assert said[1] == "step 2 of 8: divide, write reads 0 to 1"


def test_masked_pairs_are_drawn_one_by_one():
    figure, _ = tile_picture(causal, 4, 4, tile=(4, 4), step=0)
    hatched = [patch for patch in figure.axes[0].patches if patch.get_hatch() == "////"]
    plt.close(figure)
    assert len(hatched) == 6
