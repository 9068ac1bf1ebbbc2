"""Labels at the ends of lines, in place of a legend."""

import numpy as np
from matplotlib.axes import Axes

from attnlib.figures.style import text_color

LINE_HEIGHT = 12.5  # points from one label to the next


def label_lines(axes: Axes, labels: list[str], ends: list[float], colors: list[str]) -> None:
    """Write each label to the right of the axes, at the height where its line ends.

    Labels that would overlap move apart. Call it last, when limits and scales are settled.
    """
    axes.figure.draw_without_rendering()
    box = axes.get_window_extent()
    points_high = box.height * 72 / axes.figure.dpi
    in_pixels = axes.transData.transform([(axes.get_xlim()[0], end) for end in ends])[:, 1]
    wanted = (in_pixels - box.y0) / box.height * points_high
    heights = [label.count("\n") * LINE_HEIGHT + LINE_HEIGHT for label in labels]
    for label, y, color in zip(labels, _apart(wanted, heights), colors, strict=True):
        axes.annotate(
            label, (1, y / points_high), (6, 0), xycoords="axes fraction",
            textcoords="offset points", va="center", color=text_color(color), linespacing=1.2,
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
