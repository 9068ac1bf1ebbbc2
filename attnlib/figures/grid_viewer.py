"""The grid viewer: choose a place of a line, an image or a video, and see which keys it reads."""

import base64
import html
import json
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from attnlib.figures.show import check_texts, display_html, image_html, plain_text
from attnlib.figures.stored import palette_png
from attnlib.figures.style import INK, QUIET_INK, STEP_COLORS, WIDTH, styled
from attnlib.figures.supports import Support, visible_pairs

MOST_BYTES = 200_000
MOST_PLACES = 1024
STILL_PIXELS_PER_INCH = 100
AXES = {1: ("place",), 2: ("row", "column"), 3: ("frame", "row", "column")}

Table = torch.Tensor | np.ndarray


def grid_viewer(
    supports: Support | Table | Mapping[str, Support | Table],
    grid: Sequence[int],
    *,
    caption: str,
    alt: str,
    start: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Show which keys each place of a grid reads; a reader chooses the place.

    `supports` is one support or several by title: a predicate (b, h, q_idx, kv_idx) -> bool, or a
    bool table (N, N) whose row i marks the keys of query i. Places are numbered row by row, frame
    by frame. `grid` is (N,), (rows, columns) or (frames, rows, columns), N at most 1024.

    A click on a place, or the arrow keys, choose the query; its keys are lit. The table of all
    pairs stands beside the grid, with the query's row framed. Buttons switch the support. It opens
    at the place `start`, unless given the middle. With `names`, one word for each place, the words
    that are read are said. Where scripts are not allowed a picture of that query stands instead,
    one panel a support.

    Raises ValueError for a wrong shape, a place outside the grid, names that are too many or too
    few, empty texts or more than 200 KB.
    """
    markup = grid_viewer_html(supports, grid, caption=caption, alt=alt, start=start, names=names)
    display_html(markup, plain_text(caption, alt))


def grid_viewer_html(
    supports: Support | Table | Mapping[str, Support | Table],
    grid: Sequence[int],
    *,
    caption: str,
    alt: str,
    start: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
) -> str:
    """The grid viewer as one HTML element; see `grid_viewer`."""
    check_texts(caption, alt)
    grid = _checked_grid(grid)
    query = _checked_start(grid, start)
    if names is not None and len(names) != prod(grid):
        raise ValueError(f"names: got {len(names)} words, expected one for each of {prod(grid)}")
    tables = _tables(supports, prod(grid))
    still = still_picture(tables, grid, query)
    picture = image_html(
        palette_png(still, dpi=STILL_PIXELS_PER_INCH, colors=64), alt, dpi=STILL_PIXELS_PER_INCH
    )
    plt.close(still)
    bits = base64.b64encode(np.packbits(np.stack(list(tables.values())))).decode("ascii")
    facts = {"grid": grid, "query": query, "titles": list(tables), "words": list(names or [])}
    shape = html.escape(json.dumps(facts))
    here = Path(__file__)
    css, script = (here.with_suffix(kind).read_text(encoding="utf-8") for kind in (".css", ".js"))
    markup = (
        f'<figure class="attn-grid mathjax_ignore tex2jax_ignore" data-shape="{shape}" '
        f'data-bits="{bits}"><style>{css}</style><div class="attn-still">{picture}</div>'
        f'<div class="attn-live">{_buttons(tables)}<div class="attn-parts">'
        '<div class="attn-places" role="group" tabindex="0" '
        'aria-label="grid of places: the arrow keys choose the query"></div>'
        '<div class="attn-pairs" aria-hidden="true"><div>rows: queries, columns: keys</div>'
        '<div class="attn-frame"><canvas></canvas><div class="attn-row"></div></div></div></div>'
        '<p class="attn-said" aria-live="polite"></p></div>'
        f"<figcaption>{caption}</figcaption></figure><script>{script}</script>"
    )
    if len(markup) > MOST_BYTES:
        raise ValueError(
            f"supports: the viewer takes {len(markup) // 1000} KB, expected at most "
            f"{MOST_BYTES // 1000} KB; show fewer supports or a smaller grid"
        )
    return markup


@styled
def still_picture(tables: Mapping[str, np.ndarray], grid: tuple[int, ...], query: int) -> Figure:
    """One panel a support: the keys of one query, frames of a video side by side."""
    rows, columns = laid_out(grid)[0].shape
    cell = min(0.16, (WIDTH - 0.4) / (columns + 2))  # two cells are the gap to the next panel
    letters = max(len(title) for title in tables)
    panel = max((columns + 2) * cell, 0.085 * letters + 0.2, 1.3)
    in_a_row = max(1, min(len(tables), int((WIDTH - 0.2) / panel)))
    lines = -(-len(tables) // in_a_row)
    size = (min(WIDTH, in_a_row * panel + 0.2), lines * (rows * cell + 0.6))
    figure, panels = plt.subplots(lines, in_a_row, squeeze=False, figsize=size)
    for axes in panels.flat[len(tables) :]:
        axes.set_axis_off()
    for axes, (title, table) in zip(panels.flat, tables.items(), strict=False):
        _draw(axes, table[query], grid, query, title)
    return figure


def laid_out(grid: tuple[int, ...]) -> tuple[np.ndarray, list[int]]:
    """Places on paper (-1: nothing), frames side by side, and the columns where frames begin.

    A line longer than 32 places is broken into rows of equal length, read as text is.
    """
    if len(grid) == 1:
        lines = -(-grid[0] // 32)
        places = np.full(lines * -(-grid[0] // lines), -1)
        places[: grid[0]] = np.arange(grid[0])
        return places.reshape(lines, -1), [0]
    frames = np.arange(prod(grid)).reshape(-1, *grid[-2:])
    gap = np.full((grid[-2], 1), -1)
    apart = [part for frame in frames for part in (frame, gap)][:-1]
    return np.concatenate(apart, axis=1), [f * (grid[-1] + 1) for f in range(len(frames))]


def _draw(axes: Axes, seen: np.ndarray, grid: tuple[int, ...], query: int, title: str) -> None:
    places, begins = laid_out(grid)
    for (row, column), place in np.ndenumerate(places):
        if place >= 0:
            color = STEP_COLORS["support"] if seen[place] else "none"
            box = (column, row), 1, 1
            axes.add_patch(Rectangle(*box, facecolor=color, edgecolor=QUIET_INK, linewidth=0.3))
        if place == query:
            axes.add_patch(Rectangle(*box, fill=False, edgecolor=INK, linewidth=1.8, zorder=3))
    for frame, begin in enumerate(begins if len(grid) == 3 else []):
        axes.text(begin, places.shape[0] + 0.2, f"{frame}", va="top", fontsize=8)
    head = f"{title}\n" if title else ""
    axes.set_title(f"{head}{seen.sum()} of {seen.size} keys", fontsize=8.5)
    axes.set(xlim=(-0.2, places.shape[1] + 0.2), ylim=(places.shape[0] + 0.2, -0.2))
    axes.set_aspect("equal", anchor="NW")
    axes.set_axis_off()


def _tables(supports, places: int) -> dict[str, np.ndarray]:
    """Every support as a bool table (N, N), by title."""
    supports = supports if isinstance(supports, Mapping) else {"": supports}
    if not supports:
        raise ValueError("supports: it is empty, expected {title: predicate or bool table}")
    tables = {}
    for title, support in supports.items():
        if isinstance(support, Callable) and not isinstance(support, torch.Tensor | np.ndarray):
            tables[title] = visible_pairs(support, places, places)
            continue
        table = np.asarray(support)
        if table.dtype != bool or table.shape != (places, places):
            raise ValueError(
                f"supports: {title!r} must be a predicate or a bool table ({places}, {places}), "
                f"got {table.dtype} {table.shape}"
            )
        tables[title] = table
    return tables


def _checked_grid(grid: Sequence[int]) -> tuple[int, ...]:
    grid = tuple(int(size) for size in grid)
    if len(grid) not in AXES or min(grid) < 1 or prod(grid) > MOST_PLACES:
        raise ValueError(
            f"grid: got {grid}, expected one to three sizes of at least 1, "
            f"{MOST_PLACES} places at most"
        )
    return grid


def _checked_start(grid: tuple[int, ...], start: Sequence[int] | None) -> int:
    """The number of the place where the viewer opens."""
    start = tuple(size // 2 for size in grid) if start is None else tuple(start)
    if len(start) != len(grid) or not all(0 <= at < n for at, n in zip(start, grid, strict=True)):
        raise ValueError(f"start: got {start}, expected {', '.join(AXES[len(grid)])} below {grid}")
    return int(np.ravel_multi_index(start, grid))


def _buttons(tables: Mapping[str, np.ndarray]) -> str:
    if len(tables) == 1:
        return ""
    buttons = "".join(f'<button type="button">{html.escape(title)}</button>' for title in tables)
    return f'<div class="attn-choices" role="group" aria-label="supports">{buttons}</div>'
