"""The two tasks of weights over features: what is planted, and that the controls lack it."""

import pytest
import torch

from attnlib.tasks.counting_domains import CountingDomains
from attnlib.tasks.shifted_frames import ShiftedFrames


@pytest.mark.parametrize("task", [ShiftedFrames(), CountingDomains()])
def test_the_same_seed_gives_the_same_batch(task):
    one, two, other = task.batch(5, 1), task.batch(5, 1), task.batch(5, 2)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one.x, other.x)


def test_the_raised_frames_show_the_pattern_of_the_class():
    task = ShiftedFrames(noise=0.0, drift=0.0, shift=3.0)
    x, targets, place = task.batch(50, 0)
    assert x.shape == (50, 24, 8)
    raised = x.mean(-1) > 2
    after = torch.arange(24) - place[:, None]
    assert torch.equal(raised, (after >= 0) & (after < 4))
    shown = x[raised].view(50, 4, 8) - 3
    assert torch.equal(shown, task.patterns()[targets][:, None].expand(-1, 4, -1))


def test_the_other_frames_say_nothing_of_the_class():
    task = ShiftedFrames(noise=0.0, drift=0.0, shift=0.0)
    x, targets, place = task.batch(4000, 0)
    after = torch.arange(24) - place[:, None]
    matches = (x == task.patterns()[targets][:, None]).all(-1)
    outside = matches[(after < 0) | (after >= 4)].float().mean()
    assert abs(outside - task.chance) < 0.01
    assert len(task.patterns().unique(dim=0)) == task.classes


def test_levels_drift_between_signals_only():
    x, _, _ = ShiftedFrames(noise=0.0, drift=2.0, shift=0.0).batch(400, 0)
    plain, _, _ = ShiftedFrames(noise=0.0, drift=0.0, shift=0.0).batch(400, 0)
    level = x - plain
    assert torch.allclose(level, level[:, :1].expand_as(level), atol=1e-5)
    assert abs(level[:, 0].std() - 2) < 0.2


@pytest.mark.parametrize("conflict", [True, False])
def test_persons_are_counted_in_the_channel_of_the_domain(conflict):
    x, targets, domain = CountingDomains(noise=0.0, conflict=conflict).batch(60, 0)
    shown = domain if conflict else torch.zeros_like(domain)
    persons = x.gather(-1, shown[:, None, None].expand(-1, 16, 1)).mean((1, 2))
    assert torch.allclose(persons, targets)
    clutter = x.gather(-1, ((shown + 1) % 3)[:, None, None].expand(-1, 16, 1)).mean((1, 2))
    assert not torch.allclose(clutter, targets)
    assert torch.equal(x[..., 3:].mean(1).argmax(-1), domain)


def test_wrong_sizes_are_named():
    with pytest.raises(ValueError, match="told must be at most frames = 3, got 4"):
        ShiftedFrames(frames=3)
    with pytest.raises(ValueError, match="channels must be at least 1"):
        ShiftedFrames(channels=0)
    with pytest.raises(ValueError, match="places must be at least 1"):
        CountingDomains(places=0)
