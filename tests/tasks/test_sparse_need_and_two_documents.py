"""Texts with sparse need, and two documents: readers of the rule answer, others guess."""

import pytest
import torch

from attnlib.tasks.sparse_need import SparseNeed
from attnlib.tasks.two_documents import TwoDocuments

NEED, TWO = SparseNeed(), TwoDocuments()


def test_the_answer_stands_where_the_distance_says():
    batch = NEED.batch(50, 0)
    facts, first_word = NEED.keys * NEED.values, NEED.keys * NEED.values + NEED.keys
    for row, targets, distances in zip(*(x.tolist() for x in batch), strict=True):
        for place, (target, distance) in enumerate(zip(targets, distances, strict=True)):
            assert (target >= 0) == (distance > 0)
            if not distance:
                continue
            source, asked = row[place - distance], row[place]
            if asked >= first_word:
                assert distance == 1 and source - first_word == target
            else:
                assert source < facts and divmod(source, NEED.values) == (asked - facts, target)
                first, last = NEED.reaches[(asked - facts) // NEED.keys_each]
                assert first <= distance <= last


def test_each_row_asks_once_for_each_reach_and_the_share_in_need_is_as_stated():
    batch = NEED.batch(400, 1)
    is_question = (batch.tokens >= NEED.keys * NEED.values) & (
        batch.tokens < NEED.keys * NEED.values + NEED.keys
    )
    assert (is_question.sum(1) == len(NEED.reaches)).all()
    for window in (4, 8, 32, 40, 64):
        share = (batch.distance >= window).float().mean()
        assert abs(float(share) - NEED.needs(window)) < 0.003
    assert NEED.needs(8) == 2 / 64


def test_longer_texts_have_longer_far_reaches():
    longer = NEED.at(128)
    assert longer.reaches == ((1, 3), (4, 7), (32, 62), (64, 96))
    assert longer.vocabulary == NEED.vocabulary and NEED.at(64) == NEED
    assert NEED.at(32).batch(5, 0).tokens.shape == (5, 32)


def test_the_person_of_the_fact_fills_the_gap():
    batch = TWO.batch(100, 0)
    first_gap = TWO.people * TWO.roles
    for row, targets, gaps in zip(*(x.tolist() for x in batch), strict=True):
        assert row[TWO.document] == TWO.mark and sum(gaps) == TWO.gaps
        for place, is_gap in enumerate(gaps):
            assert is_gap == (first_gap <= row[place] < first_gap + TWO.roles)
            assert is_gap == (targets[place] >= 0)
            if is_gap:
                fact = (row[place] - first_gap) * TWO.people + targets[place]
                assert row.index(fact) < TWO.document < place
        facts = [token for token in row if token < first_gap]
        assert len(facts) == len({fact // TWO.people for fact in facts}) == TWO.facts


def test_a_document_that_tells_says_the_fact_behind_the_gap():
    batch = TwoDocuments(told=True).batch(100, 0)
    rows, places = batch.is_gap.nonzero(as_tuple=True)
    fact = batch.tokens[rows, places + 1]
    assert torch.equal(fact % TWO.people, batch.targets[rows, places])
    role = batch.tokens[rows, places] - TWO.people * TWO.roles
    assert torch.equal(fact // TWO.people, role)
    assert torch.equal(batch.tokens[:, :20], TWO.batch(100, 0).tokens[:, :20])


def test_the_same_seed_gives_the_same_texts():
    for task in (NEED, TWO):
        assert torch.equal(task.batch(9, 3).tokens, task.batch(9, 3).tokens)
        assert not torch.equal(task.batch(9, 3).tokens, task.batch(9, 4).tokens)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SparseNeed(reaches=()), "reaches must hold at least one"),
        (lambda: SparseNeed(reaches=((3, 2),)), "reaches must hold pairs"),
        (lambda: SparseNeed(length=40), "reaches must hold pairs"),
        (lambda: SparseNeed(length=8, reaches=((1, 2),) * 3), "length must be at least 4"),
        (lambda: TwoDocuments(facts=3, gaps=4), "facts must be at least 4"),
        (lambda: TwoDocuments(document=7), "document must be at least 8"),
        (lambda: TwoDocuments(people=0), "people must be at least 1"),
    ],
)
def test_bad_sizes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
