"""Which tile a kernel works with, by the widths of the rows and the chip."""

import torch
import triton.language as tl
from attnlib.kernels.launch import shared_memory_of
from torch import Tensor

# By kernel and bytes a number: least shared memory of the chip, widest row, then query block, key
# block, warps, stages. The first line that suits counts.
Tiles = dict[tuple[str, int], list[tuple[int, ...]]]
INTERPRETED_TILE = (128, 64, 4, 2)  # the interpreter's cost is per operation, not per number


def tile(
    tiles: Tiles,
    kernel: str,
    width: int,
    value_width: int,
    dtype: torch.dtype,
    shared_memory: int | None,
) -> dict:
    """The compile-time choices for one of the kernels of the table, by the widths and the chip.

    `shared_memory` is what a program may use there, in bytes; None is the interpreter.
    Raises ValueError where no tile fits.
    """
    wider = max(width, value_width)
    if shared_memory is None:
        suitable = [INTERPRETED_TILE]
    else:
        suitable = [
            choices
            for least, widest, *choices in tiles[kernel, dtype.itemsize]
            if shared_memory >= least and wider <= widest
        ]
    if not suitable:
        raise ValueError(
            f"no tile of {wider} columns of {str(dtype).removeprefix('torch.')} "
            f"fits a chip with {shared_memory} bytes of shared memory a program ({kernel}); "
            "use the PyTorch form"
        )
    names = ("query_block_size", "key_block_size", "num_warps", "num_stages")
    arithmetic = tl.float64 if dtype == torch.float64 else tl.float32
    return {"arithmetic": arithmetic} | dict(zip(names, suitable[0], strict=True))


def tile_for(tiles: Tiles, kernel: str, query: Tensor, value: Tensor) -> dict:
    """The tile of one of the kernels for these tensors on the device that holds them."""
    memory = shared_memory_of(query.device)
    return tile(tiles, kernel, query.shape[-1], value.shape[-1], query.dtype, memory)


def fits(
    tiles: Tiles, width: int, value_width: int, dtype: torch.dtype, shared_memory: int | None
) -> bool:
    """Whether every kernel of the table has a tile for these widths on a chip with this memory."""
    try:
        for kernel in {kernel for kernel, _ in tiles}:
            tile(tiles, kernel, width, value_width, dtype, shared_memory)
    except ValueError:
        return False
    return True
