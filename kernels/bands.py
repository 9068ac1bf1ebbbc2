"""Supports that are bands: query i sees the keys from i + lowest to i + highest.

No mask at all, the causal rule, a window: each is a band, and so is the query side of it, the
queries that see a key. A band meets each row of tiles in one stretch:

    skipped | partial | full  full  full | partial | skipped

Skipped tiles are never visited. Only a partial tile needs a mask. A kernel visits the full tiles
first and the partial ones of both edges after them: `for partial in tl.static_range(2)`.
"""

import triton
import triton.language as tl


def band_of(
    queries: int, keys: int, is_causal: bool, query_offset: int, window: int | None
) -> tuple[int, int]:
    """(lowest, highest): query i sees the keys from i + lowest to i + highest.

    Where nothing bounds a side, its number is so large that every row reaches past the edge.
    """
    highest = query_offset if is_causal or window is not None else keys
    lowest = -queries if window is None else query_offset - window + 1
    return tuple(min(max(edge, -queries), keys) for edge in (lowest, highest))


@triton.jit
def edges_of(start, stop, band, count, block_size: tl.constexpr):
    """Four edges: tiles from the first to the last are seen by some of the rows start ... stop - 1,
    tiles from the second to the third by all of them. All but the last are the start of a tile.
    """
    seen_from = tl.maximum(start + band[0], 0)
    seen_until = tl.minimum(stop + band[1], count)
    first = seen_from // block_size * block_size
    last = tl.where(seen_from < seen_until, seen_until, first)
    seen_by_all_from = tl.maximum(stop - 1 + band[0], 0)
    seen_by_all_until = tl.maximum(tl.minimum(start + band[1] + 1, count), 0)
    full = tl.minimum(tl.cdiv(seen_by_all_from, block_size) * block_size, last)
    full_until = tl.maximum(seen_by_all_until // block_size * block_size, full)
    return first, full, full_until, last


@triton.jit
def tile_count(edges, block_size: tl.constexpr, partial: tl.constexpr):
    """How many tiles of a row of tiles are full, or partial."""
    first, full, full_until, last = edges
    full_count = (full_until - full) // block_size
    return tl.cdiv(last - first, block_size) - full_count if partial else full_count


@triton.jit
def tile_start(edges, number, block_size: tl.constexpr, partial: tl.constexpr):
    """Where the full tile, or the partial tile, of this number starts."""
    first, full, full_until, _ = edges
    if partial:
        start = first + number * block_size
        start += tl.where(start < full, 0, full_until - full)  # step over the full ones
    else:
        start = full + number * block_size
    return start


@triton.jit
def seen_only(scores, queries, keys, present, band, partial: tl.constexpr):
    """The scores, minus infinity where query i does not see key j of i + lowest ... i + highest."""
    seen = present
    if partial:
        seen = seen & (keys >= queries + band[0]) & (keys <= queries + band[1])
    return tl.where(seen, scores, -float("inf"))
