"""State tracking, overwriting, rhythms: oracles are right, and what should say nothing does so."""

import pytest
import torch

from attnlib.tasks import IGNORE
from attnlib.tasks.rhythms import Counts, Rhythms
from attnlib.tasks.state_tracking import ModularCounter, OverwrittenRecall, Swaps

TASKS = [
    ModularCounter(2, length=9),
    ModularCounter(3, length=9),
    Swaps(3, length=9),
    Swaps(4, length=9),
    OverwrittenRecall(keys=5, values=7, writes=12),
    Rhythms(classes=3, length=20),
    Counts(classes=3, length=20),
]
each_task = pytest.mark.parametrize("task", TASKS, ids=repr)


@each_task
def test_a_seed_gives_the_same_batch_with_tokens_of_the_vocabulary(task):
    first, again, other = task.batch(50, 3), task.batch(50, 3), task.batch(50, 4)
    assert torch.equal(first.tokens, again.tokens) and torch.equal(first.targets, again.targets)
    assert not torch.equal(first.tokens, other.tokens)
    assert first.tokens.shape == first.targets.shape == (50, task.length)
    asked = first.targets[first.targets != IGNORE]
    for numbers in (first.tokens, asked):
        assert numbers.min() >= 0 and numbers.max() < task.vocabulary


@pytest.mark.parametrize("modulus", [2, 3, 5])
def test_a_counter_counts_ones(modulus):
    tokens, targets = ModularCounter(modulus, length=20).batch(30, 0)
    for row, answers in zip(tokens.tolist(), targets.tolist(), strict=True):
        assert answers == [sum(row[: t + 1]) % modulus for t in range(20)]


@pytest.mark.parametrize("cups", [2, 3, 4])
def test_swaps_move_the_cups(cups):
    task = Swaps(cups, length=11)
    pairs = [(i, j) for i in range(cups) for j in range(i + 1, cups)]
    for row, answers in zip(*(part.tolist() for part in task.batch(30, 0)), strict=True):
        standing = list(range(cups))
        for token, answer in zip(row, answers, strict=True):
            if token < len(pairs):
                i, j = pairs[token]
                standing[i], standing[j] = standing[j], standing[i]
            assert tuple(standing) == task.arrangements[answer]


def test_the_last_value_of_a_key_is_the_answer():
    task = OverwrittenRecall(keys=5, values=7, writes=12)
    overwritten = 0
    for row, answers in zip(*(part.tolist() for part in task.batch(100, 0)), strict=True):
        assert answers[:24] == [IGNORE] * 24
        assert sorted(row[:10:2]) == sorted(row[24:]) == list(range(5))
        for asked, answer in zip(row[24:], answers[24:], strict=True):
            values = [row[t + 1] for t in range(0, 24, 2) if row[t] == asked]
            assert values[-1] == answer
            overwritten += len(values) > 1
    assert overwritten > 250
    tokens, targets = OverwrittenRecall(keys=5, values=7, writes=5).batch(9, 0)
    assert (tokens[:, :10:2].sort(-1).values == torch.arange(5)).all()
    assert (targets[:, 10:] >= 5).all()


def test_the_count_tells_the_class_of_counts_and_not_of_rhythms():
    def guess(task):
        """The best guess of the class from the number of ones, learnt from one half."""
        tokens, targets = task.batch(4000, 0)
        ones, label = tokens.sum(1), targets[:, -1] - 2
        table = torch.zeros(task.length + 1, task.classes)
        table.index_put_((ones[:2000], label[:2000]), torch.ones(2000), accumulate=True)
        return (table[ones[2000:]].argmax(-1) == label[2000:]).double().mean()

    assert guess(Counts(length=64)) > 0.95
    assert guess(Rhythms(length=64)) < 0.45


def test_the_spectrum_tells_the_class_of_rhythms():
    task = Rhythms(length=64)
    tokens, targets = task.batch(400, 0)
    power = torch.fft.rfft(tokens.float() - 0.5, dim=1).abs()
    places = (64 * torch.linspace(1 / 16, 1 / 4, 4)).round().long()
    right = power[:, places].argmax(-1) == targets[:, -1] - 2
    assert right.double().mean() > 0.97


WRONG = [
    (lambda: ModularCounter(1), "modulus must be at least 2, got 1"),
    (lambda: ModularCounter(2, length=0), "length must be at least 1"),
    (lambda: Swaps(6), "cups must be 2, 3, 4 or 5, got 6"),
    (lambda: OverwrittenRecall(keys=5, writes=4), "writes must be at least keys = 5, got 4"),
    (lambda: Rhythms(classes=1), "classes must be at least 2"),
    (lambda: Counts(contrast=1.5), "contrast must lie above 0 and at most at 1, got 1.5"),
]


@pytest.mark.parametrize(("make", "says"), WRONG)
def test_wrong_sizes_are_refused_by_name(make, says):
    with pytest.raises(ValueError, match=says):
        make()
