"""Neighborhood attention: each query of a grid reads the window of keys around it."""

import torch
from jaxtyping import Float
from torch import Tensor

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.backend import runs_kernel, width_obstacle
from attnlib.checks import check_attention, check_scale
from attnlib.patterns.grid import neighborhood, neighborhood_rule, window_of
from attnlib.read.grid_checks import check_places, grid_or_line
from attnlib.read.grid_tiles import AxisTiles, read_in_tiles
from attnlib.read.heads import repeat_key_heads

PLACES_OF_A_TILE = 64

Axes = int | tuple[int, ...]
CausalAxes = bool | tuple[bool, ...]


def dense_neighborhood_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads N D"],
    value: Float[Tensor, "*key_heads N E"],
    *,
    grid: Axes | None = None,
    window: Axes = 3,
    dilation: Axes = 1,
    stride: Axes = 1,
    is_causal: CausalAxes = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Float[Tensor, "*heads N E"]:
    """The definition: `attend` over the keys of `neighborhood`. Cost: time and memory N^2."""
    check_attention(query, key, value, enable_gqa)
    grid = grid_or_line(grid, query)
    check_places(query, key, grid)
    support = neighborhood(grid, window, dilation, stride, is_causal)
    return attend(query, key, value, support=support, scale=scale, enable_gqa=enable_gqa)


def small_window(query: Tensor, key: Tensor, value: Tensor) -> dict[str, int]:
    """An odd window that fits, for a trial."""
    return {"window": 3 if query.shape[-2] >= 3 else 1}


def window_with_stride(query: Tensor, key: Tensor, value: Tensor) -> dict[str, int]:
    """An even window with a stride that fits, for a trial."""
    return {"window": 4, "stride": 2} if query.shape[-2] >= 4 else {"window": 1, "stride": 1}


@mechanism(
    key="faster-neighborhood-attention",
    paper="faster-neighborhood-attention",
    chapter="8-vision/windows-and-neighbourhoods",
    section="a-window-per-pixel",
    step="read",
    idea="each query reads the window around it, in tiles of queries that share their keys",
    equation=r"o_i = \sum_{j \in W(i)} \mathrm{softmax}_j(q_i^\top k_j / \sqrt{D})\, v_j",
    cost="time N n (D + E), memory N (D + E)",
    oracle=dense_neighborhood_attention,
    promises=Promises(
        cross=False,
        query_equivariant=False,
        key_invariant=False,
        padding=False,
        shortest=1,
        arguments=small_window,
    ),
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="local", representations="multi-head"
    ),
)
def neighborhood_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads N D"],
    value: Float[Tensor, "*key_heads N E"],
    *,
    grid: Axes | None = None,
    window: Axes = 3,
    dilation: Axes = 1,
    is_causal: CausalAxes = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    backend: str = "auto",
) -> Float[Tensor, "*heads N E"]:
    r"""Softmax attention over the window around each query, shifted where the grid ends.

    .. math:: o_i = \sum_{j \in W(i)} \frac{e^{s_{ij}}}{\sum_{l \in W(i)} e^{s_{il}}} v_j,
              \qquad s_{ij} = q_i^\top k_j \cdot \mathrm{scale}

    W(i) are the `window` places nearest to i on each axis, of those whose distance is a multiple of
    `dilation`; `attnlib.patterns.neighborhood` is the rule. Every query has as many keys: all
    n = window^axes of them, also in a corner. On a causal axis it has those up to itself.

    Shapes: N = prod(grid), row by row; without a grid the places are a line. A window, a dilation
    and is_causal are one for all axes or one for each.
    Cost: time N n (D + E), and memory linear in N: tiles of about 64 queries read the box of keys
    that they see together.

    `backend` as in `attnlib.backend`: the kernel is `attnlib.kernels.neighborhood_attention`.
    Raises ValueError for an even window, which has no middle, a window that times its dilation is
    longer than its axis, and a grid that does not hold N places.
    Source: Hassani et al. (2024), section 3; the window is Hassani et al. (2023), dilation Hassani
    and Shi (2022). Derived in chapter 8.1.
    """
    for one in window if isinstance(window, tuple | list) else (window,):
        if isinstance(one, int) and one % 2 == 0:
            raise ValueError(
                f"window must be odd, with as many keys before the query as behind it, got "
                f"{window!r}; generalized_neighborhood_attention takes even windows"
            )
    return generalized_neighborhood_attention(
        query,
        key,
        value,
        grid=grid,
        window=window,
        dilation=dilation,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=enable_gqa,
        backend=backend,
    )


@mechanism(
    key="generalized-neighborhood-attention",
    paper="generalized-neighborhood-attention",
    chapter="8-vision/windows-and-neighbourhoods",
    section="between-blocks-and-pixels",
    step="support",
    idea="queries in groups of a stride share one window: from neighborhoods to blocks",
    equation=r"o_i = \sum_{j \in W(\mathrm{leader}(i))} "
    r"\mathrm{softmax}_j(q_i^\top k_j / \sqrt{D})\, v_j",
    cost="time N n (D + E), memory N (D + E)",
    oracle=dense_neighborhood_attention,
    promises=Promises(
        causal=False,
        cross=False,
        query_equivariant=False,
        key_invariant=False,
        padding=False,
        shortest=1,
        arguments=window_with_stride,
    ),
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="local", representations="multi-head"
    ),
)
def generalized_neighborhood_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads N D"],
    value: Float[Tensor, "*key_heads N E"],
    *,
    grid: Axes | None = None,
    window: Axes = 3,
    stride: Axes = 1,
    dilation: Axes = 1,
    is_causal: CausalAxes = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    backend: str = "auto",
) -> Float[Tensor, "*heads N E"]:
    r"""Neighborhood attention whose windows move `stride` places at a time; windows may be even.

    .. math:: o_i = \sum_{j \in W(\mathrm{leader}(i))} \frac{e^{s_{ij}}}{\sum_l e^{s_{il}}} v_j

    The queries of a group, `stride` in a row on each axis, share the window of their leader.
    stride = 1 is neighborhood attention, stride = window is attention within blocks.
    `attnlib.patterns.neighborhood` is the rule. With is_causal a query sees no later key, but where
    a window begins depends on its group, and at the end on the length of the axis.

    Shapes, cost, backend and errors as in `neighborhood_attention`; stride is at most window.
    Source: Hassani et al. (2025), section 3. Derived in chapter 8.1.
    """
    check_attention(query, key, value, enable_gqa)
    check_scale(scale)
    grid = grid_or_line(grid, query)
    check_places(query, key, grid)
    grid, *rule = neighborhood_rule(grid, window, dilation, stride, is_causal)

    if runs_kernel(backend, query.device, lambda: why_not_kernel(query, value)):
        return read_by_kernel(query, key, value, grid, *rule, scale)
    if enable_gqa:
        key, value = repeat_key_heads(query, key, value)
    side = round(PLACES_OF_A_TILE ** (1 / len(grid)))
    axes = tuple(window_tiles(*axis, side, query.device) for axis in zip(grid, *rule, strict=True))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return read_in_tiles(query, key, value, axes, grid, scale=scale).to(query.dtype)


def window_tiles(
    length: int,
    window: int,
    dilation: int,
    stride: int,
    is_causal: bool,
    side: int,
    device: torch.device,
) -> AxisTiles:
    """One axis in tiles of about `side` queries of one class, each with the keys that it sees."""
    most = -(-length // dilation)  # places of the longest class
    side = min(-(-side // stride) * stride, most)  # whole groups of a stride
    tiles = -(-most // side)
    remainder = torch.arange(dilation, device=device)[:, None, None]
    in_class = (length - remainder + dilation - 1) // dilation
    place = torch.arange(tiles * side, device=device).view(1, tiles, side)
    place = torch.minimum(place, in_class - 1)
    first, stop = window_of(place, in_class, window, stride, is_causal)
    start, end = first.amin(-1, keepdim=True), stop.amax(-1, keepdim=True)
    key = start + torch.arange(int((end - start).max()), device=device)
    seen = (key[..., None, :] >= first[..., None]) & (key[..., None, :] < stop[..., None])
    key = torch.minimum(key, in_class - 1)

    all_places = torch.arange(length, device=device)
    slot_of = all_places % dilation * (tiles * side) + all_places // dilation
    queries, keys = place * dilation + remainder, key * dilation + remainder
    return AxisTiles(queries.flatten(0, 1), keys.flatten(0, 1), seen.flatten(0, 1), slot_of)


def read_by_kernel(query, key, value, grid, window, dilation, stride, is_causal, scale) -> Tensor:
    """The kernel's read, of tensors that have their grid as axes."""
    from attnlib.kernels import neighborhood_attention as kernel

    with_heads = (x if x.dim() > 2 else x[None] for x in (query, key, value))
    on_grid = (x.unflatten(-2, grid) for x in with_heads)
    read = kernel(
        *(x if x.stride(-1) == 1 else x.contiguous() for x in on_grid),
        window,
        stride=stride,
        dilation=dilation,
        is_causal=is_causal,
        scale=scale,
    )
    return read.reshape(*query.shape[:-1], value.shape[-1])


def why_not_kernel(query: Tensor, value: Tensor) -> str | None:
    """What of this call the kernel cannot do, or None."""
    from attnlib.kernels.launch import shared_memory_of
    from attnlib.kernels.neighborhood_attention import TILES
    from attnlib.kernels.tile_choice import fits

    memory = shared_memory_of(query.device)
    problem = width_obstacle(query, value)
    if problem or fits(TILES, query.shape[-1], value.shape[-1], query.dtype, memory):
        return problem
    return (
        f"no tile of width {max(query.shape[-1], value.shape[-1])} in {query.dtype} fits the "
        f"{memory} bytes of shared memory of the chip"
    )
