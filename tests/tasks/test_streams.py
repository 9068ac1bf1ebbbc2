"""Streams of pairs, of far questions and of facts say what they promise."""

import pytest
import torch

from attnlib.tasks.streams import (
    NearAndFarRecall,
    RelationalFacts,
    blocking_trials,
    key_value_stream,
    recalled,
)
from attnlib.tasks.task import IGNORE


def test_a_stream_repeats_its_pairs_with_fresh_disturbances():
    key, value, written, wild = key_value_stream(
        6, 8, value_width=5, streams=40, repeats=3, outliers=0.25, noise=0.1, generator=1
    )
    assert key.shape == (40, 18, 8) and value.shape == written.shape == (40, 18, 5)
    assert torch.equal(key[:, :6], key[:, 12:]) and torch.equal(value[:, :6], value[:, 6:12])
    torch.testing.assert_close(key.norm(dim=-1), torch.ones(40, 18).double())
    torch.testing.assert_close(written[wild].norm(dim=-1), torch.full((wild.sum(),), 10.0).double())
    assert 0.2 < wild.double().mean() < 0.3
    off = (written - value)[~wild]
    assert 0.08 < off.square().sum(-1).mean().sqrt() < 0.12
    again = key_value_stream(6, 8, value_width=5, streams=40, repeats=3, outliers=0.25, generator=1)
    assert torch.equal(again.key, key) and torch.equal(again.is_outlier, wild)


def test_orthogonal_keys_are_orthogonal_and_at_most_as_many_as_the_width():
    key = key_value_stream(8, 8, streams=3, orthogonal=True).key
    torch.testing.assert_close(key @ key.mT, torch.eye(8).double().expand(3, 8, 8))
    with pytest.raises(ValueError, match="pairs must be at most width = 8"):
        key_value_stream(9, 8, orthogonal=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outliers": 1.5}, "outliers must lie in 0 ... 1"),
        ({"noise": -1.0}, "noise must not be negative"),
        ({"outlier_size": -1.0}, "outlier_size must not be negative"),
        ({"repeats": 0}, "repeats must be at least 1"),
    ],
)
def test_a_stream_refuses_numbers_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        key_value_stream(4, 4, **options)


def test_recalled_asks_for_the_nearest_direction():
    value = key_value_stream(5, 8).value
    assert recalled(value, value).all()
    assert not recalled(value.roll(1, dims=-2), value).any()


def test_near_questions_are_near_far_ones_far_and_every_answer_stands_behind_its_key():
    task = NearAndFarRecall(far=4, near=6, keys=12, values=5)
    tokens, targets = task.batch(50, 0)
    assert tokens.shape == targets.shape == (50, task.length) and task.length == 40
    asked = targets != IGNORE
    assert (asked.sum(-1) == 10).all() and (asked & task.is_far).sum() == 50 * 4
    for row, answers, where in zip(tokens, targets, asked, strict=True):
        for place in where.nonzero()[:, 0].tolist():
            first = (row == row[place]).nonzero()[0, 0].item()
            assert row[first + 1] == answers[place] and row[place + 1] == task.filler
            distance = place - first
            assert distance >= 2 + 4 * 6 if task.is_far[place] else distance <= 6
    assert tokens.max() < task.vocabulary


def test_an_odd_number_of_near_pairs_or_too_few_keys_is_refused():
    with pytest.raises(ValueError, match="near must be even"):
        NearAndFarRecall(near=3)
    with pytest.raises(ValueError, match="keys must be at least far"):
        NearAndFarRecall(keys=10)


@pytest.mark.parametrize("hops", [1, 2])
def test_the_answer_follows_from_the_facts_that_are_needed_and_from_no_later_start(hops):
    task = RelationalFacts(facts=8, subjects=12, places=4, hops=hops)
    facts, question, targets, place = task.batch(60, 0)
    for story, asked, answer, first in zip(facts, question, targets, place, strict=True):
        known = {int(subject): int(what) for subject, what in story}
        assert len(known) == 8
        steps = [int(asked)]
        for _ in range(hops):
            steps.append(known[steps[-1]])
        assert steps[-1] - task.subjects == answer
        places = [(story[:, 0] == step).nonzero()[0, 0].item() for step in steps[:-1]]
        assert min(places) == first
    assert targets.min() >= 0 and targets.max() < 4


def test_facts_refuse_what_cannot_be():
    with pytest.raises(ValueError, match="hops must be 1 or 2"):
        RelationalFacts(hops=3)
    with pytest.raises(ValueError, match="facts must come in 2s"):
        RelationalFacts(facts=7, hops=2)
    with pytest.raises(ValueError, match="subjects must be at least facts"):
        RelationalFacts(facts=40)


def test_blocking_shows_the_first_cue_alone_and_then_both():
    present, outcome = blocking_trials(3, 2)
    assert present.tolist() == [[1, 0]] * 3 + [[1, 1]] * 2 and outcome.tolist() == [1.0] * 5
    with pytest.raises(ValueError, match="second must be at least 1"):
        blocking_trials(3, 0)
