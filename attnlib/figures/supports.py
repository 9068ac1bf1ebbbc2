"""Pictures of supports: which keys each query may see."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from attnlib.figures.style import INK, QUIET_INK, STEP_COLORS, WIDTH, styled

Support = Callable[..., torch.Tensor]
SEEN = ListedColormap([(1, 1, 1, 0), STEP_COLORS["support"]], name="attn-support")
MOST_CELLS = 40  # up to this many rows or columns, cells are drawn one by one


def visible_pairs(
    support: Support, queries: int, keys: int, *, query_offset: int = 0, batch=0, head=0
) -> np.ndarray:
    """The (queries, keys) matrix whose entry is support(b, h, i + query_offset, j).

    `support` is a predicate (b, h, q_idx, kv_idx) -> bool on elementwise tensors.
    """
    if queries < 1 or keys < 1:
        raise ValueError(f"queries, keys: got {queries} and {keys}, expected at least 1 each")
    q_idx = torch.arange(queries)[:, None] + query_offset
    kv_idx = torch.arange(keys)[None, :]
    seen = support(torch.tensor(batch), torch.tensor(head), q_idx, kv_idx)
    return torch.as_tensor(seen, dtype=torch.bool).expand(queries, keys).numpy()


@styled
def support_picture(
    support: Support | Mapping[str, Support],
    queries: int,
    keys: int,
    *,
    query_offset: int = 0,
    batch: int = 0,
    head: int = 0,
) -> Figure:
    """Draw which keys each query sees: a filled cell is a pair in the support.

    `support` is one predicate (b, h, q_idx, kv_idx) -> bool, or several by title, drawn side by
    side. Query i stands at position i + query_offset, as in decoding. Under each title stands how
    many of the N M pairs are seen, which is what the support costs. Returns the figure.
    """
    supports = support if isinstance(support, Mapping) else {"": support}
    if not supports:
        raise ValueError("support: it is empty, expected {title: predicate}")
    in_a_row = min(4, len(supports))
    grid_rows = -(-len(supports) // in_a_row)
    panel = WIDTH / max(in_a_row, 2) - 0.3
    figure, grid = plt.subplots(
        grid_rows,
        in_a_row,
        squeeze=False,
        figsize=(
            min(WIDTH, in_a_row * (panel + 0.3) + (0.4 if in_a_row == 1 else 0)),
            grid_rows * (min(panel * queries / keys, 4.5) + 0.8),
        ),
    )
    for axes in grid.flat[len(supports) :]:
        axes.set_axis_off()
    for number, (axes, (title, predicate)) in enumerate(
        zip(grid.flat, supports.items(), strict=False)
    ):
        seen = visible_pairs(
            predicate, queries, keys, query_offset=query_offset, batch=batch, head=head
        )
        _draw(axes, seen, query_offset)
        count = f"{seen.sum():,} of {seen.size:,} pairs".replace(",", "\u2009")
        axes.set_title(f"{title}\n" if title else "", linespacing=1.25)
        axes.annotate(
            count, (0, 1), (0, 5), xycoords="axes fraction", textcoords="offset points",
            color=QUIET_INK, fontsize=8.5, in_layout=False,
        )  # fmt: skip
        axes.set_xlabel("key")
        if number % in_a_row == 0:
            axes.set_ylabel("query")
        else:
            axes.tick_params(labelleft=False)
    return figure


def _draw(axes: Axes, seen: np.ndarray, query_offset: int) -> None:
    queries, keys = seen.shape
    axes.imshow(seen, cmap=SEEN, vmin=0, vmax=1, interpolation="nearest")
    axes.spines[:].set_visible(True)
    if max(seen.shape) <= MOST_CELLS:
        lines = {"color": INK, "alpha": 0.16, "linewidth": 0.5}
        axes.hlines(np.arange(1, queries) - 0.5, -0.5, keys - 0.5, **lines)
        axes.vlines(np.arange(1, keys) - 0.5, -0.5, queries - 0.5, **lines)
    rows = _few_positions(queries)
    axes.set_yticks(rows, [str(row + query_offset) for row in rows])
    axes.set_xticks(_few_positions(keys))
    axes.tick_params(length=0 if max(seen.shape) <= MOST_CELLS else 3)


def _few_positions(length: int) -> list[int]:
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**9) if length / s < 8)
    return list(range(0, length, step))
