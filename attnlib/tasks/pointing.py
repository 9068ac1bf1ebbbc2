"""Pointing: the answer is a sequence of places in the input (Pointer Networks' tasks)."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attnlib.tasks.task import IGNORE, Task, check_sizes, generator_from


class PointingBatch(NamedTuple):
    """Points, and the places to point to one after the other."""

    inputs: Float[Tensor, "batch n features"]
    targets: Int[Tensor, "batch answers"]


@dataclass(frozen=True)
class Sorting(Task):
    """n scalars from [0, 1): point to the smallest, then to the next, until the largest.

    Shapes: inputs (batch, n, 1), targets (batch, n), a permutation in each row.
    Source: Vinyals et al. (2016, "Order matters") sort numbers with a pointer network.
    """

    count: int = 8

    def __post_init__(self):
        check_sizes(count=self.count)

    @property
    def chance(self) -> float:
        """Accuracy of one pointer at random."""
        return 1 / self.count

    @property
    def chance_whole(self) -> float:
        """Share of rows that are right as a whole for a random permutation."""
        return 1 / math.factorial(self.count)

    @property
    def optimum(self) -> float:
        """Accuracy of sorting."""
        return 1.0

    def batch(self, size: int, seed: int | torch.Generator) -> PointingBatch:
        """Rows of scalars with their order."""
        inputs = torch.rand(size, self.count, 1, generator=generator_from(seed))
        return PointingBatch(inputs, inputs[..., 0].argsort(-1))


@dataclass(frozen=True)
class ConvexHull(Task):
    """n points in the unit square: point to the corners of their convex hull, one by one.

    Counterclockwise from the corner that comes first in the input. Then the answer is `stop`,
    which is n, one place after the last point; what follows is IGNORE.
    Shapes: inputs (batch, n, 2), targets (batch, n + 1).
    Source: Vinyals et al. (2015), section 4.1, and its convention for the order.
    """

    count: int = 8

    def __post_init__(self):
        check_sizes(count=self.count)
        if self.count < 3:
            raise ValueError(f"count must be at least 3 for a hull, got {self.count}")

    @property
    def stop(self) -> int:
        """The place that stands for the end of the answer."""
        return self.count

    @property
    def chance(self) -> float:
        """Accuracy of one pointer at random among the points and the stop."""
        return 1 / (self.count + 1)

    @property
    def optimum(self) -> float:
        """Accuracy of an exact algorithm."""
        return 1.0

    def batch(self, size: int, seed: int | torch.Generator) -> PointingBatch:
        """Sets of points with their hulls."""
        inputs = torch.rand(size, self.count, 2, generator=generator_from(seed))
        targets = torch.full((size, self.count + 1), IGNORE)
        for row, points in enumerate(inputs.tolist()):
            hull = [*convex_hull(points), self.stop]
            targets[row, : len(hull)] = torch.tensor(hull)
        return PointingBatch(inputs, targets)


def convex_hull(points: list[list[float]]) -> list[int]:
    """The places of the corners, counterclockwise, from the lowest place on.

    Two chains over the points from left to right, each dropping what does not turn left.
    Cost: n log n for the sorting. Source: Andrew (1979).
    """
    order = sorted(range(len(points)), key=lambda place: points[place])

    def chain(places):
        kept = []
        for place in places:
            while len(kept) > 1 and _turn(points, kept[-2], kept[-1], place) <= 0:
                kept.pop()
            kept.append(place)
        return kept[:-1]

    hull = chain(order) + chain(reversed(order))
    start = hull.index(min(hull))
    return hull[start:] + hull[:start]


def polygon_area(points: Float[Tensor, "n 2"], corners: list[int]) -> float:
    """The area of a polygon, positive if its corners run counterclockwise (shoelace formula)."""
    x, y = points[corners].double().T
    return float((x * y.roll(-1) - x.roll(-1) * y).sum() / 2)


def _turn(points: list[list[float]], a: int, b: int, c: int) -> float:
    """Twice the area of the triangle a b c: positive for a turn to the left at b."""
    (ax, ay), (bx, by), (cx, cy) = points[a], points[b], points[c]
    return (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
