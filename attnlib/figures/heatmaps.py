"""Heat maps of attention weights: rows are queries, columns are keys, zero is the page."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from attnlib.figures.style import DIVERGING, INK, QUIET_INK, SEQUENTIAL, WIDTH, styled

MOST_LABELS = 24  # beyond this many rows or columns, token labels give way to numbers


def as_matrix(weights, name: str = "weights") -> np.ndarray:
    """A tensor or array as a finite float64 matrix, or a ValueError that says what came."""
    if hasattr(weights, "detach"):
        weights = weights.detach().cpu().double().numpy()
    matrix = np.asarray(weights, dtype=np.float64)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"{name}: got shape {matrix.shape}, expected (queries, keys), not empty")
    if not np.isfinite(matrix).all():
        raise ValueError(f"{name}: it holds infinite or undefined numbers, which have no color")
    return matrix


def color_limits(matrices: Sequence[np.ndarray], limits, signed: bool) -> tuple[float, float]:
    """The one pair of limits for all panels: (0, largest), or symmetric around 0 if signed."""
    smallest = min(float(matrix.min()) for matrix in matrices)
    largest = max(float(np.abs(matrix).max()) for matrix in matrices) or 1.0
    if smallest < 0 and not signed:
        raise ValueError(
            f"weights: the smallest is {smallest:g}; negative weights need signed=True"
        )
    low, high = limits if limits is not None else (-largest if signed else 0.0, largest)
    if not low < high:
        raise ValueError(f"limits: got ({low:g}, {high:g}), expected (low, high) with low < high")
    if signed and low != -high:
        raise ValueError(f"limits: got ({low:g}, {high:g}), expected (-a, a) for signed weights")
    if not signed and low != 0:
        raise ValueError(f"limits: got ({low:g}, {high:g}), expected (0, a): zero is the ground")
    return float(low), float(high)


def label_tokens(axes: Axes, rows: Sequence[str] | None, columns: Sequence[str] | None) -> None:
    """Write the tokens beside the rows and under the columns of a heat map."""
    queries, keys = axes.images[0].get_array().shape[:2]
    for name, tokens, length in (("rows", rows, queries), ("columns", columns, keys)):
        if tokens is not None and len(tokens) != length:
            raise ValueError(f"{name}: got {len(tokens)} labels, expected {length}")
    if rows is not None and queries <= MOST_LABELS:
        axes.set_yticks(range(queries), rows)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if columns is not None and keys <= MOST_LABELS:
        axes.set_xticks(range(keys), columns)
        if _stand_upright(columns):
            axes.tick_params(axis="x", rotation=90)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if MOST_LABELS >= max(queries, keys) > 16:
        axes.tick_params(labelsize=7)
    axes.tick_params(length=0 if max(queries, keys) <= MOST_LABELS else 3)


def _draw(axes: Axes, matrix: np.ndarray, low: float, high: float, signed: bool):
    image = axes.imshow(matrix, cmap=DIVERGING if signed else SEQUENTIAL, norm=Normalize(low, high))
    axes.spines[:].set_visible(True)
    if max(matrix.shape) <= MOST_LABELS:
        _separate_cells(axes, matrix)
        if signed:
            _mark_negative_cells(axes, matrix, high)
    return image


def _separate_cells(axes: Axes, matrix: np.ndarray) -> None:
    queries, keys = matrix.shape
    lines = {"color": INK, "alpha": 0.10, "linewidth": 0.5}
    axes.hlines(np.arange(1, queries) - 0.5, -0.5, keys - 0.5, **lines)
    axes.vlines(np.arange(1, keys) - 0.5, -0.5, queries - 0.5, **lines)


def _mark_negative_cells(axes: Axes, matrix: np.ndarray, high: float) -> None:
    """A minus in each visibly negative cell: in grey print the two colors are one."""
    for query, key in np.argwhere(matrix < -0.04 * high):
        dark = matrix[query, key] < -0.55 * high
        axes.plot(key, query, marker="_", markersize=4, color="#FFFFFF" if dark else INK)


@styled
def heatmap(
    weights, *, rows=None, columns=None, title=None, limits=None, signed=False, ax=None
) -> Figure:
    """Draw one matrix of weights, (N, M): row i is query i, column j is key j.

    `rows` and `columns` are the tokens. Colors run from zero, the ground of the page, to the
    largest weight, or over `limits`; with `signed=True` they run both ways from zero, and small
    matrices carry a minus in negative cells. `ax` draws into axes that exist already.
    Returns the figure. Raises ValueError for a wrong shape, wrong labels, or numbers that the
    colors cannot show.
    """
    matrix = as_matrix(weights)
    low, high = color_limits([matrix], limits, signed)
    if ax is None:
        _, ax = plt.subplots(figsize=_size_of_panels([matrix], 1, columns), layout="compressed")
    image = _draw(ax, matrix, low, high, signed)
    label_tokens(ax, rows, columns)
    ax.set(xlabel="key", ylabel="query")
    if title:
        ax.set_title(title)
    _color_bar(image, ax, signed)
    return ax.figure


@styled
def heatmaps(
    matrices: Mapping[str, object], *, rows=None, columns=None, limits=None, signed=False
) -> Figure:
    """Draw several matrices side by side, {title: (N, M)}, in the same colors with one bar.

    Limits are shared by all panels, so equal colors are equal weights. At most four panels
    stand in a row. Returns the figure; errors as in `heatmap`.
    """
    if not matrices:
        raise ValueError("matrices: it is empty, expected {title: matrix}")
    panels = [as_matrix(matrix, f"matrices[{title!r}]") for title, matrix in matrices.items()]
    low, high = color_limits(panels, limits, signed)
    in_a_row = min(4, len(panels))
    grid_rows = -(-len(panels) // in_a_row)
    figure, grid = plt.subplots(
        grid_rows,
        in_a_row,
        squeeze=False,
        figsize=_size_of_panels(panels, in_a_row, columns),
        layout="compressed",
    )
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for number, (axes, title, matrix) in enumerate(zip(grid.flat, matrices, panels, strict=False)):
        image = _draw(axes, matrix, low, high, signed)
        same_rows = number % in_a_row > 0 and matrix.shape[0] == panels[number - 1].shape[0]
        label_tokens(axes, rows, columns)
        if same_rows:
            axes.tick_params(labelleft=False)
        axes.set_title(title)
        axes.set_xlabel("key")
        if number % in_a_row == 0:
            axes.set_ylabel("query")
    _color_bar(image, grid[0, -1], signed)
    return figure


def _color_bar(image, axes: Axes, signed: bool) -> None:
    """A bar as high as the axes that it stands beside."""
    width = 0.13 / (axes.bbox.width / axes.figure.dpi)  # inches as a fraction of the axes
    beside = axes.inset_axes((1 + width / 2, 0, width, 1))
    label = "weight (signed)" if signed else "weight"
    bar = axes.figure.colorbar(image, cax=beside, label=label)
    bar.outline.set(linewidth=0.7, edgecolor=QUIET_INK)


def _size_of_panels(
    panels: Sequence[np.ndarray], in_a_row: int, columns: Sequence[str] | None
) -> tuple[float, float]:
    """Inches that give the panels their shape: wide ones fill the column, one square does not."""
    queries = max(matrix.shape[0] for matrix in panels)
    keys = max(matrix.shape[1] for matrix in panels)
    grid_rows = -(-len(panels) // in_a_row)
    width = WIDTH if in_a_row > 1 or keys > 1.5 * queries else 4.2
    panel_width = (width - 1.3 - 0.1 * in_a_row) / in_a_row
    panel_height = min(panel_width * queries / keys, 4.5)
    below = 0.72 + (0.07 * max(map(len, columns)) if columns and _stand_upright(columns) else 0)
    return width, grid_rows * (panel_height + below)


def _stand_upright(columns: Sequence[str]) -> bool:
    """Whether the tokens are too long to stand side by side under their columns."""
    return max(map(len, columns)) > 2 and sum(map(len, columns)) > 20
