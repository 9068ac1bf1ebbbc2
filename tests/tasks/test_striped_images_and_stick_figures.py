"""Stripes, patches, tiles and stick figures are what their tasks say."""

import pytest
import torch

from attnlib.tasks.majority_texture import MajorityTexture, upscaled
from attnlib.tasks.stick_figures import JOINTS, PARTS, StickFigures
from attnlib.tasks.striped_images import StripedImages


def test_every_line_of_a_striped_image_has_one_gray_value():
    batch = StripedImages().batch(64, 0)
    lying, standing = batch.clean[batch.horizontal], batch.clean[~batch.horizontal]
    assert len(lying) and len(standing)
    assert (lying.std(-1) == 0).all() and (standing.std(-2) == 0).all()
    assert (lying.std(-2) > 0).all()


@pytest.mark.parametrize("kind", ["stripes", "patches"])
def test_gray_values_and_noise_have_variance_one(kind):
    batch = StripedImages(kind=kind).batch(512, 0)
    assert batch.clean.var() == pytest.approx(1, rel=0.1)
    assert (batch.images - batch.clean).var() == pytest.approx(1, rel=0.02)


def test_patches_are_as_alike_across_as_along():
    clean = StripedImages(kind="patches").batch(512, 0).clean
    along = (clean[..., 1:] * clean[..., :-1]).mean().item()
    across = (clean[..., 1:, :] * clean[..., :-1, :]).mean().item()
    assert along == pytest.approx(across, rel=0.1) and along == pytest.approx(0.75, rel=0.1)


def test_the_answer_of_tiles_is_the_majority_or_the_own_texture():
    batch = MajorityTexture().batch(64, 0)
    share = batch.horizontal.float().mean((1, 2))
    assert torch.equal(batch.targets, (share > 0.5).long()[:, None].expand(-1, 256))
    assert ((share >= 0.25) & (share <= 0.375) | (share >= 0.625) & (share <= 0.75)).all()
    own = MajorityTexture(asked="texture").batch(64, 0)
    assert torch.equal(own.targets.bool(), upscaled(own.horizontal).flatten(1))


def test_lying_stripes_change_down_a_tile_and_not_along_it():
    batch = MajorityTexture(noise=0.0).batch(16, 0)
    tiles = batch.images[:, 0].unfold(1, 4, 4).unfold(2, 4, 4)
    lying = tiles[batch.horizontal]
    assert (lying == lying[..., :1]).all() and (lying[:, 0] == -lying[:, 1]).all()
    standing = tiles[~batch.horizontal]
    assert (standing == standing[:, :1]).all() and (standing[..., 0] == -standing[..., 1]).all()


def test_reports_of_figures_show_joints_near_their_places_or_nothing():
    task = StickFigures()
    batch = task.batch(256, 0)
    assert batch.seen.shape == (256, 4, PARTS, 3) and batch.joints.shape == (256, 4, JOINTS, 2)
    place, there = batch.seen[:, :, :-1, :2], batch.seen[:, :, :-1, 2]
    assert there.mean() == pytest.approx(0.6, abs=0.02) and (place[there == 0] == 0).all()
    off = (place - batch.joints)[there == 1]
    assert off.std() == pytest.approx(task.noise, rel=0.05)


def test_every_figure_is_reported_twice_and_the_whole_is_the_mean_of_what_is_seen():
    batch = StickFigures(people=3).batch(8, 0)
    same = (batch.joints[:, :, None] == batch.joints[:, None]).all(-1).all(-1)
    assert (same.sum(-1) == 2).all()
    seen, whole = batch.seen[:, :, :-1], batch.seen[:, :, -1]
    torch.testing.assert_close(
        whole[..., :2] * seen[..., 2].sum(-1, keepdim=True).clamp(min=1), seen[..., :2].sum(-2)
    )


def test_the_same_seed_gives_the_same_batch():
    for task in (StripedImages(), MajorityTexture(), StickFigures()):
        for first, second in zip(task.batch(4, 7), task.batch(4, 7), strict=True):
            assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StripedImages(kind="dots"), "kind"),
        (lambda: StripedImages(noise=0), "noise must be positive"),
        (lambda: MajorityTexture(size=10), "size must be a multiple of 4"),
        (lambda: MajorityTexture(asked="count"), "asked"),
        (lambda: StickFigures(missing=1.0), "missing must lie in"),
        (lambda: StickFigures(people=0), "people must be at least 1"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
