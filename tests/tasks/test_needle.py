"""Needles: a reader who looks for the needle is always right, and depth and length are as asked."""

import pytest
import torch

from attnlib.tasks.needle import NeedleRetrieval
from attnlib.tasks.task import IGNORE

TASK = NeedleRetrieval(length=31, needles=5, questions=3, keys=7, values=6, filler=4)


def find(row, position):
    """The value of the needle that has the key of the question."""
    key = row[position] - 42
    return next(token % 6 for token in row if token < 42 and token // 6 == key)


def asked(batch):
    return (batch.targets != IGNORE).nonzero().tolist()


@pytest.mark.parametrize("task", [TASK, TASK.at(200), TASK.at(8), TASK.at(50, 0.3)])
def test_finding_the_needle_gives_every_answer(task):
    batch = task.batch(50, 0)
    rows = batch.tokens.tolist()
    assert len(asked(batch)) == 150
    assert all(find(rows[row], at) == batch.targets[row, at] for row, at in asked(batch))


def test_every_value_is_asked_for_equally_often():
    targets = TASK.batch(3000, 1).targets
    frequency = targets[targets != IGNORE].bincount(minlength=6).double() / 9000
    assert torch.allclose(frequency, torch.tensor(TASK.chance).double(), atol=0.02)


def test_needles_have_different_keys_and_all_else_is_filler():
    tokens = TASK.batch(100, 2).tokens
    for row in tokens.tolist():
        needles = [token // 6 for token in row[:28] if token < 42]
        assert len(set(needles)) == len(needles) == 5
        assert all(token < 42 or token >= 49 for token in row[:28])
        assert all(42 <= token < 49 for token in row[28:])
    assert set(tokens.unique().tolist()) == set(range(TASK.vocabulary))


@pytest.mark.parametrize(("depth", "place"), [(0.0, 0), (1.0, 27), (0.5, 14)])
def test_the_first_needle_stands_at_the_depth_that_is_asked_for(depth, place):
    batch = TASK.at(31, depth).batch(200, 3)
    first_key = batch.tokens[:, 28] - 42
    assert torch.equal(batch.tokens[:, place] // 6, first_key)
    assert torch.equal(batch.tokens[:, place] % 6, batch.targets[:, 28])
    assert (batch.tokens[:, :28] < 42).sum(1).eq(5).all()


def test_a_seed_fixes_the_batches():
    assert torch.equal(TASK.batch(4, 3).tokens, TASK.batch(4, 3).tokens)
    assert not torch.equal(TASK.batch(4, 3).tokens, TASK.batch(4, 4).tokens)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"length": 7}, "length must be at least needles . questions = 8, got 7"),
        ({"questions": 5}, "needles must be at least 5, got 4"),
        ({"needles": 9}, "keys must be at least 9, got 8"),
        ({"depth": 1.5}, "depth must lie between 0 and 1, got 1.5"),
        ({"filler": 0}, "filler must be at least 1, got 0"),
    ],
)
def test_sizes_that_do_not_fit_are_named(sizes, message):
    with pytest.raises(ValueError, match=message):
        NeedleRetrieval(**sizes)
