"""Labels at the ends of lines, in place of a legend."""

import numpy as np
from matplotlib.axes import Axes

from attnlib.figures.style import text_color

LINE_HEIGHT = 12.5  # points from one label to the next


NEAR_THE_EDGE = 0.85  # of the axes: a line that ends left of it has its label at its own end


def label_lines(axes: Axes, labels: list[str], lines: list[tuple], colors: list[str]) -> None:
    """Write each label at the end of its line (x, y): at the right of the axes, at its height.

    The label of a line that ends long before the edge stands at that end, on the side that the line
    leaves free. Labels that would overlap move apart. Call it last, when limits and scales are
    settled.
    """
    axes.figure.draw_without_rendering()
    box = axes.get_window_extent()
    points_high = box.height * 72 / axes.figure.dpi
    ends = axes.transData.transform([(x[-1], y[-1]) for x, y in lines])
    across = (ends[:, 0] - box.x0) / box.width
    wanted = (ends[:, 1] - box.y0) / box.height * points_high
    heights = [label.count("\n") * LINE_HEIGHT + LINE_HEIGHT for label in labels]
    columns: dict[float, list[int]] = {}
    for index, (x, y) in enumerate(lines):
        column = 1.0
        if across[index] < NEAR_THE_EDGE:
            column = round(float(across[index]), 2)
            side = 1 if len(x) < 2 or y[-1] >= y[-2] else -1
            wanted[index] += side * (heights[index] / 2 + 4)
        columns.setdefault(column, []).append(index)
    for members in columns.values():
        wanted[members] = _apart(wanted[members], [heights[index] for index in members])
    for label, place, y, color in zip(labels, across, wanted, colors, strict=True):
        inside = place < NEAR_THE_EDGE
        axes.annotate(
            label, (place if inside else 1, y / points_high), (0 if inside else 6, 0),
            xycoords="axes fraction", textcoords="offset points", va="center",
            ha="right" if inside else "left", color=text_color(color), linespacing=1.2,
        )  # fmt: skip


def _apart(wanted: np.ndarray, heights: list[float]) -> np.ndarray:
    """Positions near the wanted ones, in the same order, at which no two labels overlap.

    Neighbors that overlap join into a group, which stands where its members wish on average.
    """
    order = np.argsort(wanted, kind="stable")
    groups: list[list[int]] = []
    for index in order:
        groups.append([int(index)])
        while len(groups) > 1 and _top(groups[-2], wanted, heights) > _bottom(
            groups[-1], wanted, heights
        ):
            last = groups.pop()
            groups[-1] += last
    placed = np.empty(len(wanted))
    for group in groups:
        y = _bottom(group, wanted, heights)
        for index in group:
            placed[index] = y + heights[index] / 2
            y += heights[index]
    return placed


def _bottom(group: list[int], wanted: np.ndarray, heights: list[float]) -> float:
    middle = float(np.mean([wanted[index] for index in group]))
    return middle - sum(heights[index] for index in group) / 2


def _top(group: list[int], wanted: np.ndarray, heights: list[float]) -> float:
    return _bottom(group, wanted, heights) + sum(heights[index] for index in group)
