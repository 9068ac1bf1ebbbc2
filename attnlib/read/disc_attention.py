"""Disc attention: each place of a grid reads the places nearer than a radius, and all text."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.backend import gradient_wanted
from attnlib.checks import check_count, check_scale
from attnlib.patterns.grid import disc
from attnlib.read.chunked_softmax import chunks
from attnlib.read.grid_offsets import (
    check_on_grid,
    disc_offsets,
    gathered,
    places_at,
)
from attnlib.support import Support
from attnlib.weight.softmax import softmax


def text_and_disc(grid: tuple[int, ...], radius: float, text: int = 0) -> Support:
    """The support of disc attention: text sees all and is seen by all, a place sees its disc.

    The first `text` tokens are text, the others the places of the grid, row by row; a place sees
    the places at a squared distance below radius^2. Source: Liu et al. (2024), eq. 3.
    """
    check_count("text", text)
    in_disc = disc(grid, radius)

    def near(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        of_text = (q_idx < text) | (kv_idx < text)
        return of_text | in_disc(b, h, q_idx - text, kv_idx - text)

    return Support(near, f"text_and_disc({grid}, {radius}, {text})")


def dense_disc_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    grid: tuple[int, ...] | None = None,
    radius: float,
    text: int = 0,
    scale: float | None = None,
) -> Float[Tensor, "*heads N E"]:
    """`attend` with the support `text_and_disc`: what `disc_attention` must equal."""
    grid = (query.shape[-2] - text,) if grid is None else grid
    check_on_grid(query, key, value, grid, before=text)
    return attend(query, key, value, support=text_and_disc(grid, radius, text), scale=scale)


def trial_disc(query: Tensor, key: Tensor, value: Tensor) -> dict:
    """A grid and a radius for a trial call."""
    return {"grid": near_square(query.shape[-2]), "radius": 2.0}


def near_square(places: int) -> tuple[int, int]:
    """The grid (rows, columns) of this many places that is nearest to a square."""
    rows = next(rows for rows in range(math.isqrt(places), 0, -1) if places % rows == 0)
    return rows, places // rows


@mechanism(
    key="clear-conv-like",
    paper="clear-conv-like",
    chapter="8-vision/windows-and-neighbourhoods",
    section="discs",
    step="support",
    idea="a place reads the places nearer than r, whatever the direction, and all text",
    equation=r"S_i = \{ j : |p_i - p_j|^2 < r^2 \} \cup \mathrm{text}",
    cost="time N (pi r^2 + text) (D + E), memory bounded by a run of queries",
    oracle=dense_disc_attention,
    promises=Promises(
        causal=False,
        cross=False,
        query_equivariant=False,
        key_invariant=False,
        grouped_query=False,
        padding=False,
        shortest=1,
        arguments=trial_disc,
    ),
    taxonomy=Taxonomy("self", "single", "local", "multi-head"),
)
def disc_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    grid: tuple[int, ...] | None = None,
    radius: float,
    text: int = 0,
    scale: float | None = None,
    run: int = 512,
) -> Float[Tensor, "*heads N E"]:
    r"""Softmax attention of each place to the disc around it and to all text tokens.

    .. math:: S_i = \{ j : (y_i - y_j)^2 + (x_i - x_j)^2 < r^2 \} \cup \mathrm{text}

    The first `text` tokens are text and read everything; the others are the places of `grid`, row
    by row (a line without it). The keys of a run of `run` queries are gathered at the same offsets
    for all of them, so no N x N matrix is made. In the backward pass a run is computed again.

    Shapes: query, key (..., heads, N, D), value (..., heads, N, E), N = text + places.
    Cost: time N (pi r^2 + text) (D + E), memory run (pi r^2 + text) (D + E) beyond the inputs.
    Raises ValueError for a grid that does not fit and a radius that is not positive.
    Source: Liu et al. (2024), CLEAR, eq. 3. Derived in chapter 8.1.
    """
    check_count("text", text)
    if grid is None:
        tokens = query.shape[-2] if isinstance(query, Tensor) and query.dim() > 1 else text + 1
        grid = (tokens - text,)
    check_on_grid(query, key, value, grid, before=text)
    check_scale(scale)
    check_count("run", run, least=1)
    offsets = disc_offsets(radius, grid)
    scale = query.shape[-1] ** -0.5 if scale is None else scale

    def read_run(query: Tensor, key: Tensor, value: Tensor, rows: slice) -> Tensor:
        query, key, value = (tensor.to(dtype) for tensor in (query, key, value))
        places, inside = places_at(grid, offsets, rows)
        inside = inside.to(query.device)
        near_key, near_value = (gathered(tensor, places + text) for tensor in (key, value))
        query = query * scale
        near = (query[..., None, :] @ near_key.mT).squeeze(-2)
        scores = torch.cat((query @ key[..., :text, :].mT, near), dim=-1)
        seen = torch.cat((torch.ones_like(inside[:, :1]).expand(-1, text), inside), dim=-1)
        weights = softmax(scores, seen.expand_as(scores))
        of_text, of_near = weights.split((text, len(offsets)), dim=-1)
        read = of_text @ value[..., :text, :] + (of_near[..., None, :] @ near_value).squeeze(-2)
        return read.to(out_dtype)

    out_dtype, dtype = query.dtype, torch.promote_types(query.dtype, torch.float32)
    image, runs = query[..., text:, :], chunks(math.prod(grid), run)
    # A single run has nothing to gain from being computed twice.
    recompute = len(runs) > 1 and gradient_wanted(query, key, value)
    reads = [attend(query[..., :text, :], key, value, scale=scale)]
    for rows in runs:
        arguments = (image[..., rows, :], key, value, rows)
        if recompute:
            reads.append(checkpoint(read_run, *arguments, use_reentrant=False))
        else:
            reads.append(read_run(*arguments))
    return torch.cat(reads, dim=-2)
