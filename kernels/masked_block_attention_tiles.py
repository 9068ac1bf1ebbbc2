"""How a kernel walks over a list of full and partial tiles, and reads the masks of the partial.

A list of block_sparse_tiles.py ascends, and the edges of a band lie in it. A list of
tiled_support.py has its full tiles first and its partial ones after them:

    listed blocks     1 2 3 5 | 0 6 8
                       full   partial, each with the number of its mask

Then the four edges need no search: no tile is partial before the full ones, and the full ones start
at entry 0. `listed_start` and `listed_count` walk such a list unchanged.
"""

import torch
import triton
import triton.language as tl
from attnlib.kernels.bands import tile_start
from attnlib.kernels.block_sparse_tiles import TILES as BLOCK_SPARSE_TILES
from attnlib.kernels.block_sparse_tiles import within_block
from attnlib.kernels.launch import shared_memory_of
from attnlib.kernels.tile_choice import tile
from attnlib.kernels.tiles import head_at
from torch import Tensor


@triton.jit
def lists_of_block(list_ptr, mask_list_ptr, count_ptr, list_steps, count_steps, batch, head, block):
    """Where the list of a block and that of its masks start, and its edges as entry numbers."""
    count_ptr = head_at(count_ptr, count_steps, batch, head) + block.to(tl.int64) * count_steps[2]
    list_ptr = head_at(list_ptr, list_steps, batch, head) + block.to(tl.int64) * list_steps[2]
    mask_list_ptr = head_at(mask_list_ptr, list_steps, batch, head)
    mask_list_ptr += block.to(tl.int64) * list_steps[2]
    entries = 0, 0, tl.load(count_ptr), tl.load(count_ptr + 1)
    return list_ptr, mask_list_ptr, entries


@triton.jit
def mask_number(mask_list_ptr, entries, number, tiles_a_block: tl.constexpr):
    """The number of the mask of the partial tile of this number."""
    entry = tile_start(entries, number // tiles_a_block, 1, True)
    return tl.load(mask_list_ptr + entry, mask=entry < entries[3], other=0)


@triton.jit
def marked_only(
    scores,
    mask_ptr,
    number,
    queries,
    keys,
    key_start,
    key_block_size: tl.constexpr,
    queries_a_block: tl.constexpr,
    keys_a_block: tl.constexpr,
):
    """The scores, minus infinity where the bit of the pair is not set in the mask of this number.

    The words of 32 keys lie one after the other, query by query. So a tile loads one word a query
    for every 32 keys, and each word hides some of its own keys.
    """
    words: tl.constexpr = (keys_a_block + 31) // 32
    column = key_start % keys_a_block
    first_word = number.to(tl.int64) * words + column // 32
    word_ptr = (mask_ptr + first_word * queries_a_block) + queries % queries_a_block
    bit = keys - key_start
    for later in tl.static_range((key_block_size + 31) // 32):
        word = tl.load(word_ptr + later * queries_a_block) >> (column % 32)
        hidden = (word >> (bit % 32)) & 1 == 0
        scores = tl.where((bit // 32 == later) & hidden, -float("inf"), scores)
    return scores


def problem(query: Tensor, key: Tensor, value: Tensor, support, lists, scale: float) -> dict:
    """What all three kernels are told of the layout and the support; they walk the `lists`."""
    batch, heads, queries, width = query.shape
    blocks, counts, masks = (tensor.expand(batch, heads, -1, -1) for tensor in lists)
    return {
        "list_ptr": blocks,
        "mask_list_ptr": masks,
        "count_ptr": counts,
        "mask_ptr": support.masks,
        "query_steps": query.stride()[:3],
        "key_steps": key.stride()[:3],
        "value_steps": value.stride()[:3],
        "list_steps": blocks.stride()[:3],
        "count_steps": counts.stride()[:3],
        "counts": (queries, key.shape[2], heads, key.shape[1]),
        "scale": scale,
        "width": width,
        "value_width": value.shape[3],
        "queries_a_block": support.block_size[0],
        "keys_a_block": support.block_size[1],
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


# The tiles of block-sparse attention, but two: there the bits take the last registers.
TILES = BLOCK_SPARSE_TILES | {
    ("forward", 2): [
        (232_448, 64, 128, 128, 8, 3),
        (232_448, 128, 128, 64, 8, 3),
        *BLOCK_SPARSE_TILES["forward", 2][1:],
    ],
    ("key gradient", 4): [
        (232_448, 64, 32, 32, 8, 1),
        (101_376, 64, 32, 16, 8, 1),
        (101_376, 256, 16, 16, 8, 1),
    ],
}
