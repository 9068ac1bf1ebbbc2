"""The scores of the study of chapter 1.1: a polygon is right, simple, and as large as it is."""

import pytest
import torch
from page import ROOT

from attnlib.study import load_code
from attnlib.tasks import IGNORE, ConvexHull

STUDY = load_code(ROOT / "chapters" / "1-foundations" / "soft-lookup.study.py")

# A square of side 2 with a point in it: the hull is 0 1 2 3.
SQUARE = torch.tensor([[0.0, 0.0], [2.0, 0.0], [2.0, 2.0], [0.0, 2.0], [1.0, 0.5]])
STOP = 5
TARGET = torch.tensor([0, 1, 2, 3, STOP, IGNORE])


def score(*answer):
    """(right, simple, area) of an answer of six steps, filled up with stops."""
    answer = torch.tensor([*answer, *[STOP] * (6 - len(answer))])
    return STUDY.hull_score(SQUARE, TARGET, answer)


def simple(*corners):
    return STUDY.is_simple(SQUARE, list(corners))


@pytest.mark.parametrize("first", range(4))
def test_the_right_hull_is_right_from_whichever_corner_it_starts(first):
    corners = [0, 1, 2, 3]
    assert score(*corners[first:], *corners[:first]) == (True, True, 1.0)


def test_the_right_hull_of_random_points_has_all_of_the_area():
    items, targets = ConvexHull(9).batch(50, 0)
    for points, target in zip(items, targets, strict=True):
        answer = target.where(target != IGNORE, torch.tensor(4))  # after the stop: anything
        assert STUDY.hull_score(points, target, answer) == (True, True, pytest.approx(1))


def test_clockwise_is_not_the_right_order_but_covers_the_same_area():
    assert score(3, 2, 1, 0) == (False, True, 1.0)


def test_a_part_of_the_hull_has_its_part_of_the_area():
    assert score(0, 1, 2) == (False, True, 0.5)
    assert score(0, 1, 4) == (False, True, 0.125)
    assert score(0, 1, 2, 3, 4) == (False, True, 0.75)  # a dent of height 1 at the left


def test_a_polygon_that_crosses_itself_is_not_simple_and_has_no_area():
    assert score(0, 2, 1, 3) == (False, False, 0.0)
    assert not simple(0, 1, 3, 2)
    assert simple(0, 1, 2, 3) and simple(3, 2, 1, 0)


def test_crossings_are_found_whichever_corner_comes_first():
    # Five points on a circle: the pentagon is simple, the star is not.
    angles = torch.arange(5) * (2 * torch.pi / 5)
    points = torch.stack((angles.cos(), angles.sin()), dim=-1)
    for turn in range(5):
        assert STUDY.is_simple(points, [(k + turn) % 5 for k in range(5)])
        assert not STUDY.is_simple(points, [(2 * k + turn) % 5 for k in range(5)])
        assert not STUDY.is_simple(points, [(k + turn) % 5 for k in (0, 1, 3, 2, 4)])


def crossing(p, q, r, s):
    """Whether two segments cross, by solving for the place where their lines meet."""
    matrix = torch.stack((q - p, r - s), dim=-1)
    along = torch.linalg.solve(matrix, r - p)
    return bool(((along > 0) & (along < 1)).all())


def test_a_search_by_another_formula_agrees_on_random_polygons():
    generator = torch.Generator().manual_seed(0)
    seen = []
    for _ in range(200):
        points = torch.rand(6, 2, generator=generator)
        corners = points.double()
        sides = [(corners[k], corners[(k + 1) % 6]) for k in range(6)]
        pairs = [(i, j) for i in range(6) for j in range(i + 2, 6) if j - i < 5]
        wanted = not any(crossing(*sides[i], *sides[j]) for i, j in pairs)
        assert STUDY.is_simple(points, list(range(6))) == wanted
        seen.append(wanted)
    assert 10 < sum(seen) < 190


@pytest.mark.parametrize("corners", [(), (0,), (0, 1), (0, 1, 0), (0, 1, 2, 3, 0), (0, 0, 1, 2)])
def test_few_or_repeated_corners_are_no_polygon(corners):
    assert not simple(*corners)
    assert score(*corners) == (False, False, 0.0)


def test_what_follows_the_stop_does_not_count():
    assert score(0, 1, 2, 3, STOP, 4) == (True, True, 1.0)
    assert score(STOP, 0, 1, 2, 3, STOP) == (False, False, 0.0)


def test_an_answer_without_a_stop_is_too_long():
    assert score(0, 1, 2, 3, 4, 4) == (False, False, 0.0)
    assert score(0, 1, 2, 3, 3, 3) == (False, False, 0.0)


def test_a_hull_of_all_points_that_is_never_ended_is_not_right():
    points, target = SQUARE[:4], torch.tensor([0, 1, 2, 3, 4])
    assert STUDY.hull_score(points, target, torch.tensor([0, 1, 2, 3, 4]))[0]
    assert not STUDY.hull_score(points, target, torch.tensor([0, 1, 2, 3, 0]))[0]
