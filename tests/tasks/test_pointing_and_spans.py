"""Pointing and span answering: exact algorithms of another kind agree with the targets."""

import math

import pytest
import torch

from attnlib.tasks import IGNORE, ConvexHull, Sorting, SpanAnswering
from attnlib.tasks.pointing import convex_hull, polygon_area


def gift_wrapping(points):
    """The hull found another way: from the lowest point, always turn as little as possible."""
    start = min(range(len(points)), key=lambda place: (points[place][1], points[place][0]))
    hull, heading = [start], 0.0
    while True:
        x, y = points[hull[-1]]
        turns = [
            ((math.atan2(py - y, px - x) - heading) % (2 * math.pi), place)
            for place, (px, py) in enumerate(points)
            if place != hull[-1]
        ]
        turn, place = min(turns)
        if place == start:
            return hull
        heading += turn
        hull.append(place)


def test_gift_wrapping_finds_the_same_hulls():
    task = ConvexHull(count=12)
    inputs, targets = task.batch(200, 0)
    for points, target in zip(inputs.tolist(), targets.tolist(), strict=True):
        hull = gift_wrapping(points)
        first = hull.index(min(hull))
        expected = [*hull[first:], *hull[:first], task.stop]
        assert target == expected + [IGNORE] * (13 - len(expected))


def test_the_hull_runs_counterclockwise_and_its_area_is_known_for_a_square():
    square = [[0.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]
    hull = convex_hull(square)
    assert hull == [0, 2, 1, 3]
    assert polygon_area(torch.tensor(square), hull) == 1.0
    assert polygon_area(torch.tensor(square), hull[::-1]) == -1.0


def test_counting_the_smaller_ones_sorts():
    inputs, targets = Sorting(count=7).batch(100, 0)
    rank = (inputs < inputs.mT).sum(1)
    assert torch.equal(rank.gather(1, targets), torch.arange(7).expand(100, 7))


def test_a_random_pointer_is_right_by_the_stated_chance():
    generator = torch.Generator().manual_seed(1)
    for task, places in ((Sorting(5), 5), (ConvexHull(5), 6)):
        targets = task.batch(4000, 0).targets
        guess = torch.randint(places, targets.shape, generator=generator)
        asked = targets != IGNORE
        assert abs((guess == targets)[asked].float().mean() - task.chance) < 0.015
    whole = torch.rand(4000, 3, generator=generator).argsort(1) == Sorting(3).batch(4000, 0)[1]
    assert abs(whole.all(1).float().mean() - Sorting(3).chance_whole) < 0.02


TASK = SpanAnswering()


def facts_of(context):
    """(entity, attribute, first place, last place) of each fact, read from the tokens."""
    heads = [place for place, token in enumerate(context) if token < TASK.first_attribute]
    end = context.index(TASK.padding) if TASK.padding in context else len(context)
    ends = [*heads[1:], end]
    return [(context[h], context[h + 1], h + 2, e - 1) for h, e in zip(heads, ends, strict=True)]


def named_in(question):
    entity = next(token for token in question if token < TASK.first_attribute)
    attribute = next(t for t in question if TASK.first_attribute <= t < TASK.first_word)
    return entity, attribute


def read_spans(pick):
    """Share of right spans when `pick(facts, entity, attribute)` chooses the fact."""
    batch = TASK.batch(600, 0)
    right = 0
    for context, question, *span in zip(*(field.tolist() for field in batch), strict=True):
        right += list(pick(facts_of(context), *named_in(question))[2:]) == span
    return right / 600


def test_a_reader_of_entity_and_attribute_finds_every_span():
    share = read_spans(lambda facts, e, a: next(fact for fact in facts if fact[:2] == (e, a)))
    assert share == TASK.optimum


def test_readers_of_less_get_the_stated_chances():
    anything = read_spans(lambda facts, e, a: facts[0])
    by_entity = read_spans(lambda facts, e, a: next(fact for fact in facts if fact[0] == e))
    assert abs(anything - TASK.chance) < 0.05
    assert abs(by_entity - TASK.entity_only) < 0.06


def test_spans_hold_words_only_and_every_length_occurs():
    context, question, start, end = TASK.batch(300, 0)
    assert context.shape == (300, TASK.context_length)
    assert question.shape == (300, 2 + TASK.fillers)
    assert set((end - start + 1).tolist()) == {1, 2, 3}
    place = torch.arange(context.shape[1])
    inside = (place >= start[:, None]) & (place <= end[:, None])
    words = context[inside]
    assert ((words >= TASK.first_word) & (words < TASK.filler)).all()
    assert question.max() < TASK.padding == context.max() == TASK.vocabulary - 1


@pytest.mark.parametrize("task", [Sorting(), ConvexHull(), SpanAnswering()])
def test_a_seed_fixes_the_questions(task):
    one, same, other = task.batch(5, 1), task.batch(5, 1), task.batch(5, 2)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0], other[0])


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="count must be at least 3 for a hull, got 2"):
        ConvexHull(2)
    with pytest.raises(ValueError, match="facts must be even"):
        SpanAnswering(facts=5)
