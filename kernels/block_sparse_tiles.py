"""How a kernel walks over a list of blocks, and which tile it takes on which chip.

A list ascends. So the edges of a band (`bands.py`) lie in it as they lie in a row of tiles: entries
from the first edge to the last are seen by some of the rows, from the second to the third by all:

    listed blocks     0 2 | 3 5 6 8 | 9 | 12
                    partial   full  partial  hidden

`edges_in_list` finds the four edges once a program, as entry numbers. `tile_count` and `tile_start`
of `bands.py` then count entries in place of tiles, a block being one entry: the loop over a list is
the loop over a stretch with one load more.

A *block* is what a list names. A *tile* is what the chip multiplies at once, a block or a part of
one: blocks of 128 x 128 are read in four or eight tiles where a chip holds no larger ones.
"""

import torch
import triton
import triton.language as tl
from attnlib.kernels.bands import tile_count, tile_start
from attnlib.kernels.launch import shared_memory_of
from attnlib.kernels.tile_choice import tile
from attnlib.kernels.tiles import head_at
from torch import Tensor

LISTED_AT_ONCE = tl.constexpr(256)  # list entries that edges_in_list looks at together


@triton.jit
def list_of(list_ptr, list_steps, count_ptr, count_steps, batch, head, block):
    """Where the list of a block starts, and how many entries it has."""
    row_ptr = head_at(list_ptr, list_steps, batch, head) + block.to(tl.int64) * list_steps[2]
    count_ptr = head_at(count_ptr, count_steps, batch, head) + block.to(tl.int64) * count_steps[2]
    return row_ptr, tl.load(count_ptr)


@triton.jit
def edges_in_list(list_ptr, count, edges, block_size: tl.constexpr):
    """The four edges of a band as entry numbers: how many listed blocks start before each."""
    first, full, full_until, last = 0, 0, 0, 0
    for start in range(0, count, LISTED_AT_ONCE):
        entries = start + tl.arange(0, LISTED_AT_ONCE)
        listed = entries < count
        starts = tl.load(list_ptr + entries, mask=listed, other=0) * block_size
        first += tl.sum((listed & (starts < edges[0])).to(tl.int32), 0)
        full += tl.sum((listed & (starts < edges[1])).to(tl.int32), 0)
        full_until += tl.sum((listed & (starts < edges[2])).to(tl.int32), 0)
        last += tl.sum((listed & (starts < edges[3])).to(tl.int32), 0)
    return first, full, full_until, last


@triton.jit
def listed_count(entries, block_size: tl.constexpr, tile_size: tl.constexpr, partial: tl.constexpr):
    """How many tiles the full entries of a list have, or the partial ones."""
    return tile_count(entries, 1, partial) * (block_size // tile_size)


@triton.jit
def listed_start(
    list_ptr,
    entries,
    number,
    block_size: tl.constexpr,
    tile_size: tl.constexpr,
    partial: tl.constexpr,
):
    """Where tile `number` of the full entries starts, or of the partial ones; 0 after the last.

    A loop asks one tile ahead. The place of a tile is then known when its rows are to be copied
    ahead; else the compiler copies the list ahead too, and has one stage less for the rows.
    """
    tiles_a_block: tl.constexpr = block_size // tile_size
    entry = tile_start(entries, number // tiles_a_block, 1, partial)
    block = tl.load(list_ptr + entry, mask=entry < entries[3], other=0)
    return block * block_size + number % tiles_a_block * tile_size


def problem(query, key, value, lists, block_size, band, scale) -> dict:
    """What all three kernels are told of the layout and the support."""
    return {
        "query_steps": query.stride()[:3],
        "key_steps": key.stride()[:3],
        "value_steps": value.stride()[:3],
        "list_steps": lists[0].stride()[:3],
        "count_steps": lists[1].stride()[:3],
        "counts": (query.shape[2], key.shape[2], query.shape[1], key.shape[1]),
        "band": band,
        "scale": scale,
        "width": query.shape[3],
        "value_width": value.shape[3],
        "queries_a_block": block_size[0],
        "keys_a_block": block_size[1],
    }


def tile_for(kernel: str, query: Tensor, value: Tensor, block_size: tuple[int, int]) -> dict:
    """The tile of one of the kernels for these tensors on the device that holds them."""
    memory = shared_memory_of(query.device)
    return tile_within(kernel, query.shape[-1], value.shape[-1], query.dtype, memory, block_size)


def tile_within(
    kernel: str,
    width: int,
    value_width: int,
    dtype: torch.dtype,
    shared_memory: int | None,
    block_size: tuple[int, int],
) -> dict:
    """What `tile_choice.tile` says for the chip, but no larger than a block of the list."""
    choices = tile(TILES, kernel, width, value_width, dtype, shared_memory)
    return within_block(choices, kernel, max(width, value_width), block_size)


def within_block(choices: dict, kernel: str, width: int, block_size: tuple[int, int]) -> dict:
    """The choices with a tile no larger than a block of the list.

    A tile that is cut takes four warps where what it holds suits them: 64 rows of 128 sums. The
    key gradient holds two sums and two tiles of weights a row, so it counts four times.
    """
    most = choices["query_block_size"], choices["key_block_size"]
    queries, keys = (min(sizes) for sizes in zip(most, block_size, strict=True))
    sums = (4 * keys if kernel == "key gradient" else queries) * width
    if (queries, keys) != most and sums <= 64 * 128:
        choices["num_warps"] = 4
    return choices | {"query_block_size": queries, "key_block_size": keys}


# As `tile_choice` reads them. Those for 2 bytes a number are the largest tried that spill no
# registers when compiled for Hopper (232,448) and Ampere (101,376).
TILES = {
    ("forward", 2): [
        (232_448, 128, 128, 128, 8, 3),
        (232_448, 256, 128, 32, 8, 2),
        (101_376, 64, 128, 64, 8, 3),
        (101_376, 128, 128, 32, 8, 2),
        (101_376, 256, 64, 32, 8, 2),
    ],
    ("query gradient", 2): [
        (232_448, 64, 128, 64, 8, 3),
        (232_448, 128, 128, 64, 8, 2),
        (232_448, 256, 128, 32, 8, 2),
        (101_376, 64, 128, 64, 8, 3),
        (101_376, 128, 128, 32, 8, 2),
        (101_376, 256, 32, 32, 4, 2),
    ],
    ("key gradient", 2): [
        (232_448, 64, 64, 128, 8, 3),
        (232_448, 128, 32, 128, 8, 2),
        (101_376, 64, 32, 128, 8, 2),
        (101_376, 128, 32, 64, 8, 2),
        (101_376, 256, 32, 32, 8, 2),
    ],
    ("forward", 4): [(101_376, 64, 64, 32, 8, 2), (101_376, 256, 16, 16, 4, 1)],
    ("query gradient", 4): [(101_376, 64, 64, 32, 8, 2), (101_376, 256, 16, 16, 8, 1)],
    ("key gradient", 4): [(101_376, 64, 32, 32, 8, 1), (101_376, 256, 16, 16, 8, 1)],
    ("forward", 8): [(101_376, 64, 32, 32, 4, 1), (101_376, 256, 16, 16, 4, 1)],
    ("query gradient", 8): [(101_376, 64, 32, 32, 4, 1), (166_912, 256, 16, 16, 8, 1)],
    ("key gradient", 8): [(101_376, 64, 32, 32, 8, 1), (166_912, 256, 16, 16, 8, 1)],
}
