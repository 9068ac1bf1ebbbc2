"""Cost against length: a slope on logarithmic axes, measured and derived."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from attnlib.figures.labels import label_lines
from attnlib.figures.style import LINE_COLORS, LINE_MARKERS, QUIET_INK, WIDTH, styled


def fit_exponent(lengths: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """The exponent p of values = c lengths^p by least squares on logarithms, with its error.

    Returns (p, standard error of p). An exact power law has error zero.
    Raises ValueError for fewer than three points or numbers that have no logarithm.
    """
    n, y = np.asarray(lengths, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if n.shape != y.shape or n.ndim != 1:
        raise ValueError(f"values: got shape {y.shape}, expected that of lengths, {n.shape}")
    if len(np.unique(n)) < 3:
        raise ValueError(f"lengths: got {len(np.unique(n))} different ones, expected at least 3")
    for name, numbers in (("lengths", n), ("values", y)):
        if not (np.isfinite(numbers).all() and (numbers > 0).all()):
            raise ValueError(f"{name}: expected positive finite numbers, got {numbers.tolist()}")
    log_n, log_y = np.log(n) - np.log(n).mean(), np.log(y) - np.log(y).mean()
    slope = (log_n @ log_y) / (log_n @ log_n)
    residual = log_y - slope * log_n
    variance = (residual @ residual) / (len(n) - 2)
    return float(slope), float(np.sqrt(variance / (log_n @ log_n)))


@styled
def cost_plot(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    xlabel: str,
    ylabel: str,
    derived: Mapping[str, float] | None = None,
    fit_from: float = 0,
) -> Figure:
    """Draw cost against length, {name: (lengths, values)}, on two logarithmic axes.

    Beside each line stands its fitted exponent with the standard error, and the exponent that the
    text derives, {name: exponent}; a thin line of the derived slope runs through the last point.
    Exponents describe long sequences: the fit takes the lengths from `fit_from` on.
    Returns the figure.
    """
    if not series:
        raise ValueError("series: it is empty, expected {name: (lengths, values)}")
    derived = dict(derived or {})
    if unknown := set(derived) - set(series):
        raise ValueError(f"derived: {sorted(unknown)} are not in series, expected {list(series)}")
    if len(series) > len(LINE_COLORS):
        raise ValueError(f"series: got {len(series)} lines, expected at most {len(LINE_COLORS)}")
    figure, axes = plt.subplots(figsize=(WIDTH, 3.5))
    axes.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel)
    labels, lines = [], []
    for (name, (lengths, values)), color, marker in zip(
        series.items(), LINE_COLORS, LINE_MARKERS, strict=False
    ):
        n, y = np.asarray(lengths, dtype=np.float64), np.asarray(values, dtype=np.float64)
        long = n >= fit_from
        slope, error = fit_exponent(n[long], y[long])
        label = f"{name}\nslope {slope:.2f} ± {error:.2f}"
        if name in derived:
            label += f", derived {derived[name]:g}"
            guide = y[-1] * (n[long] / n[-1]) ** derived[name]
            axes.plot(n[long], guide, color=QUIET_INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.plot(n, y, color=color, marker=marker, linestyle="-")
        labels.append(label)
        lines.append((n, y))
    _mark_measured_lengths(axes, [n for n, _ in series.values()])
    label_lines(axes, labels, lines, LINE_COLORS[: len(labels)])
    return figure


def _mark_measured_lengths(axes, lengths: list[Sequence[float]]) -> None:
    """Ticks where something was measured, thinned so that their numbers do not touch."""
    measured = sorted({float(n) for series in lengths for n in series})
    kept = [measured[-1]]
    for n in reversed(measured[:-1]):
        if np.log(kept[-1] / n) > 0.11 * np.log(measured[-1] / measured[0]):
            kept.append(n)
    axes.xaxis.set_major_locator(FixedLocator(kept))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:g}"))
