"""Foveal attention: fine keys near by and coarse keys from everywhere, under one softmax."""

import math

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.checks import check_count, check_scale
from attnlib.read.disc_attention import near_square
from attnlib.read.grid_offsets import check_on_grid, gathered, places_at, window_offsets
from attnlib.support import Support
from attnlib.weight.softmax import softmax

Grid = tuple[int, int]


def pooled(x: Float[Tensor, "*heads N D"], grid: Grid, pool: Grid) -> Float[Tensor, "*heads S D"]:
    """The mean of x over each of pool[0] * pool[1] equal cells of the grid, cells row by row."""
    check_pool(grid, pool)
    cells = x.unflatten(-2, (pool[0], grid[0] // pool[0], pool[1], grid[1] // pool[1]))
    return reduce(cells, "... y p x q d -> ... (y x) d", "mean")


def check_pool(grid: Grid, pool: Grid) -> None:
    """Check that `pool` gives how many equal cells each of the two axes of `grid` is cut into."""
    for name, pair in (("grid", grid), ("pool", pool)):
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise TypeError(f"{name} must be a pair (rows, columns), got {pair!r}")
        for number in pair:
            check_count(name, number, least=1)
    if any(size % cells for size, cells in zip(grid, pool, strict=True)):
        raise ValueError(f"pool must divide grid {grid} along each axis, got {pool}")


def check_window(window: int, grid: Grid) -> None:
    """Check that a window is odd and no wider than the grid reaches from any place."""
    window_offsets(window)
    if window > 2 * min(grid) - 1:
        raise ValueError(
            f"window must be at most {2 * min(grid) - 1} on grid {grid}, "
            f"beyond which it reaches no further key, got {window}"
        )


def fovea(grid: Grid, window: int) -> Support:
    """Fine keys within the window that are on the grid, and every coarse key behind them.

    A key index below the number of places is fine, any other coarse. At a border the window is cut
    off. Source: Shi (2024), section 3.1.
    """
    check_window(window, grid)
    rows, columns = grid

    def seen(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        down = (q_idx // columns - kv_idx // columns).abs()
        right = (q_idx % columns - kv_idx % columns).abs()
        near = (down <= window // 2) & (right <= window // 2)
        return (kv_idx >= rows * columns) | near

    return Support(seen, f"fovea({grid}, {window})")


def aggregated_weights(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    pooled_key: Float[Tensor, "*heads S D"],
    *,
    grid: Grid,
    window: int,
    scale: float | None = None,
    bias: Float[Tensor, "heads 1 P"] | None = None,
) -> tuple[Float[Tensor, "*heads N P"], Float[Tensor, "*heads N S"]]:
    """Weights of the P = window^2 places around each query, and of the S coarse keys.

    Both together sum to one. `bias` is added to the scores of the window. A place off the grid has
    weight zero. No N x N matrix is made.
    """
    check_window(window, grid)
    places, inside = places_at(grid, window_offsets(window), slice(0, math.prod(grid)))
    query = query * (query.shape[-1] ** -0.5 if scale is None else scale)
    fine = (query[..., None, :] @ gathered(key, places).mT).squeeze(-2)
    fine = fine if bias is None else fine + bias
    scores = torch.cat((fine, query @ pooled_key.mT), dim=-1)
    everywhere = inside.new_ones(len(inside), pooled_key.shape[-2])
    seen = torch.cat((inside, everywhere), dim=-1).to(query.device)
    weights = softmax(scores, seen.expand_as(scores))
    return weights.split((window**2, pooled_key.shape[-2]), dim=-1)


def window_read(
    weights: Float[Tensor, "*heads N P"],
    value: Float[Tensor, "*heads N E"],
    *,
    grid: Grid,
    window: int,
) -> Float[Tensor, "*heads N E"]:
    """The weighted sum of the values around each place; what lies off the grid is not read."""
    places, inside = places_at(grid, window_offsets(window), slice(0, math.prod(grid)))
    weights = weights * inside.to(weights.device)
    return (weights[..., None, :] @ gathered(value, places)).squeeze(-2)


def aggregated_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    pooled_key: Float[Tensor, "*heads S D"],
    pooled_value: Float[Tensor, "*heads S E"],
    *,
    grid: Grid,
    window: int,
    scale: float | None = None,
) -> Float[Tensor, "*heads N E"]:
    r"""One softmax over the window around a place and over S coarse keys, wherever they come from.

    .. math:: o_i = \sum_{j \in \rho(i)} w_{ij} v_j + \sum_{c} w_{ic} \bar v_c, \qquad
        \sum_{j} w_{ij} + \sum_c w_{ic} = 1

    Shapes: query, key (..., heads, N, D), value (..., heads, N, E), N = rows * columns;
    pooled_key (..., heads, S, D), pooled_value (..., heads, S, E).
    Cost: time and memory N (window^2 + S) (D + E); no N x N matrix.
    Raises ValueError for shapes that do not fit and a window that is even or too wide.
    Source: Shi (2024), TransNeXt, section 3.1.
    """
    check_on_grid(query, key, value, grid)
    check_scale(scale)
    for name, tensor, like in (
        ("pooled_key", pooled_key, key),
        ("pooled_value", pooled_value, value),
    ):
        wanted = (*like.shape[:-2], pooled_key.shape[-2], like.shape[-1])
        if tuple(tensor.shape) != wanted:
            raise ValueError(f"{name} must have shape {wanted}, got {tuple(tensor.shape)}")
    dtype = torch.promote_types(query.dtype, torch.float32)
    q, k, v, coarse_k, coarse_v = (
        tensor.to(dtype) for tensor in (query, key, value, pooled_key, pooled_value)
    )
    where = {"grid": grid, "window": window}
    fine, coarse = aggregated_weights(q, k, coarse_k, scale=scale, **where)
    return (window_read(fine, v, **where) + coarse @ coarse_v).to(query.dtype)


def dense_foveal_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    grid: Grid,
    window: int,
    pool: Grid,
    scale: float | None = None,
) -> Float[Tensor, "*heads N E"]:
    """`attend` to all places and all cells with the support `fovea`: what the fast form equals."""
    keys = torch.cat((key, pooled(key, grid, pool)), dim=-2)
    values = torch.cat((value, pooled(value, grid, pool)), dim=-2)
    return attend(query, keys, values, support=fovea(grid, window), scale=scale)


def trial_fovea(query: Tensor, key: Tensor, value: Tensor) -> dict:
    """A grid, a window and cells for a trial call."""
    grid = near_square(query.shape[-2])
    return {"grid": grid, "window": 3 if min(grid) > 1 else 1, "pool": (1, grid[1])}


@mechanism(
    key="foveal",
    paper="transnext-aggregated",
    chapter="8-vision/windows-and-neighbourhoods",
    section="coarse-and-fine",
    step="support",
    idea="each place reads its window and the mean of every cell, under one softmax",
    equation=r"\mathrm{softmax}([Q K_{\rho}^\top, Q K_{\sigma}^\top]) [V_{\rho}; V_{\sigma}]",
    cost="time N (window^2 + S) (D + E) for S cells",
    oracle=dense_foveal_attention,
    promises=Promises(
        causal=False,
        cross=False,
        query_equivariant=False,
        key_invariant=False,
        grouped_query=False,
        padding=False,
        shortest=1,
        arguments=trial_fovea,
    ),
    taxonomy=Taxonomy("self", "multi", "soft", "multi-head"),
)
def foveal_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    grid: Grid,
    window: int,
    pool: Grid,
    scale: float | None = None,
) -> Float[Tensor, "*heads N E"]:
    r"""One softmax over the window around a place and the means of all cells.

    .. math:: o_i = \sum_{j \in \rho(i)} w_{ij} v_j + \sum_{c} w_{ic} \bar v_c, \qquad
        \sum_{j} w_{ij} + \sum_c w_{ic} = 1

    rho(i) are the places of `grid` in the square of width `window` around i; at a border it is cut
    off. c runs over pool[0] * pool[1] cells with mean keys and values. What is near a place is read
    twice, finely and in its cell's mean.

    Shapes: query, key (..., heads, N, D), value (..., heads, N, E), N = rows * columns.
    Cost: time and memory N (window^2 + S) (D + E), S = pool[0] * pool[1]; no N x N matrix.
    Raises ValueError for an even window or one that is too wide, and cells that do not divide.
    Source: Shi (2024), TransNeXt, section 3.1, with a plain mean in the place of the activated
    and normalized one (for that see `AggregatedAttention` in models). Derived in chapter 8.1.
    """
    check_on_grid(query, key, value, grid)
    check_pool(grid, pool)
    check_scale(scale)
    coarse = pooled(key, grid, pool), pooled(value, grid, pool)
    return aggregated_attention(query, key, value, *coarse, grid=grid, window=window, scale=scale)
