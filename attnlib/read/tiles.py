"""Which tiles of the scores a read must visit, and in which order a tiled read visits them."""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from attnlib.checks import check_count
from attnlib.support import Predicate, dense

SKIP, PARTIAL, FULL = 0, 1, 2
"""What a tile is: nothing in it is allowed, a part of it is, all of it is."""


def tile_table(
    support: Predicate,
    queries: int,
    keys: int,
    *,
    tile: tuple[int, int],
    query_offset: int = 0,
) -> Int[Tensor, "query_blocks key_blocks"]:
    """SKIP, PARTIAL or FULL for each tile of (queries, keys) entries of the scores.

    The last row and column of tiles may be ragged: only entries that exist count. This is what the
    host hands to a kernel in place of a mask: a list of tiles, and masks for the partial ones.
    Raises ValueError or TypeError for sizes that are no positive integers.
    """
    for name, number in (
        ("queries", queries),
        ("keys", keys),
        ("tile", tile[0]),
        ("tile", tile[1]),
    ):
        check_count(name, number, least=1)
    allowed = dense(support, queries, keys, query_offset=query_offset)[0, 0]
    rows = [
        [_state(block) for block in band.split(tile[1], dim=1)]
        for band in allowed.split(tile[0], dim=0)
    ]
    return torch.tensor(rows)


def _state(allowed: Tensor) -> int:
    if allowed.all():
        return FULL
    return PARTIAL if allowed.any() else SKIP


class TileStep(NamedTuple):
    """One step of a tiled read: fold a tile into the running sums, or write a block of reads."""

    query_block: int
    key_block: int | None  # None: write
    state: int  # FULL or PARTIAL; for a write, FULL


def tile_walk(table: Int[Tensor, "query_blocks key_blocks"]) -> list[TileStep]:
    """The steps of a tiled read: block of queries by block, its tiles from left to right, a write.

    Tiles that are SKIP do not occur: they are neither read nor computed.
    """
    steps = []
    for query_block, row in enumerate(table.tolist()):
        steps += [
            TileStep(query_block, key_block, state)
            for key_block, state in enumerate(row)
            if state != SKIP
        ]
        steps.append(TileStep(query_block, None, FULL))
    return steps
