"""What the kernels of the delta rule share: decays of a chunk, the inverse of a triangle, tiles.

All else that has to do with chunks and states is that of linear attention: `linear_states.py`.
"""

import triton
import triton.language as tl
from attnlib.kernels.launch import shared_memory_of
from attnlib.kernels.linear_states import load_behind, load_log_decay, renamed
from attnlib.kernels.tile_choice import tile
from attnlib.kernels.tiles import product
from torch import Tensor


@triton.jit
def my_columns(heads, value_width: tl.constexpr, value_part: tl.constexpr):
    """The first value channel of the columns of the state that this program holds, batch, head."""
    parts = tl.cdiv(value_width, value_part)
    part, batch_and_head = tl.program_id(0) % parts, tl.program_id(0) // parts
    return part * value_part, batch_and_head // heads, batch_and_head % heads


@triton.jit
def decays_of_chunk(
    log_decay_ptr,
    start,
    steps,
    token_count,
    chunk_size: tl.constexpr,
    arithmetic: tl.constexpr,
):
    """What is left at token t of the state at the start, at the end of token t, and of the start.

    e^{c_t} (C,), e^{z_t} (C,) and e^T; all ones where there is no decay.
    """
    from_start = tl.full([chunk_size], 1.0, arithmetic)
    to_end = tl.full([chunk_size], 1.0, arithmetic)
    whole = tl.full([], 1.0, arithmetic)
    if log_decay_ptr is not None:
        present = start + tl.arange(0, chunk_size) < token_count
        log_decay = load_log_decay(log_decay_ptr, start, steps[2], present, arithmetic)
        behind = load_behind(log_decay_ptr, start, steps[2], token_count, 0, 1, 1, chunk_size)
        from_start = tl.exp(tl.cumsum(log_decay, 0))
        to_end = tl.exp(tl.cumsum(tl.sum(behind.to(arithmetic), 1), 0, reverse=True))
        whole = tl.exp(tl.sum(log_decay, 0))
    return from_start, to_end, whole


@triton.jit
def inverse_of_unit_lower(below_diagonal, count):
    """(I + A)^-1 of a strictly lower triangular A (C x C), by forward substitution.

    Row i of the inverse is row i of I minus sum_j A_ij (row j); the rows j < i are ready. Rows from
    `count` on are those of I.

    The product (I - A)(I + A^2)(I + A^4) ... is the same matrix in fewer steps. But its powers grow
    beyond what later factors can cancel: with equal keys and b = 2 no digit of a float32 is right.
    """
    rows = tl.arange(0, below_diagonal.shape[0])[:, None]
    columns = tl.arange(0, below_diagonal.shape[0])[None, :]
    inverse = tl.where(rows == columns, 1.0, 0.0).to(below_diagonal.dtype)
    for i in range(1, count):
        factors = tl.sum(tl.where(rows == i, below_diagonal, 0.0), 0)  # A_ij, one for each row j
        known = tl.sum(factors[:, None] * inverse, 0)
        inverse = tl.where(rows == i, inverse - known[None, :], inverse)
    return inverse


@triton.jit
def product_in_two(left, right):
    """left @ right for a left in float32, beside a right of 16 bits: little of left is lost.

    Left is what 16 bits hold of it plus the rest, and each part is one product. X needs this: for
    equal keys and b near 2 its rows hold many numbers near 2, all rounded to the same side.
    """
    rounded = left.to(right.dtype)
    result = product(rounded, right)
    if left.dtype != right.dtype:
        result += product((left - rounded.to(left.dtype)).to(right.dtype), right)
    return result


def choices_for(name: str, kernel, key: Tensor, value: Tensor) -> dict:
    """The compile-time choices of one of the kernels for these tensors, on their device."""
    memory = shared_memory_of(key.device)
    return choices_of(name, kernel, key.shape[-1], value.shape[-1], key.dtype, memory)


def choices_of(name: str, kernel, width, value_width, dtype, shared_memory) -> dict:
    """The same by widths, dtype and shared memory: a chunk, and the parts that this kernel has."""
    choices = tile(TILES, name, width, value_width, dtype, shared_memory)
    choices = renamed(choices, width, value_width)
    takes = (*kernel.arg_names, "num_warps", "num_stages")
    return {name: choice for name, choice in choices.items() if name in takes}


# As `tile_choice` reads them, with a chunk for a query block and a part for a key block. Reads and
# part of the gradients are made by the kernels of linear attention: a dtype has the same chunk here
# and there, on all chips.
TILES = {
    ("inverse", 2): [(101_376, 256, 64, 64, 4, 1)],
    ("state", 2): [(101_376, 128, 64, 32, 8, 2), (101_376, 256, 64, 16, 8, 1)],
    ("write gradient", 2): [(101_376, 256, 64, 64, 4, 2)],
    ("state gradient", 2): [
        (232_448, 128, 64, 32, 8, 2),
        (101_376, 64, 64, 32, 8, 1),
        (166_912, 128, 64, 32, 8, 2),
        (101_376, 128, 64, 32, 8, 1),
        (101_376, 256, 64, 16, 8, 1),
    ],
    ("question gradient", 2): [(232_448, 256, 64, 64, 8, 2), (101_376, 256, 64, 32, 8, 2)],
    ("inverse", 4): [(101_376, 256, 32, 32, 4, 1)],
    ("state", 4): [(101_376, 64, 32, 32, 8, 1), (101_376, 256, 32, 16, 16, 1)],
    ("write gradient", 4): [(101_376, 256, 32, 32, 4, 1)],
    ("state gradient", 4): [(101_376, 64, 32, 32, 8, 1), (101_376, 256, 32, 16, 16, 1)],
    ("question gradient", 4): [(101_376, 256, 32, 16, 8, 1)],
    ("inverse", 8): [(101_376, 256, 32, 32, 8, 1)],
    ("state", 8): [(101_376, 256, 32, 16, 8, 1)],
    ("write gradient", 8): [(101_376, 256, 32, 32, 8, 1)],
    ("state gradient", 8): [(101_376, 256, 32, 16, 8, 1)],
    ("question gradient", 8): [(101_376, 256, 32, 16, 8, 1)],
}
