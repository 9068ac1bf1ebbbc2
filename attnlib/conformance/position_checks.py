"""Checks of a relative encoding of positions, such as RoPE."""

from collections.abc import Callable

import torch
from torch import Tensor

from attnlib.conformance.report import BROKEN, HOLDS, Broken, ConformanceError, Report, Row
from attnlib.conformance.trial import EXACT

Rotate = Callable[[Tensor, Tensor], Tensor]


def check_positions(rotate: Rotate) -> Report:
    """Hold `rotate(x, positions)` to what a relative encoding promises.

    x has shape (..., length, D), positions (length,). Returns the Report; raises ConformanceError.
    """
    rows = []
    for promise, run in CHECKS.items():
        try:
            run(rotate)
            rows.append(Row(promise, HOLDS, run.__doc__))
        except Broken as broken:
            rows.append(Row(promise, BROKEN, str(broken)))
    report = Report(rotate.__name__, tuple(rows))
    if report.broken:
        raise ConformanceError(report)
    return report


def check_shape(rotate: Rotate) -> None:
    """The shape and the dtype stay as they are."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x = torch.ones(2, 3, 5, 6, dtype=dtype)
        got = rotate(x, torch.arange(5))
        if got.shape != x.shape or got.dtype != dtype:
            raise Broken(f"x {tuple(x.shape)} of {dtype} becomes {tuple(got.shape)} of {got.dtype}")


def check_origin(rotate: Rotate) -> None:
    """Position 0 changes nothing."""
    x = _vectors(1)
    if (rotate(x, torch.zeros(1, dtype=torch.long)) - x).abs().max() > EXACT:
        raise Broken("a vector at position 0 is changed")


def check_length_of_vectors(rotate: Rotate) -> None:
    """No vector changes its length."""
    x = _vectors(9)
    change = (rotate(x, torch.arange(9)).norm(dim=-1) - x.norm(dim=-1)).abs()
    if change.max() > EXACT:
        raise Broken(
            f"the vector at position {change.argmax().item()} changes its length by "
            f"{change.max().item():.3f}: this is no rotation"
        )


def check_relative(rotate: Rotate) -> None:
    """The dot product of two vectors depends on the distance of their positions alone."""
    query, key = _vectors(1, seed=1), _vectors(1, seed=2)

    def score(i: int, j: int) -> float:
        return (rotate(query, torch.tensor([i])) * rotate(key, torch.tensor([j]))).sum().item()

    for i, j in ((3, 1), (0, 4), (2, 2)):
        near, far = score(i, j), score(i + 7, j + 7)
        if abs(near - far) > EXACT:
            raise Broken(
                f"positions ({i}, {j}) score {near:.4f} and ({i + 7}, {j + 7}) score {far:.4f}, "
                "though their distance is the same: check which coordinates are paired"
            )


def check_distances_differ(rotate: Rotate) -> None:
    """Different distances give different scores."""
    x = rotate(_vectors(1).expand(5, 6), torch.arange(5))
    if (x @ x[0]).unique().numel() < 5:
        raise Broken("two different distances give the same score: the position does not enter")


def _vectors(length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(length, 6, generator=generator, dtype=torch.float64)


CHECKS = {
    "shape and dtype": check_shape,
    "position 0 changes nothing": check_origin,
    "lengths are kept": check_length_of_vectors,
    "scores depend on i - j": check_relative,
    "distances differ": check_distances_differ,
}
