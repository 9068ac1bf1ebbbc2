"""A roofline: pieces of work under the roof of a chip."""

from collections.abc import Mapping

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from attnlib.figures.style import LINE_COLORS, LINE_MARKERS, QUIET_INK, WIDTH, styled
from attnlib.roofline import Chip, Cost


@styled
def roofline(works: Mapping[str, Cost], chip: Chip) -> Figure:
    """Draw {name: Cost} at its intensity, on the roof min(rate, intensity * bandwidth) of a chip.

    A point on the slope waits for bytes, a point on the flat part for operations. The points are
    bounds: what a chip can reach at most. A dashed line marks the balance, where the slope ends.
    Returns the figure.
    """
    if not works:
        raise ValueError("works: it is empty, expected {name: Cost}")
    if len(works) > len(LINE_COLORS):
        raise ValueError(f"works: got {len(works)}, expected at most {len(LINE_COLORS)}")
    intensities = [work.intensity for work in works.values()]
    left = min(*intensities, chip.balance) / (30 if min(intensities) > chip.balance / 4 else 3)
    right = max(*intensities, chip.balance) * 8
    figure, axes = plt.subplots(figsize=(WIDTH, 3.3))
    axes.set(xscale="log", yscale="log", xlim=(left, right))
    axes.set(xlabel="operations for each byte", ylabel="trillion operations a second")
    x = np.geomspace(left, right, 200)
    roof = np.minimum(chip.operations, x * chip.bytes) / 1e12
    axes.plot(x, roof, color=QUIET_INK, linestyle="-", linewidth=1.2)
    top, bottom = chip.operations / 1e12, roof[0] / 2
    axes.set_ylim(bottom, 2 * top)
    axes.plot(
        [chip.balance] * 2, [bottom, top], color=QUIET_INK, linewidth=0.7, linestyle=(0, (4, 3))
    )
    for words, corner, shift, side in (
        (chip.name, (right, top), (0, 6), "right"),
        (f"balance {chip.balance:.0f}", (chip.balance, bottom), (5, 5), "left"),
    ):
        axes.annotate(words, corner, shift, textcoords="offset points", ha=side, color=QUIET_INK)
    for (name, work), color, marker in zip(works.items(), LINE_COLORS, LINE_MARKERS, strict=False):
        height = work.attainable(chip) / 1e12
        axes.plot([work.intensity], [height], marker=marker, color=color, markersize=7)
        near_corner = work.intensity > chip.balance / 4  # right of it runs the balance line
        axes.annotate(
            name,
            (work.intensity, height),
            (-8, 8) if near_corner else (10, -10),
            textcoords="offset points",
            ha="right" if near_corner else "left",
            va="center",
        )
    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        powers = [10.0**k for k in range(-3, 7) if low <= 10.0**k <= high]
        axis.set_major_locator(FixedLocator(powers))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:g}"))
    return figure
