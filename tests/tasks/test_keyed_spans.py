"""Keyed spans: one entity is shared, and only a reader who compares every pair finds it."""

import pytest
import torch

from attnlib.tasks.keyed_spans import KeyedSpans

TASKS = [KeyedSpans(), KeyedSpans(asked=1), KeyedSpans(asked=16), KeyedSpans(facts=1, asked=4)]
every = pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.facts}-{task.asked}")


def answered(task, batch, pick):
    """Share of right spans when `pick(facts, question)` chooses the place of a fact."""
    right = 0
    for context, question, start, end in zip(*(x.tolist() for x in batch), strict=True):
        entities = context[::3]
        place = 3 * pick(entities, question)
        right += (start, end) == (place + 1, place + 2)
    return right / len(batch.start)


@every
def test_shapes_and_tokens_are_as_stated(task):
    context, question, start, end = task.batch(100, 0)
    assert context.shape == (100, 3 * task.facts) and question.shape == (100, task.asked)
    assert start.shape == end.shape == (100,)
    facts = context.view(100, task.facts, 3)
    for entities in (facts[..., 0], question):
        assert entities.min() >= 0 and entities.max() < task.entities
    assert facts[..., 1:].min() >= task.entities
    assert facts[..., 1:].max() < task.vocabulary == task.entities + task.words


@every
def test_context_and_question_share_exactly_one_entity_and_repeat_none(task):
    context, question, _, _ = task.batch(300, 0)
    for entities, named in zip(context[:, ::3].tolist(), question.tolist(), strict=True):
        assert len(set(entities)) == task.facts and len(set(named)) == task.asked
        assert len(set(entities) & set(named)) == 1


@every
def test_a_reader_who_compares_every_pair_reaches_the_optimum(task):
    def compare(entities, question):
        return next(place for place, entity in enumerate(entities) if entity in question)

    assert answered(task, task.batch(300, 0), compare) == task.optimum == 1


@every
def test_readers_who_do_not_know_the_question_get_the_stated_chance(task):
    batch = task.batch(4000, 0)
    for place in range(task.facts):
        share = answered(task, batch, lambda entities, question, place=place: place)
        assert abs(share - task.chance) < 0.025


def test_the_shared_entity_may_stand_anywhere_in_the_question():
    context, question, start, _ = KeyedSpans().batch(4000, 0)
    shared = context.gather(1, start[:, None] - 1)
    share = (question == shared).float().mean(0)
    assert (share - 1 / 8).abs().max() < 0.025


def test_all_entities_and_words_occur_where_they_may():
    task = KeyedSpans(facts=2, asked=2, entities=3, words=4)
    context, question, _, _ = task.batch(200, 0)
    assert set(question.flatten().tolist()) == set(context[:, ::3].flatten().tolist()) == {0, 1, 2}
    words = context.view(200, 2, 3)[..., 1:]
    assert set(words.flatten().tolist()) == {3, 4, 5, 6}


def test_a_seed_fixes_the_questions():
    task = KeyedSpans()
    one, same, other = task.batch(5, 1), task.batch(5, 1), task.batch(5, 2)
    assert all(map(torch.equal, one, same))
    assert not any(map(torch.equal, one, other))
    stream = task.batches(5, 1)
    assert torch.equal(next(stream).context, one.context)
    assert not torch.equal(next(stream).context, one.context)


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match=r"entities must be at least facts \+ asked - 1 = 13"):
        KeyedSpans(entities=12)
    for name in ("facts", "asked", "entities", "words"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            KeyedSpans(**{name: 0})
        with pytest.raises(TypeError, match=f"{name} must be an int"):
            KeyedSpans(**{name: 2.0})
    with pytest.raises(TypeError, match="seed must be an int"):
        KeyedSpans().batch(2, "one")
