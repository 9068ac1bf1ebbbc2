"""Decoding as two kernels: a few new queries read a long cache in parts, and the parts merge.

The equation. Cut the M keys of a cache into parts. Part p leaves three numbers for each query,

    m_p = max_{j in p} s_j                       with s_j = scale q . k_j
    l_p = sum_{j in p} exp(s_j - m_p)
    o_p = sum_{j in p} exp(s_j - m_p) v_j

and from the parts follows the read of all keys:

    m = max_p m_p             o = sum_p exp(m_p - m) o_p  /  sum_p exp(m_p - m) l_p

A part without keys has m_p = -infinity and two zeros, and adds nothing.

The picture. A new token brings one query a head, so there are no query blocks to share out among
processors. What is long is the cache: split it across.

    keys     0 ........ | ........ | ........ | .... M     one program a part
    queries  (m, l, o)_0  (m, l, o)_1  (m, l, o)_2  ...    one program a row merges them

What one program does. The first kernel: one part of one key head of one batch entry, for the
queries of all heads that share this key head, row under row (group * N of them, padded to 16, the
least that a matrix unit takes). It walks over the key blocks of its part with a running maximum
and writes (m, l, o) of each row. The second kernel: one row, all its parts at once.

What it moves: with b bytes a number, every key and value once, b M (D + E) for each key head. The
queries, the reads and the parts, 4 (2 + E) bytes a row and part, are small beside it.

What it computes: two products of 2 M D operations for each query (D = E), so 2 N * group / b
operations a byte: 4 for one token, four heads a group and bfloat16.

The bound: an H200 multiplies 184 bfloat16 numbers in the time in which it copies one byte. So
bytes decide, and decoding is as fast as the cache can be read, if enough programs ask for it at
once: `splits_to_fill` chooses the number of parts.

Source: Dao et al., "Flash-Decoding for long-context inference", 2023; the merge is that of
Milakov and Gimelshein, 2018.
"""

import math

import torch
import triton
import triton.language as tl
from attnlib.kernels.launch import (
    check_attention,
    check_device,
    check_scale,
    check_whole,
    on_device_of,
    readable,
)
from attnlib.kernels.tiles import arithmetic_of, batch_and_heads, finite, padded, product
from torch import Tensor

LARGEST_SPLITS = 128  # one program of the second kernel holds all parts of a row
LARGEST_ROW_BLOCK = 32  # of queries; a decoding step rarely has more
LEAST_KEYS_OF_A_PART = 256
PROGRAMS_PER_PROCESSOR = 4  # while one waits for memory another computes
BYTES_OF_A_BLOCK = 2**15  # keys and values of one block; three in flight fit every chip


def split_decode(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    query_offset: int | None = None,
    lengths: Tensor | None = None,
    scale: float | None = None,
    splits: int | None = None,
) -> Tensor:
    """Causal softmax attention of the newest queries against a cache, in parts.

    Shapes: query (..., H, N, D), key (..., Hkv, M, D), value (..., Hkv, M, E), widths 1 to 256, any
    number of batch axes; (N, D), (M, D), (M, E) is one head. H is a multiple of Hkv, and query
    head h reads key head h // (H / Hkv). The numbers of a row must be adjacent; all other strides
    are free, so a cache may be a view of a longer one.

    Query i sees keys j <= i + query_offset, by default M - N, so that the last query sees all.
    `lengths` (batch,), int32 or int64, says how many rows of each cache are filled: then M is
    lengths[b], and rows beyond are never read. A query that sees no key reads zero.
    Products of float32 are not rounded to tf32. float16 and bfloat16 are summed in float32.

    Cost: time N M (D + E) a head; every key and value is read once for all queries of its group
    while group * N is at most 32 (float32 and float64: 16). Looking at `lengths` makes the host
    wait for the GPU.

    Raises TypeError for a wrong dtype; ValueError for shapes that do not fit, lengths outside the
    cache, more than 128 splits, a device that cannot run kernels, and for tensors that require a
    gradient: decoding has no backward pass.
    """
    check_attention(query, key, value)
    check_scale(scale)
    check_no_gradient(query=query, key=key, value=value)
    if query_offset is not None:
        check_whole("query_offset", query_offset, least=0)
    if splits is not None:
        check_splits(splits)
    tensors = {"query": query, "key": key, "value": value}
    if lengths is not None:
        tensors["lengths"] = lengths
        check_lengths(lengths, key)
    check_device(part_kernel, **tensors)
    if query.shape[:-1].numel() == 0:
        return query.new_zeros(*query.shape[:-1], value.shape[-1])
    parts = partial_reads(query, key, value, query_offset, lengths, scale, splits)
    read = merged(*parts, dtype=readable(merge_kernel, query).dtype)
    return read.to(query.dtype).view(*query.shape[:-1], value.shape[-1])


@triton.jit
def load_rows(row_ptrs, present, width: tl.constexpr):
    """The rows that begin at these pointers, as a tile: zero where not present and in padding."""
    columns = tl.arange(0, padded(width))
    inside = present[:, None]
    if width < padded(width):
        inside = inside & (columns < width)[None, :]
    return tl.load(row_ptrs[:, None] + columns[None, :], mask=inside, other=0.0)


@triton.jit
def part_of(split, splits, seen_keys, key_block_size: tl.constexpr):
    """First key of this part and first key behind it: whole blocks, shared out evenly."""
    size = tl.cdiv(tl.cdiv(seen_keys, key_block_size), splits) * key_block_size
    return tl.minimum(split * size, seen_keys), tl.minimum((split + 1) * size, seen_keys)


@triton.jit
def part_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    lengths_ptr,
    max_ptr,
    total_ptr,
    read_ptr,
    query_steps,
    key_steps,
    value_steps,
    counts,
    query_offset,
    scale: tl.constexpr,
    width: tl.constexpr,
    value_width: tl.constexpr,
    arithmetic: tl.constexpr,
    row_block_size: tl.constexpr,
    key_block_size: tl.constexpr,
):
    query_count, key_count, group, key_heads = counts
    split, splits = tl.program_id(0), tl.num_programs(0)
    batch = (tl.program_id(1) // key_heads).to(tl.int64)
    key_head = (tl.program_id(1) % key_heads).to(tl.int64)
    key_ptr += batch * key_steps[0] + key_head * key_steps[1]
    value_ptr += batch * value_steps[0] + key_head * value_steps[1]

    length = key_count
    if lengths_ptr is not None:
        length = tl.load(lengths_ptr + batch).to(tl.int32)
    offset = query_offset
    if query_offset is None:
        offset = length - query_count

    # The rows: query 0, 1, ... of the first head of the group, then of the second, ...
    rows = tl.program_id(2) * row_block_size + tl.arange(0, row_block_size)
    row_present = rows < group * query_count
    query = rows % query_count
    head = key_head * group + rows // query_count
    query_rows = query_ptr + batch * query_steps[0] + head * query_steps[1] + query * query_steps[2]
    query_block = load_rows(query_rows, row_present, width)

    running_max = tl.full([row_block_size], -float("inf"), arithmetic)
    running_total = tl.zeros([row_block_size], arithmetic)
    accumulator = tl.zeros([row_block_size, padded(value_width)], arithmetic)
    seen_keys = tl.maximum(tl.minimum(length, offset + query_count), 0)
    first, stop = part_of(split, splits, seen_keys, key_block_size)
    for key_start in range(first, stop, key_block_size):
        keys = key_start + tl.arange(0, key_block_size)
        present = keys < stop
        key_block = load_rows(key_ptr + keys.to(tl.int64) * key_steps[2], present, width)
        scores = product(query_block, tl.trans(key_block)) * scale
        seen = present[None, :] & (keys[None, :] <= (query + offset)[:, None])
        scores = tl.where(seen, scores, -float("inf"))

        new_max = tl.maximum(running_max, tl.max(scores, 1))
        weights = tl.exp(scores - finite(new_max)[:, None])
        shrink = tl.exp(running_max - finite(new_max))
        running_total = running_total * shrink + tl.sum(weights, 1)
        value_rows = value_ptr + keys.to(tl.int64) * value_steps[2]
        value_block = load_rows(value_rows, present, value_width)
        accumulator = accumulator * shrink[:, None]
        accumulator += product(weights.to(value_block.dtype), value_block)
        running_max = new_max

    # Written as (batch, head, query, split): the parts of a row lie next to each other.
    place = (tl.program_id(1).to(tl.int64) * group * query_count + rows) * splits + split
    columns = tl.arange(0, padded(value_width))
    tl.store(max_ptr + place, running_max, mask=row_present)
    tl.store(total_ptr + place, running_total, mask=row_present)
    tl.store(
        read_ptr + place[:, None] * value_width + columns[None, :],
        accumulator,
        mask=row_present[:, None] & (columns < value_width)[None, :],
    )


@triton.jit
def merge_kernel(
    max_ptr,
    total_ptr,
    read_ptr,
    merged_ptr,
    splits,
    value_width: tl.constexpr,
    split_block_size: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    parts = tl.arange(0, split_block_size)
    columns = tl.arange(0, padded(value_width))
    present, inside = parts < splits, columns < value_width

    part_max = tl.load(max_ptr + row * splits + parts, mask=present, other=-float("inf"))
    part_total = tl.load(total_ptr + row * splits + parts, mask=present, other=0.0)
    part_read = tl.load(
        read_ptr + (row * splits + parts)[:, None] * value_width + columns[None, :],
        mask=present[:, None] & inside[None, :],
        other=0.0,
    )
    shrink = tl.exp(part_max - finite(tl.max(part_max, 0)))
    total = tl.sum(part_total * shrink, 0)
    read = tl.sum(part_read * shrink[:, None], 0)
    read = read / tl.where(total == 0.0, 1.0, total)  # no key at all: 0 / 1
    tl.store(merged_ptr + row * value_width + columns, read, mask=inside)


def partial_reads(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_offset: int | None = None,
    lengths: Tensor | None = None,
    scale: float | None = None,
    splits: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(m, l, o) of every row and part: (rows, splits), (rows, splits), (rows, splits, E).

    Rows are numbered through (batch, head, query). In float32, in float64 for float64.
    """
    query, key, value = (batch_and_heads(readable(part_kernel, x)) for x in (query, key, value))
    batch, heads, queries, width = query.shape
    key_heads, keys, value_width = value.shape[1:]
    group = heads // key_heads
    choices = tile(group * queries, width, value_width, query.dtype)
    row_blocks = triton.cdiv(group * queries, choices["row_block_size"])
    if splits is None:
        programs = batch * key_heads * row_blocks
        splits = splits_to_fill(programs, keys, processors_of(query.device))

    sums = arithmetic_of(query.dtype)
    rows = batch * heads * queries
    highest = torch.empty(rows, splits, dtype=sums, device=query.device)
    total = torch.empty(rows, splits, dtype=sums, device=query.device)
    read = torch.empty(rows, splits, value_width, dtype=sums, device=query.device)
    with on_device_of(query):
        part_kernel[(splits, batch * key_heads, row_blocks)](
            query,
            key,
            value,
            lengths,
            highest,
            total,
            read,
            query.stride()[:3],
            key.stride()[:3],
            value.stride()[:3],
            (queries, keys, group, key_heads),
            query_offset,
            scale=width**-0.5 if scale is None else float(scale),
            width=width,
            value_width=value_width,
            **choices,
        )
    return highest, total, read


def merged(highest: Tensor, total: Tensor, read: Tensor, dtype: torch.dtype) -> Tensor:
    """The finished read of every row, (rows, E): all its parts as one."""
    rows, splits, value_width = read.shape
    result = torch.empty(rows, value_width, dtype=dtype, device=read.device)
    split_block_size = triton.next_power_of_2(splits)
    numbers = split_block_size * triton.next_power_of_2(value_width)
    with on_device_of(read):
        merge_kernel[(rows,)](
            highest,
            total,
            read,
            result,
            splits,
            value_width=value_width,
            split_block_size=split_block_size,
            num_warps=max(1, min(8, numbers // 2048)),
        )
    return result


def tile(rows: int, width: int, value_width: int, dtype: torch.dtype) -> dict:
    """The compile-time choices: arithmetic, rows and keys of a tile, warps, stages of the pipeline.

    A block has as many keys as 32 kilobytes hold, 16 to 128. Full precision is multiplied number
    by number in registers, so its tiles have 16 rows, and so many warps that none are spilled.
    """
    numbers_of_a_key = triton.next_power_of_2(padded(width) + padded(value_width))
    key_block_size = max(16, min(128, BYTES_OF_A_BLOCK // (numbers_of_a_key * dtype.itemsize)))
    full_precision = dtype in (torch.float32, torch.float64)
    return {
        "arithmetic": tl.float64 if dtype == torch.float64 else tl.float32,
        "row_block_size": 16 if full_precision else min(padded(rows), LARGEST_ROW_BLOCK),
        "key_block_size": key_block_size,
        "num_warps": {torch.float64: 8, torch.float32: min(8, key_block_size // 4)}.get(dtype, 4),
        "num_stages": 2 if full_precision else 3,
    }


def splits_to_fill(programs: int, keys: int, processors: int) -> int:
    """How many parts to cut the keys into, if one part alone gives so many programs.

    Enough for every processor to have work while it waits for memory, but no part under 256 keys:
    one query, 8 key heads and 32768 keys on 132 processors make 66 parts of 497 keys.
    """
    wanted = triton.cdiv(PROGRAMS_PER_PROCESSOR * processors, programs)
    worth = triton.cdiv(keys, LEAST_KEYS_OF_A_PART)
    return max(1, min(wanted, worth, LARGEST_SPLITS))


def processors_of(device: torch.device) -> int:
    """How many programs run at the same time on this device: its multiprocessors."""
    if device.type == "cpu":
        return 1  # the interpreter runs one program after the other
    return torch.cuda.get_device_properties(device).multi_processor_count


def check_no_gradient(**tensors: Tensor) -> None:
    """Raise a ValueError where autograd would expect a backward pass."""
    for name, tensor in tensors.items():
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name} requires a gradient, and the decoding kernel has no backward pass: "
                "call it under torch.no_grad(), or use the PyTorch form"
            )


def check_splits(splits: int) -> None:
    """Raise unless `splits` is an int from 1 to the number of parts that one program merges."""
    check_whole("splits", splits, least=1)
    if splits > LARGEST_SPLITS:
        raise ValueError(f"splits must be at most {LARGEST_SPLITS} for the kernel, got {splits}")


def check_lengths(lengths: Tensor, key: Tensor) -> None:
    """Raise unless `lengths` has a whole number for each batch entry, within the rows of key."""
    if not isinstance(lengths, Tensor) or lengths.dtype not in (torch.int32, torch.int64):
        came = lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__
        raise TypeError(f"lengths must be an int32 or int64 tensor, got {came}")
    batch, keys = math.prod(key.shape[:-3]), key.shape[-2]
    if lengths.shape != (batch,):
        raise ValueError(
            f"lengths must have shape ({batch},), one for each batch entry, "
            f"got {tuple(lengths.shape)}"
        )
    if batch and not 0 <= lengths.min() <= lengths.max() <= keys:
        raise ValueError(
            f"lengths must lie between 0 and the {keys} rows of key, got {lengths.tolist()}"
        )
