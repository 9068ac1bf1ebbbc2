"""Digits and shapes: the data are what they claim, and shapes can be read off exactly."""

import pytest
import torch

from attnlib.tasks import ColoredShapes, Digits
from attnlib.tasks.digits import load_digits
from attnlib.tasks.shapes import COLORS, SHAPES, draw_shapes


def test_the_stored_digits_are_those_of_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets")
    theirs = datasets.load_digits()
    ours = load_digits()
    assert torch.equal(ours.images[:, 0] * 16, torch.from_numpy(theirs.images).float())
    assert torch.equal(ours.labels, torch.from_numpy(theirs.target))


def test_train_and_test_digits_share_no_image_and_are_all_there():
    train, test = Digits("train").all(), Digits("test").all()
    assert len(train.labels) + len(test.labels) == 1797
    both = torch.cat((train.images, test.images)).flatten(1)
    assert torch.equal(both.sum(0), load_digits().images.flatten(1).sum(0))


@pytest.mark.parametrize("part", ["train", "test"])
def test_no_constant_answer_beats_the_stated_chance_for_digits(part):
    labels = Digits(part).all().labels
    best = max(float((labels == digit).float().mean()) for digit in range(10))
    assert best == pytest.approx(Digits(part).chance)
    assert 0.1 < best < 0.13


def test_nearest_neighbor_recognizes_digits_far_above_chance():
    train, test = Digits("train").all(), Digits("test").all()
    nearest = torch.cdist(test.images.flatten(1), train.images.flatten(1)).argmin(1)
    assert (train.labels[nearest] == test.labels).float().mean() > 0.95


def templates(size):
    """Every shape in every place and size, as flat masks with their kinds."""
    places = [
        (row, column, radius)
        for radius in range(3, (size - 1) // 2 + 1)
        for row in range(radius, size - radius)
        for column in range(radius, size - radius)
    ]
    table = torch.tensor(places)
    masks = draw_shapes(table[:, None, :2], table[:, None, 2], size)[:, :, 0]
    kinds = torch.arange(len(SHAPES)).repeat(len(places))
    return masks.flatten(0, 1).flatten(1).float(), kinds


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_comparing_with_every_shape_in_every_place_reaches_the_optimum(noise):
    task = ColoredShapes(size=16, noise=noise)
    batch = task.batch(200, 0)
    masks, kinds = templates(16)
    seen = (batch.images.amax(1) > 0.55).flatten(1).float()
    difference = masks.sum(1) + seen.sum(1, keepdim=True) - 2 * seen @ masks.T
    accuracy = (kinds[difference.argmin(1)] == batch.labels).float().mean()
    assert accuracy == task.optimum if noise == 0 else accuracy > 0.95


def test_all_kinds_and_colors_are_equally_frequent():
    task = ColoredShapes()
    batch = task.batch(4000, 0)
    for field, count in ((batch.labels, len(SHAPES)), (batch.colors.flatten(), len(COLORS))):
        assert torch.allclose(field.bincount() / 4000, torch.tensor(1 / count), atol=0.03)
    assert task.chance == 1 / len(SHAPES)


def test_objects_do_not_overlap_and_have_their_color():
    batch = ColoredShapes(size=32, objects=5 - 1).batch(100, 0)
    assert batch.masks.sum(1).max() == 1
    palette = torch.tensor(list(COLORS.values()))
    for image, masks, colors in zip(batch.images, batch.masks, batch.colors, strict=True):
        for mask, color in zip(masks, colors, strict=True):
            assert mask.any()
            assert torch.allclose(image[:, mask], palette[color][:, None])
        assert image[:, ~masks.any(0)].abs().max() == 0


def test_clutter_colors_its_share_of_the_free_pixels():
    batch = ColoredShapes(clutter=0.2).batch(200, 0)
    free = ~batch.masks.any(1)
    share = (batch.images.amax(1) > 0)[free].float().mean()
    assert abs(share - 0.2) < 0.01


@pytest.mark.parametrize("task", [Digits(), ColoredShapes(noise=0.1, clutter=0.1)])
def test_a_seed_fixes_the_pictures(task):
    assert torch.equal(task.batch(5, 1).images, task.batch(5, 1).images)
    assert not torch.equal(task.batch(5, 1).images, task.batch(5, 2).images)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="Did you mean 'train'"):
        Digits("training")
    with pytest.raises(ValueError, match="size must be at least 7 pixels for each of 3 cells"):
        ColoredShapes(size=16, objects=9)
    with pytest.raises(ValueError, match="clutter must lie in"):
        ColoredShapes(clutter=2.0)
