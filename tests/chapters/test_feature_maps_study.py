"""The study beside chapter 3.1: its pictures, its measures and its conversion are what it says."""

import pytest
import torch
from page import ROOT

from attnlib.study import load_code
from attnlib.weight.softmax_attention import softmax_attention

STUDY = load_code(ROOT / "chapters" / "3-linear" / "feature-maps.study.py")


@pytest.fixture(scope="module")
def near():
    pixels, labels = STUDY.near_pictures(4000, torch.Generator().manual_seed(0))
    return pixels[:, 0], labels


def test_no_pixel_tells_the_class_by_itself(near):
    pixels, labels = near
    for label in range(4):
        assert pixels[labels == label].mean().abs() < 0.03


@pytest.mark.parametrize(("label", "step"), list(enumerate([(0, 1), (1, 0), (1, 1), (1, -1)])))
def test_a_pixel_repeats_its_neighbor_in_the_direction_of_its_class(near, label, step):
    pixels, labels = near
    down, right = step
    here = pixels[:, down:, max(right, 0) : STUDY.SIDE + min(right, 0)]
    there = pixels[:, : STUDY.SIDE - down, max(-right, 0) : STUDY.SIDE - max(right, 0)]
    same = (here == there).float().mean((1, 2))
    assert abs(same[labels == label].mean() - 0.85) < 0.01
    assert same[labels != label].mean() < 0.7


def test_the_class_everywhere_is_the_share_of_bright_pixels():
    pixels, labels = STUDY.everywhere_pictures(4000, torch.Generator().manual_seed(0))
    for label in range(4):
        bright = (pixels[labels == label] > 0).float().mean()
        assert abs(bright - (0.35 + 0.1 * label)) < 0.01


def test_rank_correlation_sees_order_alone():
    x = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    assert STUDY.rank_correlation(x, x.exp()) == pytest.approx(1)
    assert STUDY.rank_correlation(x, -x) == pytest.approx(-1)


def test_a_map_that_is_softmax_has_no_divergence_and_no_entropy_gap():
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 2, 3, 7, 16, generator=generator)

    class Copy(STUDY.Converted):
        def forward(self, query, key, value, *, is_causal):
            return softmax_attention(query, key, value, is_causal=is_causal)

    layer = Copy(STUDY.elu_plus_one, STUDY.elu_plus_one)
    divergence, gap, _ = STUDY.compare(layer, query, key)
    assert divergence == pytest.approx(0, abs=1e-6)
    assert gap == pytest.approx(0, abs=1e-3)
    flat = STUDY.compare(STUDY.Converted(STUDY.elu_plus_one, STUDY.elu_plus_one), query, key)
    assert flat[0] > 0.05
    assert flat[1] > 0.05


def test_an_exponential_without_its_largest_entry_gives_the_same_weights():
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 2, 3, 7, 16, generator=generator)
    value = torch.randn(2, 3, 7, 4, generator=generator)
    stable = STUDY.Converted(STUDY.exponential(1.5, (-1,)), STUDY.exponential(0.7, (-2, -1)))
    plain = STUDY.Converted(lambda x: (1.5 * x).exp(), lambda x: (0.7 * x).exp())
    torch.testing.assert_close(
        stable(query, key, value, is_causal=True), plain(query, key, value, is_causal=True)
    )


def test_only_the_keys_that_are_asked_for_count():
    model = STUDY.OneRead(4, "flow", seed=0)
    batch = STUDY.ONE_READ.batch(8, 0)
    loss, _ = STUDY.asked_only(model, batch)
    changed = batch.targets.clone()
    changed[:, -12:] = STUDY.ONE_READ.keys
    assert STUDY.asked_only(model, batch._replace(targets=changed))[0] == loss
