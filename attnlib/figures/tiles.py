"""The walk of a tiled read, step by step: what is read, what is masked, what is written."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from attnlib.figures.style import INK, QUIET_INK, STEP_COLORS, WIDTH, styled
from attnlib.figures.supports import visible_pairs
from attnlib.read.tiles import PARTIAL, TileStep, tile_table, tile_walk

NOW, KEPT, DONE = STEP_COLORS["read"], STEP_COLORS["memory"], STEP_COLORS["support"]


@styled
def tile_picture(
    support: Callable,
    queries: int,
    keys: int,
    *,
    tile: tuple[int, int],
    step: int,
    query_offset: int = 0,
) -> tuple[Figure, str]:
    """Draw step number `step` of the walk over the tiles, from 1; returns (figure, sentence).

    The large square is the scores, which never exist as a whole. Above it lie keys and values, at
    the left the queries, at the right the reads. Marked are the blocks that this step moves, the
    running sums that the program holds, the tiles that are behind it, and, inside the present tile,
    the pairs that are masked.
    """
    table = tile_table(support, queries, keys, tile=tile, query_offset=query_offset)
    walk = tile_walk(table)
    seen = visible_pairs(support, queries, keys, query_offset=query_offset)
    if not 1 <= step <= len(walk):
        raise ValueError(f"step: got {step}, expected 1 to {len(walk)}")
    now = walk[step - 1]
    figure, axes = plt.subplots(figsize=(WIDTH * 0.62, WIDTH * 0.57 * queries / keys))
    axes.set_aspect("equal")
    axes.set_xlim(-4.2, keys + 4.2)
    axes.set_ylim(queries + 0.7, -4.0)
    axes.axis("off")

    visited = walk[:step]
    for past in visited[:-1]:
        if past.key_block is not None:
            _tile(axes, past, tile, queries, keys, color=DONE, alpha=0.28)
            _masked(axes, past, tile, seen)
    for query_block, row in enumerate(table.tolist()):
        for key_block, state in enumerate(row):
            place = TileStep(query_block, key_block, state)
            _tile(axes, place, tile, queries, keys, color="none", edge=QUIET_INK)
            if state == 0:
                _cross(axes, place, tile, queries, keys)
    _strips(axes, now, visited, tile, queries, keys)
    if now.key_block is not None:
        _tile(axes, now, tile, queries, keys, color=NOW, alpha=0.55)
        _masked(axes, now, tile, seen)
        _tile(axes, now, tile, queries, keys, color="none", edge=INK)
    words = sentence(now, step, len(walk), tile, queries, keys)
    axes.set_title(words, fontsize=8.5, loc="center")
    return figure, words


def tile_steps(
    support: Callable, queries: int, keys: int, *, tile: tuple[int, int], query_offset: int = 0
) -> Sequence[int]:
    """The numbers of the steps, from 1, for the slider of `frames`."""
    table = tile_table(support, queries, keys, tile=tile, query_offset=query_offset)
    return range(1, len(tile_walk(table)) + 1)


def sentence(
    now: TileStep, step: int, count: int, tile: tuple[int, int], queries: int, keys: int
) -> str:
    """What one step does, in words."""
    rows = _span(now.query_block, tile[0], queries)
    start = f"step {step} of {count}: "
    if now.key_block is None:
        return start + f"divide, write reads {rows}"
    columns = _span(now.key_block, tile[1], keys)
    how = ", mask a part" if now.state == PARTIAL else ""
    return start + f"queries {rows}, fold keys {columns}{how}"


def _span(block: int, size: int, length: int) -> str:
    return f"{block * size} to {min((block + 1) * size, length) - 1}"


def _strips(axes: Axes, now: TileStep, visited: list[TileStep], tile, queries: int, keys: int):
    """Queries at the left, keys and values above, reads at the right."""
    top = now.query_block * tile[0]
    height = min(tile[0], queries - top)
    written = max(
        (
            min((past.query_block + 1) * tile[0], queries)
            for past in visited
            if past.key_block is None
        ),
        default=0,
    )
    for x, name in ((-2.4, "queries"), (keys + 1.2, "reads")):
        axes.add_patch(Rectangle((x, 0), 1.2, queries, facecolor="none", edgecolor=QUIET_INK))
        axes.text(x + 0.6, queries + 0.35, name, ha="center", va="top")
    axes.add_patch(Rectangle((-2.4, top), 1.2, height, facecolor=KEPT, edgecolor=INK))
    if now.key_block is None:
        axes.add_patch(Rectangle((keys + 1.2, 0), 1.2, top, facecolor=DONE, alpha=0.4))
        axes.add_patch(Rectangle((keys + 1.2, top), 1.2, height, facecolor=NOW, edgecolor=INK))
    else:
        axes.add_patch(Rectangle((keys + 1.2, 0), 1.2, written, facecolor=DONE, alpha=0.4))
        axes.add_patch(
            Rectangle((keys + 1.2, top), 1.2, height, facecolor=KEPT, alpha=0.5, hatch="..")
        )
    for y, name in ((-3.0, "keys"), (-1.6, "values")):
        axes.add_patch(Rectangle((0, y), keys, 1.0, facecolor="none", edgecolor=QUIET_INK))
        axes.text(-0.3, y + 0.5, name, ha="right", va="center")
        if now.key_block is not None:
            left = now.key_block * tile[1]
            width = min(tile[1], keys - left)
            axes.add_patch(Rectangle((left, y), width, 1.0, facecolor=NOW, edgecolor=INK))


def _tile(axes: Axes, place: TileStep, tile, queries: int, keys: int, *, color, edge="none", **how):
    left, top = place.key_block * tile[1], place.query_block * tile[0]
    width, height = min(tile[1], keys - left), min(tile[0], queries - top)
    axes.add_patch(
        Rectangle((left, top), width, height, facecolor=color, edgecolor="none", **how)
        if edge == "none"
        else Rectangle((left, top), width, height, facecolor=color, edgecolor=edge, lw=0.8, **how)
    )


def _cross(axes: Axes, place: TileStep, tile, queries: int, keys: int) -> None:
    """A tile that is never visited."""
    left, top = place.key_block * tile[1], place.query_block * tile[0]
    right, bottom = min(left + tile[1], keys), min(top + tile[0], queries)
    for ys in ((top, bottom), (bottom, top)):
        axes.plot((left, right), ys, color=QUIET_INK, linewidth=0.5, linestyle="-")


def _masked(axes: Axes, place: TileStep, tile, seen: np.ndarray) -> None:
    """The pairs of a tile that are outside the support: computed and thrown away."""
    left, top = place.key_block * tile[1], place.query_block * tile[0]
    part = seen[top : top + tile[0], left : left + tile[1]]
    for row, column in np.argwhere(~part):
        axes.add_patch(
            Rectangle((left + column, top + row), 1, 1, facecolor="white", edgecolor=QUIET_INK,
                      linewidth=0, hatch="////")
        )  # fmt: skip
