"""Dots for each seed of each variant: what a few runs measured, side by side."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from attnlib.figures.style import INK, LINE_COLORS, LINE_MARKERS, QUIET_INK, WIDTH, styled


@styled
def points(
    series: Mapping[str, Sequence[Sequence[float]]],
    *,
    labels: Sequence[str],
    ylabel: str,
    xlabel: str = "variant",
    ylimits: tuple[float, float] | None = None,
    reference: Mapping[str, float] | None = None,
) -> Figure:
    """Draw {name: runs}, where runs[i] holds one number for each seed of the variant labels[i].

    Each run is a dot, the mean of a variant a short line. Several series stand beside each other
    within a variant and are told apart by shape as well as color. `reference` draws thin
    horizontal lines {name: height}. Returns the figure.
    """
    if not series:
        raise ValueError("series: it is empty, expected {name: runs}")
    if len(series) > len(LINE_COLORS):
        raise ValueError(f"series: got {len(series)}, expected at most {len(LINE_COLORS)}")
    for name, runs in series.items():
        if len(runs) != len(labels):
            raise ValueError(f"series[{name!r}]: got {len(runs)} variants, expected {len(labels)}")
    figure, axes = plt.subplots(figsize=(WIDTH, 3.0))
    step = 0.7 / len(series)
    for number, (name, runs) in enumerate(series.items()):
        color = LINE_COLORS[number]
        for place, values in enumerate(runs):
            x = place + (number - (len(series) - 1) / 2) * step
            spots = x + np.linspace(-0.12, 0.12, len(values)) * step
            axes.plot(
                spots, values, LINE_MARKERS[number], color=color, markersize=4.5, alpha=0.8,
                label=name if place == 0 else None,
            )  # fmt: skip
            axes.hlines(np.mean(values), x - 0.3 * step, x + 0.3 * step, color=INK, linewidth=1.2)
    for name, height in (reference or {}).items():
        axes.axhline(height, color=QUIET_INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        axes.annotate(
            name, (1, height), (6, 0), xycoords=("axes fraction", "data"),
            textcoords="offset points", va="center", color=QUIET_INK,
        )  # fmt: skip
    axes.set_xticks(range(len(labels)), labels)
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(-0.5, len(labels) - 0.5))
    if ylimits is not None:
        axes.set_ylim(*ylimits)
    if len(series) > 1:
        axes.legend(ncols=len(series), loc="lower left", bbox_to_anchor=(0, 1))
    return figure
