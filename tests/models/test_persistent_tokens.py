"""Persistent tokens: the frozen model stays as it was, the tokens learn, subjects are true."""

import itertools

import pytest
import torch

from attnlib.models.persistent_tokens import (
    PersistentTokens,
    PictureReader,
    answer_in_words,
    answer_with_tokens,
)
from attnlib.tasks.subjects import PictureQuestionTask
from attnlib.training import train


@pytest.fixture
def reader():
    return PictureReader(PictureQuestionTask(values=3), width=16)


def test_every_answer_is_true_and_near_misses_differ_in_one_attribute():
    batch = PictureQuestionTask().batch(400, 0)
    there = (batch.pictures == batch.words[:, None]).all(-1).any(-1)
    asks = batch.asked == 0
    assert torch.equal(batch.targets[asks], there[asks].long())
    row = (~asks).nonzero()[:, 0]
    named = batch.words[row, batch.asked[row] - 1]
    assert torch.equal(batch.targets[row], 2 + named)
    differs = (batch.pictures != batch.words[:, None]).sum(-1)
    assert (differs[~there].min(-1).values == 1).all()
    assert 0.4 < there.double().mean() < 0.7


def test_learning_the_tokens_leaves_the_model_bit_for_bit_as_it_was(reader):
    task = reader.task
    batch = task.batch(50, 1)
    words = reader.words(batch.words).detach()
    before = reader(batch.pictures, words, batch.asked)
    tokens = PersistentTokens(reader, 2)
    start = tokens.tokens.detach().clone()
    few = PictureQuestionTask(values=3, subject=(0, 2, 1)).batch(16, 2)
    history = train(
        tokens,
        itertools.repeat(few),
        steps=30,
        learning_rate=3e-2,
        warmup=2,
        objective=answer_with_tokens,
        progress=False,
    )
    assert history.loss[-1] < history.loss[0] and not torch.equal(tokens.tokens, start)
    assert torch.equal(reader(batch.pictures, words, batch.asked), before)
    assert [p.requires_grad for p in tokens.parameters()].count(True) == 1


def test_tokens_set_to_the_words_answer_as_the_words_do(reader):
    batch = PictureQuestionTask(values=3, subject=(0, 2, 1)).batch(20, 2)
    tokens = PersistentTokens(reader, 3)
    with torch.no_grad():
        tokens.tokens.copy_(reader.words(batch.words)[0])
    got = answer_with_tokens(tokens, batch)
    torch.testing.assert_close(got, answer_in_words(reader, batch))


def test_subjects_and_counts_out_of_range_are_refused(reader):
    with pytest.raises(ValueError, match=r"subject must have 3 values in 0 \.\.\. 4"):
        PictureQuestionTask(subject=(0, 5, 1))
    with pytest.raises(ValueError, match="subject must have 3 values"):
        PictureQuestionTask(subject=(0, 1))
    with pytest.raises(ValueError, match="count must be at least 1"):
        PersistentTokens(reader, 0)
