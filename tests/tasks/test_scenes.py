"""Scenes: what the words say is what is drawn."""

import pytest
import torch

from attnlib.tasks.scenes import (
    GROUNDS,
    MY,
    PLACES,
    SOME,
    STRIPES,
    TOKEN,
    WORDS,
    Scenes,
    describe,
)
from attnlib.tasks.shapes import COLORS, SHAPES


def test_the_words_say_what_is_drawn():
    scenes = Scenes(vague=0.0).batch(60, 0)
    areas = {}
    for image, words, masks in zip(*scenes, strict=True):
        ground, *objects = describe(words).split()
        assert (
            torch.equal(image[:, 15, 15], torch.tensor(GROUNDS[ground])) or masks[:, 15, 15].any()
        )
        free = image[:, ~masks.any(0)]
        assert torch.equal(free, torch.tensor(GROUNDS[ground])[:, None].expand_as(free))
        for mask, (color, shape, place) in zip(masks, (objects[:3], objects[3:]), strict=True):
            drawn = image[:, mask]
            assert torch.equal(drawn, torch.tensor(COLORS[color])[:, None].expand_as(drawn))
            rows, columns = mask.nonzero().unbind(1)
            quarter = PLACES[2 * int(rows.float().mean() > 7.5) + int(columns.float().mean() > 7.5)]
            assert quarter == place
            areas.setdefault(shape, set()).add(int(mask.sum()))
    assert {shape: len(sizes) for shape, sizes in areas.items()} == dict.fromkeys(SHAPES, 1)
    assert len({sizes.pop() for sizes in areas.values()}) == len(SHAPES)


def test_what_is_mine_has_stripes_and_nothing_else_changes():
    personal = Scenes(personal=True, ground="sky").batch(20, 0)
    for image, words, masks in zip(*personal, strict=True):
        assert words[1] == TOKEN[MY] and words[0] == TOKEN["sky"]
        seen = {tuple(pixel) for pixel in image[:, masks[0]].T.tolist()}
        assert seen == {tuple(torch.tensor(color).tolist()) for color in STRIPES}
        other = image[:, masks[1]]
        color = WORDS[words[4]]
        assert torch.equal(other, torch.tensor(COLORS[color])[:, None].expand_as(other))


def test_vague_words_hide_the_color_of_their_share():
    words = Scenes(vague=0.5).batch(400, 0).words
    assert abs(float((words[:, 1] == TOKEN[SOME]).float().mean()) - 0.5) < 0.1
    assert not (words[:, 4] == TOKEN[SOME]).any() and not (words == TOKEN[MY]).any()
    assert not (Scenes(vague=0.0).batch(50, 0).words == TOKEN[SOME]).any()


def test_seeds_repeat_and_bad_sizes_are_named():
    first, second = Scenes().batch(5, 3), Scenes().batch(5, 3)
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    with pytest.raises(ValueError, match="vague"):
        Scenes(vague=2)
    with pytest.raises(ValueError, match="ground"):
        Scenes(ground="moon")
