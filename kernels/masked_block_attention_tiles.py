"""How a kernel walks over a list of full and partial tiles, and reads the masks of the partial.

A list of block_sparse_tiles.py ascends, and the edges of a band lie in it. A list of
tiled_support.py has its full tiles first and its partial ones after them:

    listed blocks     1 2 3 5 | 0 6 8
                       full   partial, each with the number of its mask

Then the four edges need no search: no tile is partial before the full ones, and the full ones start
at entry 0. `listed_start` and `listed_count` walk such a list unchanged.
"""

import triton
import triton.language as tl
from attnlib.kernels.bands import tile_start
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
    queries_a_block: tl.constexpr,
    keys_a_block: tl.constexpr,
):
    """The scores, minus infinity where the bit of the pair is not set in the mask of the tile."""
    words: tl.constexpr = (keys_a_block + 31) // 32
    mask_ptr += number.to(tl.int64) * (queries_a_block * words)
    column = keys % keys_a_block
    word = tl.load(mask_ptr + (queries % queries_a_block * words + column // 32))
    return tl.where((word >> (column % 32)) & 1 != 0, scores, -float("inf"))


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
