"""A read that is not finished: what a part of the keys knows about the whole answer.

A softmax read is a ratio of two sums. For a part of the keys we keep the highest score, the sum of
weights relative to it and the sum of weighted values relative to it. Two such parts merge into one,
in any order and grouping, so keys may be split over time, over chunks and over machines.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class PartialRead(NamedTuple):
    """Highest score m, total = sum_j e^{s_j - m}, read = sum_j e^{s_j - m} v_j."""

    max: Float[Tensor, "*batch N 1"]
    total: Float[Tensor, "*batch N 1"]
    read: Float[Tensor, "*batch N E"]


def empty_read(query: Float[Tensor, "*batch N D"], width: int) -> PartialRead:
    """The read of no keys at all: the neutral element of `merge`."""
    total = query.new_zeros(*query.shape[:-1], 1)
    return PartialRead(
        torch.full_like(total, -torch.inf), total, query.new_zeros(*query.shape[:-1], width)
    )


def partial_read(
    scores: Float[Tensor, "*batch N M"],
    value: Float[Tensor, "*batch M E"],
    allowed: Bool[Tensor, "..."] | None = None,
) -> PartialRead:
    """Read one part of the keys (M at least 1); `allowed` broadcasts to the scores."""
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    # The maximum cancels in the finished read, so no gradient need flow through it.
    highest = scores.detach().amax(-1, keepdim=True)
    weights = torch.exp(scores - finite(highest))
    return PartialRead(highest, weights.sum(-1, keepdim=True), weights @ value)


def merge(a: PartialRead, b: PartialRead) -> PartialRead:
    """Both parts as one: bring the two sums to the common maximum and add.

    Associative and commutative up to rounding, with `empty_read` as neutral element.
    Source: Milakov and Gimelshein (2018), eq. 4; with reads, Rabe and Staats (2021), section 2.
    """
    highest = torch.maximum(a.max, b.max)
    scale_a = torch.exp(a.max - finite(highest))
    scale_b = torch.exp(b.max - finite(highest))
    return PartialRead(
        highest,
        a.total * scale_a + b.total * scale_b,
        a.read * scale_a + b.read * scale_b,
    )


def finish(part: PartialRead) -> Float[Tensor, "*batch N E"]:
    """The read of everything merged so far; zero where no key was allowed."""
    return part.read / part.total.masked_fill(part.total == 0, 1.0)


def finite(highest: Tensor) -> Tensor:
    """The maximum to subtract: minus infinity (a part without keys) becomes zero."""
    return highest.masked_fill(highest == -torch.inf, 0.0)
