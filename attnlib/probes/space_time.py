"""Attention of videos that fades with distance, and how much of it a mask keeps."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.checks import check_count
from attnlib.choices import check_choice
from attnlib.patterns.grid import blocks, coordinates, neighborhood
from attnlib.patterns.space_time import radial
from attnlib.support import Predicate, Support, dense

MASKS = ("radial", "frames", "tube", "blocks")
FRAMES, PLACES = 64, (4, 4)
SPACE, TIME = 0.5, 0.25


def decay_scores(
    frames: int,
    places: tuple[int, int],
    *,
    space: float,
    time: float,
    noise: float = 1.0,
    seed: int = 0,
) -> Float[Tensor, "N N"]:
    """Scores that fall with distance: s = -space |p - p'| - time |t - t'| + noise * normal.

    The softmax of such scores fades exponentially in space and in time. |p - p'| is the straight
    line between two places of a frame. N = frames * rows * columns, frame by frame.
    """
    check_count("frames", frames, least=1)
    generator = torch.Generator().manual_seed(seed)
    grid = (frames, *places)
    number = torch.arange(frames * places[0] * places[1])
    frame, row, column = (at.double() for at in coordinates(number, grid))
    apart = torch.stack([row, column], dim=-1)
    beside = torch.cdist(apart, apart)
    scores = -space * beside - time * (frame[:, None] - frame).abs()
    return scores + noise * torch.randn(scores.shape, generator=generator, dtype=torch.float64)


def kept_mass(scores: Float[Tensor, "N N"], support: Predicate) -> float:
    """The part of a softmax row that lies inside a support, the mean of all rows."""
    weights = torch.softmax(scores, dim=-1)
    return (weights * table_of(support, len(scores))).sum(-1).mean().item()


def mean_keys(support: Predicate, places: int) -> float:
    """How many keys a query has in a support, the mean of all queries."""
    return table_of(support, places).double().sum(-1).mean().item()


def table_of(support: Predicate, places: int) -> Bool[Tensor, "N N"]:
    """The support as a table of queries and keys."""
    return dense(support, places, places)[0, 0]


def rivals(mask: str, frames: int, places: tuple[int, int]) -> list[Predicate]:
    """Supports of one fixed shape and growing size, from few keys to all of them.

    "frames": all places of the nearest frames. "tube": the places at most so far along the rows of
    a frame, as many in every frame. "blocks": all places of a block of 1, 2, 4 ... frames.
    """
    grid, line = (frames, *places), places[0] * places[1]
    if mask == "frames":
        return [neighborhood(grid, (count, *places)) for count in range(1, frames + 1)]
    if mask == "tube":
        return [tube(line, reach) for reach in range(line)]
    divisors = [count for count in range(1, frames + 1) if frames % count == 0]
    return [blocks(grid, (count, *places)) for count in divisors]


def tube(places: int, reach: int) -> Support:
    """The places of all frames that are at most `reach` away in the order of their numbers."""
    return Support(
        lambda b, h, q_idx, kv_idx: (q_idx % places - kv_idx % places).abs() <= reach,
        f"tube({places}, {reach})",
    )


def mass_at_equal_keys(scores: Float[Tensor, "N N"], family: list[Predicate], keys: float) -> float:
    """The mass that supports of growing size keep with so many keys.

    Where none has just as many, it lies on the straight line between the two around it: what is
    kept if a part of the queries uses the smaller one and the rest the larger.
    """
    counts = [mean_keys(support, len(scores)) for support in family]
    if not counts[0] <= keys <= counts[-1]:
        raise ValueError(f"keys must lie between {counts[0]:g} and {counts[-1]:g}, got {keys:g}")
    above = next(number for number, count in enumerate(counts) if count >= keys)
    if counts[above] == keys:
        return kept_mass(scores, family[above])
    share = (keys - counts[above - 1]) / (counts[above] - counts[above - 1])
    low, high = (kept_mass(scores, support) for support in family[above - 1 : above + 1])
    return low + share * (high - low)


def mass_kept_by(mask: str, time: float = TIME, seed: int = 0) -> dict[str, float]:
    """One cell of the study: the mass that a mask keeps, with the keys of the radial mask.

    mask: "radial", without a sink, or the rivals of one fixed shape: "frames", "tube", "blocks".
    time: how much a score falls with each frame of distance; 0: attention fades in space alone.
    Returns {"mass": part of the softmax kept, "keys": keys of a query, "share": keys / N}.
    """
    check_choice("mask", mask, MASKS)
    scores = decay_scores(FRAMES, PLACES, space=SPACE, time=time, seed=seed)
    support = radial(FRAMES, PLACES[0] * PLACES[1], sink_frames=0)
    keys = mean_keys(support, len(scores))
    if mask == "radial":
        mass = kept_mass(scores, support)
    else:
        mass = mass_at_equal_keys(scores, rivals(mask, FRAMES, PLACES), keys)
    return {"mass": mass, "keys": keys, "share": keys / len(scores)}
