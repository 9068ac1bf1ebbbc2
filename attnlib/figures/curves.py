"""Lines: learning curves with a band over seeds, or any y against x."""

from collections.abc import Mapping

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from attnlib.figures.labels import label_lines
from attnlib.figures.style import LINE_COLORS, LINE_DASHES, QUIET_INK, WIDTH, styled

MOST_DIRECT_LABELS = 3


@styled
def curves(
    series: Mapping[str, tuple[object, object]],
    *,
    xlabel: str,
    ylabel: str,
    xscale: str = "linear",
    yscale: str = "linear",
    ylimits: tuple[float, float] | None = None,
    reference: Mapping[str, float] | None = None,
) -> Figure:
    """Draw lines {name: (x, y)}, y of shape (points,) or (seeds, points).

    Where y holds several seeds the line is their mean and the band runs from the smallest to the
    largest. `reference` draws thin horizontal lines {name: height}, such as chance. Up to three
    lines are labeled at their ends, more have a legend. Returns the figure.
    """
    if not series:
        raise ValueError("series: it is empty, expected {name: (x, y)}")
    if len(series) > len(LINE_COLORS):
        raise ValueError(f"series: got {len(series)} lines, expected at most {len(LINE_COLORS)}")
    figure, axes = plt.subplots(figsize=(WIDTH, 3.2))
    axes.set(xlabel=xlabel, ylabel=ylabel, xscale=xscale, yscale=yscale)
    lines = []
    for (name, (x, y)), color, dash in zip(series.items(), LINE_COLORS, LINE_DASHES, strict=False):
        x, runs = np.asarray(x, dtype=np.float64), np.atleast_2d(np.asarray(y, dtype=np.float64))
        if x.ndim != 1 or runs.ndim != 2 or runs.shape[1] != len(x):
            raise ValueError(
                f"series[{name!r}]: got y of shape {runs.shape}, expected (seeds, {len(x)})"
            )
        mean = runs.mean(axis=0)
        if len(runs) > 1:
            band = (runs.min(axis=0), runs.max(axis=0))
            axes.fill_between(x, *band, color=color, alpha=0.18, linewidth=0)
        axes.plot(x, mean, color=color, linestyle=dash, label=name)
        lines.append((x, mean))
    axes.margins(x=0)
    if xscale == "linear" and all(
        (np.mod(np.asarray(x, dtype=np.float64), 1) == 0).all() for x, _ in series.values()
    ):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for height in (reference or {}).values():
        axes.axhline(height, color=QUIET_INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    if ylimits is not None:
        axes.set_ylim(*ylimits)
    names, colors = list(series), LINE_COLORS[: len(series)]
    if len(series) > MOST_DIRECT_LABELS:
        axes.legend(ncols=2, loc="lower left", bbox_to_anchor=(0, 1), handlelength=3)
        names, colors, lines = [], [], []
    names += list(reference or {})
    lines += [(axes.get_xlim(), (height, height)) for height in (reference or {}).values()]
    colors += [QUIET_INK] * len(reference or {})
    if names:
        label_lines(axes, names, lines, colors)
    return figure
