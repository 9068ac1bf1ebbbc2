"""Halo attention: a block of queries reads its own keys and a border of keys around it."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.checks import check_attention, check_dtype, check_scale, check_tensor
from attnlib.patterns.grid import block_sides, coordinates, for_each_axis, strided_grid
from attnlib.patterns.grid import halo as halo_support
from attnlib.read.grid_checks import check_places, grid_or_line
from attnlib.read.grid_tiles import AxisTiles, read_in_tiles
from attnlib.read.heads import repeat_key_heads

Axes = int | tuple[int, ...]
Grid = tuple[int, ...]


def dense_halo_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    *,
    grid: Axes | None = None,
    block: Axes | None = None,
    halo: Axes = 0,
    stride: Axes = 1,
    relative: Float[Tensor, "*displacements D"] | None = None,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Float[Tensor, "*heads N E"]:
    """The definition: `attend` over the keys of `halo`. Cost: time and memory N M."""
    check_attention(query, key, value, enable_gqa)
    grid = grid_or_line(grid, key)
    sides, halos, strides, query_grid = halo_rule(grid, block, halo, stride)
    check_places(query, key, grid, query_grid)
    check_relative(relative, query, sides, halos)

    def score(query: Tensor, key: Tensor, scale: float | None = None) -> Tensor:
        scores = query @ key.mT
        if relative is not None:
            place = torch.arange(math.prod(query_grid), device=query.device)[:, None]
            other = torch.arange(math.prod(grid), device=query.device)[None, :]
            both = zip(coordinates(place, query_grid), coordinates(other, grid), strict=True)
            apart = [j - i * step for (i, j), step in zip(both, strides, strict=True)]
            scores = scores + torch.einsum(
                "...nd,nmd->...nm", query, vectors_between(relative, apart)
            )
        return scores * (query.shape[-1] ** -0.5 if scale is None else scale)

    support = halo_support(grid, sides, halos, strides)
    options = {"support": support, "scale": scale, "enable_gqa": enable_gqa}
    return attend(query, key, value, score=score, **options)


def small_block_and_halo(query: Tensor, key: Tensor, value: Tensor) -> dict[str, int]:
    """A block that divides a line, and a halo, for a trial."""
    side = next(side for side in (4, 3, 5, 1) if query.shape[-2] % side == 0)
    return {"block": side, "halo": 2}


@mechanism(
    key="halonet",
    paper="halonet",
    chapter="8-vision/windows-and-neighbourhoods",
    section="a-halo",
    step="support",
    idea="blocks of queries with a halo: keys up to a few places around the block",
    equation=r"o_i = \sum_{j \in b(i) \oplus h} "
    r"\mathrm{softmax}_j(q_i^\top (k_j + r_{j - i}) / \sqrt{D})\, v_j",
    cost="time N (b + 2h)^2 (D + E), memory N (D + E) (1 + 2h / b)^2",
    oracle=dense_halo_attention,
    promises=Promises(
        causal=False,
        cross=False,
        query_equivariant=False,
        key_invariant=False,
        padding=False,
        shortest=1,
        arguments=small_block_and_halo,
    ),
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="local", representations="multi-head"
    ),
)
def halo_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    *,
    grid: Axes | None = None,
    block: Axes | None = None,
    halo: Axes = 0,
    stride: Axes = 1,
    relative: Float[Tensor, "*displacements D"] | None = None,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Float[Tensor, "*heads N E"]:
    r"""Softmax attention of blocks of queries over their block of keys and a halo around it.

    .. math:: o_i = \sum_{j \in S(i)} \frac{e^{s_{ij}}}{\sum_{l \in S(i)} e^{s_{il}}} v_j,
              \qquad s_{ij} = q_i^\top (k_j + r_{j - i}) \cdot \mathrm{scale}

    S(i) is `attnlib.patterns.halo(grid, block, halo)`: all keys at most `halo` places from the
    block of i, as far as the grid reaches. All queries of a block read the same keys, so a block is
    one matrix product.

    `relative` holds the vector r of each displacement from query to key, (*displacements, D) with
    2 (block + halo) - 1 displacements an axis, from -(block + halo - 1) on; without it r = 0.
    With a stride the queries are those of every stride-th place: N = prod(grid / stride).

    Shapes: M = prod(grid), row by row; without a grid the keys are a line, and without a block it
    is the whole grid. Cost: time N (b + 2h)^2 (D + E) for blocks of b x b, memory linear in N.
    Raises ValueError where block does not divide the grid or stride the block, for a negative halo,
    and for a grid that does not hold the keys.
    Source: Vaswani et al. (2021), blocked local attention with haloing, and its strided form; the
    relative vectors are Ramachandran et al. (2019). Derived in chapter 8.1.
    """
    check_attention(query, key, value, enable_gqa)
    check_scale(scale)
    grid = grid_or_line(grid, key)
    sides, halos, strides, query_grid = halo_rule(grid, block, halo, stride)
    check_places(query, key, grid, query_grid)
    check_relative(relative, query, sides, halos)
    if enable_gqa:
        key, value = repeat_key_heads(query, key, value)
    if relative is None:  # beyond the grid there are no keys
        halos = tuple(min(halo, length) for halo, length in zip(halos, grid, strict=True))
    axes = tuple(
        halo_tiles(*axis, query.device) for axis in zip(grid, sides, halos, strides, strict=True)
    )
    if relative is not None:
        relative = vectors_of_a_block(relative, sides, halos, strides)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    read = read_in_tiles(query, key, value, axes, grid, scale=scale, relative=relative)
    return read.to(query.dtype)


def halo_tiles(length: int, side: int, halo: int, stride: int, device: torch.device) -> AxisTiles:
    """One axis in blocks: the queries of each, and the keys of each with its halo."""
    start = torch.arange(0, length, side, device=device)[:, None]
    key = start + torch.arange(-halo, side + halo, device=device)
    on_the_axis = (key >= 0) & (key < length)
    queries = torch.arange(length // stride, device=device).unflatten(0, (-1, side // stride))
    seen = on_the_axis[:, None, :].expand(-1, side // stride, -1)
    return AxisTiles(queries, key.clamp(0, length - 1), seen, queries.flatten())


def vectors_of_a_block(
    relative: Float[Tensor, "*displacements D"], sides: Grid, halos: Grid, strides: Grid
) -> Float[Tensor, "q k D"]:
    """The vector between each query of a block and each key of its halo: the same in all blocks."""
    device = relative.device
    boxes = tuple(side + 2 * halo for side, halo in zip(sides, halos, strict=True))
    queries = tuple(side // step for side, step in zip(sides, strides, strict=True))
    place = torch.arange(math.prod(queries), device=device)[:, None]
    other = torch.arange(math.prod(boxes), device=device)[None, :]
    both = zip(coordinates(place, queries), coordinates(other, boxes), strict=True)
    apart = [j - halo - i * step for (i, j), halo, step in zip(both, halos, strides, strict=True)]
    return vectors_between(relative, apart)


def vectors_between(
    relative: Float[Tensor, "*displacements D"], apart: list[Tensor]
) -> Float[Tensor, "q k D"]:
    """The vector of each displacement; one that is too far for the table has none that counts."""
    middles = (length // 2 for length in relative.shape[:-1])
    at = zip(apart, middles, relative.shape[:-1], strict=True)
    return relative[tuple((d + middle).clamp(0, length - 1) for d, middle, length in at)]


def halo_rule(
    grid: Grid, block: Axes | None, halo: Axes, stride: Axes
) -> tuple[Grid, Grid, Grid, Grid]:
    """Blocks, halos and strides, one for each axis, and the grid of the queries, once they fit."""
    sides, _ = block_sides("block", grid if block is None else block, 0, grid)
    halos = for_each_axis("halo", halo, grid, least=0)
    strides = for_each_axis("stride", stride, grid)
    return sides, halos, strides, strided_grid(grid, sides, strides)


def check_relative(relative: Tensor | None, query: Tensor, sides: Grid, halos: Grid) -> None:
    """Raise unless there is one vector for each displacement between a query and a key."""
    if relative is None:
        return
    check_tensor("relative", relative)
    check_dtype("relative", relative, query)
    lengths = (2 * (side + halo) - 1 for side, halo in zip(sides, halos, strict=True))
    expected = (*lengths, query.shape[-1])
    if relative.shape != expected:
        raise ValueError(
            f"relative must have one vector for each displacement, shape {expected}, "
            f"got {tuple(relative.shape)}"
        )
