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


def foveal_weights(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    coarse_key: Float[Tensor, "*heads S D"],
    *,
    grid: Grid,
    window: int,
    scale: float | None = None,
    bias: Float[Tensor, "heads P"] | None = None,
) -> tuple[Float[Tensor, "*heads N P"], Float[Tensor, "*heads N S"]]:
    """Weights of the P = window^2 places around each query and of the S coarse keys.

    Both together sum to one. `bias` is added to the scores of the window, one number for each head
    and offset; a place off the grid has weight zero. No N x N matrix is made.
    """
    check_window(window, grid)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    places, inside = places_at(grid, window_offsets(window), slice(0, math.prod(grid)))
    query = query * scale
    fine = (query[..., None, :] @ gathered(key, places).mT).squeeze(-2)
    if bias is not None:
        fine = fine + bias[:, None]
    scores = torch.cat((fine, query @ coarse_key.mT), dim=-1)
    inside = inside.to(query.device)
    seen = torch.cat((inside, inside.new_ones(len(inside), coarse_key.shape[-2])), dim=-1)
    weights = softmax(scores, seen.expand_as(scores))
    return weights.split((fine.shape[-1], coarse_key.shape[-2]), dim=-1)


def foveal_read(
    weights: tuple[Float[Tensor, "*heads N P"], Float[Tensor, "*heads N S"]],
    value: Float[Tensor, "*heads N E"],
    coarse_value: Float[Tensor, "*heads S E"],
    *,
    grid: Grid,
    window: int,
) -> Float[Tensor, "*heads N E"]:
    """The sum of the fine values around each query and of the coarse ones, by their weights."""
    fine, coarse = weights
    places, _ = places_at(grid, window_offsets(window), slice(0, math.prod(grid)))
    near = (fine[..., None, :] @ gathered(value, places)).squeeze(-2)
    return near + coarse @ coarse_value


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
    Source: Shi (2024), TransNeXt, eqs. 1 to 4, with a plain mean in the place of the paper's
    activated projection (that is `attnlib.models.AggregatedAttention`). Derived in chapter 8.1.
    """
    check_on_grid(query, key, value, grid)
    check_pool(grid, pool)
    check_scale(scale)
    dtype = torch.promote_types(query.dtype, torch.float32)
    q, k, v = (tensor.to(dtype) for tensor in (query, key, value))
    options = {"grid": grid, "window": window}
    weights = foveal_weights(q, k, pooled(k, grid, pool), scale=scale, **options)
    return foveal_read(weights, v, pooled(v, grid, pool), **options).to(query.dtype)
