"""Figures that only their texture shows."""

import pytest
import torch

from attnlib.models.vision import patches
from attnlib.tasks.textures import TextureBorders


def cells_of(images):
    """(batch, cells, 4): the four pixels of each cell, upper left first."""
    return patches(images, 2)


def test_the_same_seed_gives_the_same_images():
    first, again = (TextureBorders().batch(4, 3) for _ in range(2))
    assert torch.equal(first.images, again.images) and torch.equal(first.labels, again.labels)
    assert first.images.shape == (4, 1, 24, 24) and first.labels.shape == (4, 144)


@pytest.mark.parametrize("figure", ["shapes", "blocks"])
def test_in_the_figure_columns_are_equal_and_on_the_ground_rows(figure):
    batch = TextureBorders(figure=figure).batch(20, 0)
    upper_left, upper_right, lower_left, lower_right = cells_of(batch.images).unbind(-1)
    upright = (upper_left == lower_left) & (upper_right == lower_right)
    lying = (upper_left == upper_right) & (lower_left == lower_right)
    assert upright[batch.labels == 1].all() and lying[batch.labels == 0].all()
    undecided = (upright & lying).double().mean()
    assert 0.47 < undecided < 0.53


def test_one_pixel_tells_nothing():
    batch = TextureBorders().batch(500, 0)
    pixels = cells_of(batch.images)
    assert set(pixels.unique().tolist()) == {-1, 1}
    for label in (0, 1):
        assert pixels[batch.labels == label].mean(0).abs().max() < 0.03


def test_a_figure_of_blocks_is_constant_in_each_block_and_independent_between_them():
    labels = TextureBorders(figure="blocks", cells=12, block=4).batch(400, 1).labels
    blocks = labels.view(-1, 3, 4, 3, 4).transpose(2, 3).flatten(3)
    assert (blocks == blocks[..., :1]).all()
    chosen = blocks[..., 0].double().flatten(1)
    covariance = torch.cov(chosen.T)
    assert (covariance - 0.25 * torch.eye(9)).abs().max() < 0.06


def test_the_best_reader_of_blocks_reaches_the_optimum():
    task = TextureBorders(figure="blocks", cells=12, block=2)
    batch = task.batch(600, 2)
    first, second, third, _ = cells_of(batch.images).unbind(-1)
    says = (first == third).long() - (first == second).long()  # 1 figure, -1 ground, 0 nothing
    heard = says.view(-1, 6, 2, 6, 2).sum((2, 4)).sign()
    guess = (heard > 0).long().repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1)
    accuracy = (guess == batch.labels).double().mean()
    assert abs(accuracy - task.optimum) < 0.01
    assert task.optimum == 1 - 1 / 32


def test_noise_changes_the_given_share_of_pixels():
    plain, noisy = (TextureBorders(noise=noise).batch(50, 0) for noise in (0.0, 0.1))
    assert torch.equal(plain.labels, noisy.labels)
    assert 0.09 < (plain.images != noisy.images).double().mean() < 0.11


def test_chance_is_the_share_of_the_ground():
    task = TextureBorders()
    assert 0.5 < task.chance < 0.8
    assert 0.4 < 1 - task.batch(200, 5).labels.double().mean() < 0.8


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="block must divide cells 12, got 5"):
        TextureBorders(block=5)
    with pytest.raises(ValueError, match="figure must be one of shapes, blocks"):
        TextureBorders(figure="block")
    with pytest.raises(ValueError, match="cells must be at least 9, got 8"):
        TextureBorders(cells=8)
    with pytest.raises(ValueError, match=r"noise must lie in \[0, 0.5\]"):
        TextureBorders(noise=0.6)
    with pytest.raises(ValueError, match="optimum is known for"):
        TextureBorders().optimum  # noqa: B018
