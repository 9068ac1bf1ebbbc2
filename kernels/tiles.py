"""What all attention kernels of this folder share: rows become tiles, tiles are multiplied.

Words of these files. Queries are rows, keys are columns. A *block* is a stretch of queries or of
keys; a *tile* is what a query block and a key block have in common in the table of scores, and
also a block of rows as a program holds it. A *program* is one run of a kernel on one part of the
work. `x_ptr` is the address of the first number of x, `x_steps` how far apart its batch entries,
heads and rows lie, in numbers. `present` says which rows of a block exist and may be read.
`arithmetic` is the dtype in which sums are kept.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = tl.constexpr(math.log2(math.e))


@triton.constexpr_function
def padded(width):
    """Tiles have a power of two of columns, at least 16: what a matrix unit takes."""
    return max(16, triton.next_power_of_2(width))


@triton.jit
def my_query_block(query_count, heads, block_size: tl.constexpr):
    """Where the block of this program starts, its batch entry and its head.

    The last blocks of a head come first: under the causal rule they see the most keys.
    """
    block_count = tl.cdiv(query_count, block_size)
    block = block_count - 1 - tl.program_id(0) % block_count
    batch_and_head = tl.program_id(0) // block_count
    return block * block_size, batch_and_head // heads, batch_and_head % heads


@triton.jit
def my_key_block(key_count, key_heads, block_size: tl.constexpr):
    """The same for a block of keys: where it starts, its batch entry and its key head.

    In order: under the causal rule the first keys are seen by the most queries.
    """
    block_count = tl.cdiv(key_count, block_size)
    start = tl.program_id(0) % block_count * block_size
    batch_and_head = tl.program_id(0) // block_count
    return start, batch_and_head // key_heads, batch_and_head % key_heads


@triton.jit
def head_at(ptr, steps, batch, head):
    """Where the rows of one head start."""
    return ptr + batch.to(tl.int64) * steps[0] + head.to(tl.int64) * steps[1]


@triton.jit
def places(ptr, start, row_step, present, width: tl.constexpr):
    """Addresses of the rows start, start + 1, ..., and which of them belong to the tensor."""
    rows = tl.arange(0, present.shape[0])[:, None]
    columns = tl.arange(0, padded(width))[None, :]
    inside = present[:, None]
    if width < padded(width):
        inside = inside & (columns < width)
    return ptr + tl.cast(start, tl.int64) * row_step + (rows * row_step + columns), inside


@triton.jit
def load_rows(ptr, start, row_step, present, width: tl.constexpr):
    """Rows as a tile: zero where a row is not present, and in the padding."""
    address, inside = places(ptr, start, row_step, present, width)
    return tl.load(address, mask=inside, other=0.0)


@triton.jit
def store_rows(ptr, start, tile, present, width: tl.constexpr):
    """Write the rows of a tile that are present, one after the other."""
    address, inside = places(ptr, start, width, present, width)
    tl.store(address, tile.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def rows_present(mask_ptr, rows, count, partial: tl.constexpr):
    """Which rows of a block there are to read: inside the tensor, and not hidden by the mask."""
    present = tl.full(rows.shape, True, tl.int1)
    if partial:
        present = rows < count
    if mask_ptr is not None:
        present = tl.load(mask_ptr + rows, mask=present, other=0) != 0
    return present


@triton.jit
def product(left, right):
    """left @ right; float32 in full precision, not rounded to the 10 bits of tf32."""
    return tl.dot(left, right, input_precision="ieee")


@triton.jit
def finite(maximum):
    """What exponentials are taken relative to: the maximum, or 0 where no key has been seen."""
    return tl.where(maximum == -float("inf"), 0.0, maximum)


def batch_and_heads(tensor: Tensor) -> Tensor:
    """(..., H, N, D) as (B, H, N, D): a view where the batch axes fold into one."""
    heads = tensor.shape[-3] if tensor.dim() > 2 else 1
    return tensor.reshape(math.prod(tensor.shape[:-3]), heads, *tensor.shape[-2:])


def arithmetic_of(dtype: torch.dtype) -> torch.dtype:
    """What is summed in: float64 for float64, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32
