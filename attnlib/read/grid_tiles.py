"""Attention on a grid in tiles: boxes of queries that read the box of keys around them.

A support that is a product over the axes (a query sees a key if it does so on every axis) is cut
axis by axis. On one axis, a tile holds some queries and the stretch of keys that at least one of
them sees. A tile of the grid is one tile of each axis: its queries are a box, and so are its keys.

    one axis, a window of 3, tiles of 4 queries

    places    0 1 2 3 4 5 6 7 8 9 ...
    queries           * * * *              tile 1: queries 4 to 7,
    keys            o o o o o o            and keys 3 to 8, which they see together

The keys of all tiles together are a few times as many as there are places. So the work is linear
in the number of places, and the table of all queries and keys is never made.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attnlib.weight.softmax import softmax

PAIRS_AT_ONCE = 2**19
"""How many pairs of a query and a key a run of tiles holds where it can: few megabytes."""


class AxisTiles(NamedTuple):
    """One axis in tiles: which places their queries and keys are, and who sees whom.

    `slot_of` says where in the flattened `queries` the query of each place is found: tiles have
    one size, and one that lies past the end repeats queries.
    """

    queries: Int[Tensor, "tiles q"]
    keys: Int[Tensor, "tiles k"]
    seen: Bool[Tensor, "tiles q k"]
    slot_of: Int[Tensor, " places"]


def read_in_tiles(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    value: Float[Tensor, "*heads M E"],
    axes: tuple[AxisTiles, ...],
    key_grid: tuple[int, ...],
    *,
    scale: float,
    relative: Float[Tensor, "q k D"] | None = None,
) -> Float[Tensor, "*heads N E"]:
    r"""Softmax attention over the support that the tiles of each axis describe.

    .. math:: o_i = \sum_{j \in S_i} \frac{e^{s_{ij}}}{\sum_{l \in S_i} e^{s_{il}}} v_j

    The scores are q_i . k_j * scale. With `relative`, a vector for each query and each key of a
    tile, they are q_i . (k_j + r_ij) * scale.
    Cost: time (D + E) times the pairs in all tiles. One run of tiles is in memory at a time.
    """
    lead = query.shape[:-2]
    query_grid = tuple(len(axis.slot_of) for axis in axes)
    query, key, value = (
        tensor.reshape(math.prod(lead), *grid, tensor.shape[-1])
        for tensor, grid in ((query, query_grid), (key, key_grid), (value, key_grid))
    )
    reads = []
    for tiles in runs(axes, heads=len(query)):
        keys, values = (boxes(tensor, [axis.keys for axis in tiles]) for tensor in (key, value))
        queries = boxes(query, [axis.queries for axis in tiles])
        seen = on_all_axes([axis.seen for axis in tiles])
        reads.append(read_boxes(queries, keys, values, seen, scale, relative))
    read = unboxed(torch.cat(reads), axes)
    return read.reshape(*lead, math.prod(query_grid), value.shape[-1])


def read_boxes(
    query: Float[Tensor, "tiles heads q D"],
    key: Float[Tensor, "tiles heads k D"],
    value: Float[Tensor, "tiles heads k E"],
    seen: Bool[Tensor, "tiles q k"],
    scale: float,
    relative: Float[Tensor, "q k D"] | None,
) -> Float[Tensor, "tiles heads q E"]:
    """The read of each tile: a batch of small attentions, half precision summed in float32."""
    dtype = torch.float32 if query.element_size() < 4 else query.dtype
    query, key, value = (tensor.to(dtype) for tensor in (query, key, value))
    if relative is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=seen[:, None], scale=scale
        )
    scores = query @ key.mT + torch.einsum("thqd,qkd->thqk", query, relative.to(dtype))
    return softmax(scores * scale, seen[:, None].expand_as(scores)) @ value


def runs(axes: tuple[AxisTiles, ...], heads: int) -> list[tuple[AxisTiles, ...]]:
    """The tiles in runs along the first axis, each with not too many pairs at once."""
    first, *others = axes
    pairs = max(1, heads) * math.prod(axis.seen[0].numel() for axis in axes)
    pairs *= math.prod(len(axis.seen) for axis in others)
    length = max(1, PAIRS_AT_ONCE // max(1, pairs))
    starts = range(0, len(first.seen), length)
    parts = [[part[at : at + length] for part in first[:3]] for at in starts]
    return [(AxisTiles(*part, first.slot_of), *others) for part in parts]


def boxes(
    tensor: Float[Tensor, "heads *grid D"], places: list[Int[Tensor, "_ _"]]
) -> Float[Tensor, "all_tiles heads places D"]:
    """The places of each tile of the grid, side by side."""
    for axis, at in enumerate(places):
        dim = 1 + 2 * axis  # the axes before it are two each: tiles, and places of a tile
        tensor = tensor.index_select(dim, at.flatten()).unflatten(dim, at.shape)
    tile_dims, place_dims = range(1, tensor.dim() - 1, 2), range(2, tensor.dim() - 1, 2)
    tensor = tensor.permute(*tile_dims, 0, *place_dims, tensor.dim() - 1)
    count = len(places)
    return tensor.flatten(count + 1, -2).flatten(0, count - 1)


def unboxed(
    read: Float[Tensor, "all_tiles heads q E"], axes: tuple[AxisTiles, ...]
) -> Float[Tensor, "heads *grid E"]:
    """The places of all tiles back in the order of the grid: `boxes` undone."""
    tiles, sizes = zip(*(axis.queries.shape for axis in axes), strict=True)
    count = len(axes)
    read = read.unflatten(2, sizes).unflatten(0, tiles)
    pairs = (dim for axis in range(count) for dim in (axis, count + 1 + axis))
    read = read.permute(count, *pairs, read.dim() - 1)
    for axis in range(count):
        read = read.flatten(axis + 1, axis + 2).index_select(axis + 1, axes[axis].slot_of)
    return read


def on_all_axes(seen: list[Bool[Tensor, "_ _ _"]]) -> Bool[Tensor, "tiles q k"]:
    """Who sees whom in each tile of the grid: a query sees a key if it does so on every axis."""
    together = seen[0]
    for more in seen[1:]:
        together = together[:, None, :, None, :, None] & more[None, :, None, :, None, :]
        together = together.flatten(4, 5).flatten(2, 3).flatten(0, 1)
    return together
