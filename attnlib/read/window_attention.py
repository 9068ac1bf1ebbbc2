"""Window attention: each query reads its own block of a grid, and blocks may be shifted."""

import torch
from jaxtyping import Float
from torch import Tensor

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.checks import check_attention, check_scale
from attnlib.patterns.grid import block_sides, blocks
from attnlib.read.grid_checks import check_places, grid_or_line
from attnlib.read.grid_tiles import AxisTiles, read_in_tiles
from attnlib.read.heads import repeat_key_heads

Axes = int | tuple[int, ...]


def dense_window_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads N D"],
    value: Float[Tensor, "*key_heads N E"],
    *,
    grid: Axes | None = None,
    window: Axes | None = None,
    shift: Axes = 0,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Float[Tensor, "*heads N E"]:
    """The definition: `attend` over the keys of `blocks`. Cost: time and memory N^2."""
    check_attention(query, key, value, enable_gqa)
    grid = grid_or_line(grid, query)
    check_places(query, key, grid)
    support = blocks(grid, grid if window is None else window, shift)
    return attend(query, key, value, support=support, scale=scale, enable_gqa=enable_gqa)


def shifted_windows_of_four(query: Tensor, key: Tensor, value: Tensor) -> dict[str, int]:
    """Windows that divide a line, shifted where they are long enough, for a trial."""
    side = next(side for side in (4, 3, 5, 1) if query.shape[-2] % side == 0)
    return {"window": side, "shift": side // 2}


@mechanism(
    key="liu-2021",
    paper="liu-2021",
    chapter="8-vision/windows-and-neighbourhoods",
    section="windows-and-shifts",
    step="support",
    idea="a grid cut into windows that see only themselves, shifted from layer to layer",
    equation=r"\mathrm{softmax}(Q_b K_b^\top / \sqrt{D})\, V_b \text{ for each block } b",
    cost="time N n (D + E) for windows of n places, memory N (D + E)",
    oracle=dense_window_attention,
    promises=Promises(
        causal=False,
        cross=False,
        query_equivariant=False,
        key_invariant=False,
        padding=False,
        shortest=1,
        arguments=shifted_windows_of_four,
    ),
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="local", representations="multi-head"
    ),
)
def window_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads N D"],
    value: Float[Tensor, "*key_heads N E"],
    *,
    grid: Axes | None = None,
    window: Axes | None = None,
    shift: Axes = 0,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Float[Tensor, "*heads N E"]:
    r"""Softmax attention within the windows that a grid is cut into.

    .. math:: o_i = \sum_{j \in b(i)} \frac{e^{s_{ij}}}{\sum_{l \in b(i)} e^{s_{il}}} v_j

    b(i) is the block of query i in `attnlib.patterns.blocks(grid, window, shift)`. A shifted grid
    ends in parts of windows. The places are rolled by the shift, so that all windows are whole,
    and the parts that come together in a window by the roll are hidden from each other.

    Shapes: N = prod(grid), row by row; without a grid the places are a line, and without a window
    it is the whole grid. Cost: time N n (D + E) for windows of n places, memory linear in N.
    Raises ValueError where window does not divide the grid, shift is not less than window, and
    for a grid that does not hold N places.
    Source: Liu et al. (2021), section 3.2, without the relative position bias. Derived in chapter
    8.1.
    """
    check_attention(query, key, value, enable_gqa)
    check_scale(scale)
    grid = grid_or_line(grid, query)
    check_places(query, key, grid)
    sides, shifts = block_sides("window", grid if window is None else window, shift, grid)
    if enable_gqa:
        key, value = repeat_key_heads(query, key, value)
    axes = tuple(
        rolled_tiles(*axis, query.device) for axis in zip(grid, sides, shifts, strict=True)
    )
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return read_in_tiles(query, key, value, axes, grid, scale=scale).to(query.dtype)


def rolled_tiles(length: int, side: int, shift: int, device: torch.device) -> AxisTiles:
    """One axis, rolled by the shift and cut into windows; what wrapped around is hidden."""
    place = torch.arange(length, device=device)
    rolled = place.roll(-shift).unflatten(0, (-1, side))
    wrapped = rolled < shift
    seen = wrapped[:, :, None] == wrapped[:, None, :]
    # Only the last window holds places that wrapped; a whole window of them sees itself.
    return AxisTiles(rolled, rolled, seen, place.roll(shift))
