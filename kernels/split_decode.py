"""Decoding as two kernels: a few new queries read a long cache in parts, and the parts merge.

The equation. Cut the M keys of a cache into parts. Part p leaves three numbers for each query,

    m_p = max_{j in p} s_j                       with s_j = scale q . k_j
    l_p = sum_{j in p} exp(s_j - m_p)
    o_p = sum_{j in p} exp(s_j - m_p) v_j

and from the parts follows the read of all keys:

    m = max_p m_p             o = sum_p exp(m_p - m) o_p  /  sum_p exp(m_p - m) l_p

A part without keys has m_p = -infinity and two zeros, and adds nothing. A head may have a sink
logit a, the score of a key whose value is zero. It is one more part: (a, 1, 0).

The picture. A new token brings one query a head, so there are no query blocks to share out among
processors. What is long is the cache: split it across.

    keys     0 ........ | ........ | ........ | .... M     one program a part
    queries  (m, l, o)_0  (m, l, o)_1  (m, l, o)_2  ...    one program a row merges them

A streaming cache is read at its two ends: the first keys, called sinks, and a window of the last
ones. The blocks between them are taken out before the rest is split, so no program visits them:

    keys     sinks |  . . . not visited . . .  | window .. M

A paged cache is one pool of pages for all sequences, and a table says which page of the pool has
the keys 0 to 63 of a sequence, which the next 64. Only the address of a row changes: see
`page_and_row`. A key block may span several pages or be part of one.

What one program does. The first kernel: one part of one key head of one batch entry, for the
queries of all heads that share this key head, row under row (group * N of them, padded to 16, the
least that a matrix unit takes). It walks over the key blocks of its part with a running maximum
and writes (m, l, o) of each row. The second kernel: one row, all its parts at once.

What it moves: with b bytes a number, every key and value once, b M (D + E) for each key head. The
queries, the reads and the parts, 4 (2 + E) bytes a row and part, are small beside it. With a window
M is sinks + window + N - 1. A page table adds 4 bytes a page: the keys of a page all ask for the
same number, and the chip's cache answers all but the first.

What it computes: two products of 2 M D operations for each query (D = E), so 2 N * group / b
operations a byte: 4 for one token, four heads a group and bfloat16.

The bound: an H200 multiplies 184 bfloat16 numbers in the time in which it copies one byte. So
bytes decide, and decoding is as fast as the cache can be read, if enough programs ask for it at
once: `splits_to_fill` chooses the number of parts.

Sources: Dao et al., "Flash-Decoding for long-context inference", 2023; the merge is that of
Milakov and Gimelshein, 2018. Xiao et al., "Efficient Streaming Language Models with Attention
Sinks", 2024, section 3.2 (sinks and window). Kwon et al., "Efficient Memory Management for Large
Language Model Serving with PagedAttention", 2023, section 4.1 (pages). OpenAI, "gpt-oss-120b &
gpt-oss-20b Model Card", 2025 (a sink logit for each head).
"""

import torch
import triton
import triton.language as tl
from attnlib.kernels.launch import check_device, on_device_of, readable
from attnlib.kernels.split_decode_checks import (
    check_lengths_fit,
    check_no_gradient,
    check_numbers,
    check_page_numbers,
    check_tensors,
    room_of,
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
    sinks: int = 0,
    window: int | None = None,
    pages: Tensor | None = None,
    sink_logit: Tensor | None = None,
    scale: float | None = None,
    splits: int | None = None,
) -> Tensor:
    """Causal softmax attention of the newest queries against a cache, in parts.

    Shapes: query (..., H, N, D), key (..., Hkv, M, D), value (..., Hkv, M, E), widths 1 to 256, any
    number of batch axes; (N, D), (M, D), (M, E) is one head. H is a multiple of Hkv, and query
    head h reads key head h // (H / Hkv). The numbers of a row must be adjacent; all other strides
    are free, so a cache may be a view of a longer one.

    Query i stands at position p = i + query_offset, by default i + M - N, so that the last query
    sees all keys. It sees key j where j <= p; with a `window`, where also j < sinks or
    j > p - window. Without one `sinks` says nothing. `lengths` (batch,), int32 or int64, says how
    many rows of each cache are filled: then M is lengths[b], and rows beyond are never read.
    `sink_logit` (H,), of any dtype: the softmax of head h divides by a sum that exp(sink_logit[h])
    is part of, as if by one more key whose value is zero. A query that sees no key reads zero.

    With `pages`, query is (B, H, N, D), and key and value are pools, (P, Hkv, page_size, D) and
    (P, Hkv, page_size, E), with a page_size of 16, 32, 64, 128 or 256. pages[b, i], int32, is the
    page of the pool that holds keys i * page_size, ... of sequence b; sequences may share pages.
    M is then all that the pages of a sequence have room for, or lengths[b]. The number of a page
    from which no query sees a key (beyond the filling, or between sinks and window) is never
    looked at and may be anything. All others must lie in 0 ... P - 1.

    Products of float32 are not rounded to tf32. float16 and bfloat16 are summed in float32.

    Cost: time N M (D + E) a head; every key and value is read once for all queries of its group
    while group * N is at most 32 (float32 and float64: 16). With a window M is at most
    sinks + window + N - 1. Looking at `lengths`, and at `pages`, makes the host wait for the GPU.

    Raises TypeError for a wrong dtype; ValueError for shapes that do not fit, lengths outside the
    cache, pages outside the pool, more than 128 splits, a device that cannot run kernels, and for
    tensors that require a gradient: decoding has no backward pass.
    """
    check_numbers(query_offset, sinks, window, scale, splits, LARGEST_SPLITS)
    check_tensors(query, key, value, lengths, pages, sink_logit)
    given = {"lengths": lengths, "pages": pages, "sink_logit": sink_logit}
    tensors = {"query": query, "key": key, "value": value}
    tensors |= {name: tensor for name, tensor in given.items() if tensor is not None}
    check_no_gradient(**tensors)
    check_device(part_kernel, **tensors)
    seen = {"query_offset": query_offset, "lengths": lengths, "sinks": sinks, "window": window}
    if lengths is not None:
        check_lengths_fit(lengths, room_of(query, key, pages)[1])
    if query.shape[:-1].numel() == 0:
        return query.new_zeros(*query.shape[:-1], value.shape[-1])
    if pages is not None:
        check_page_numbers(query, key, pages, **seen)
    parts = partial_reads(query, key, value, pages=pages, scale=scale, splits=splits, **seen)
    read = merged(*parts, readable(merge_kernel, query).dtype, sink_logit, query.shape[-2])
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
def page_and_row(keys, present, batch, pages_ptr, page_steps, page_size: tl.constexpr):
    """Where each key lies: its page, and its row there. Without a table a sequence is one page."""
    if pages_ptr is None:
        page, row = batch, keys
    else:
        entry = batch * page_steps[0] + keys // page_size * page_steps[1]
        page, row = tl.load(pages_ptr + entry, mask=present, other=0), keys % page_size
    return page.to(tl.int64), row.to(tl.int64)


@triton.jit
def sinks_and_window(seen, keys, position, sinks, window):
    """Of the keys that are seen, those that a window at this position leaves."""
    if window is not None:
        seen = seen & ((keys < sinks) | (keys > position - window))
    return seen


@triton.jit
def gap_of(seen_keys, position, sinks, window, key_block_size: tl.constexpr):
    """Whole blocks between the sinks and the window of the first query: their start and length."""
    start, length = 0, 0
    if window is not None:
        start = tl.cdiv(tl.minimum(sinks, seen_keys), key_block_size) * key_block_size
        window_start = tl.minimum(tl.maximum(position - window + 1, 0), seen_keys)
        length = tl.maximum(window_start // key_block_size * key_block_size - start, 0)
    return start, length


@triton.jit
def part_of(split, splits, listed_keys, key_block_size: tl.constexpr):
    """First key of this part and first key behind it: whole blocks, shared out evenly."""
    size = tl.cdiv(tl.cdiv(listed_keys, key_block_size), splits) * key_block_size
    return tl.minimum(split * size, listed_keys), tl.minimum((split + 1) * size, listed_keys)


@triton.jit
def part_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    lengths_ptr,
    pages_ptr,
    max_ptr,
    total_ptr,
    read_ptr,
    query_steps,
    key_steps,
    value_steps,
    page_steps,
    counts,
    query_offset,
    sinks,
    window,
    scale: tl.constexpr,
    width: tl.constexpr,
    value_width: tl.constexpr,
    page_size: tl.constexpr,
    arithmetic: tl.constexpr,
    row_block_size: tl.constexpr,
    key_block_size: tl.constexpr,
):
    query_count, key_count, group, key_heads = counts
    split, splits = tl.program_id(0), tl.num_programs(0)
    batch = (tl.program_id(1) // key_heads).to(tl.int64)
    key_head = (tl.program_id(1) % key_heads).to(tl.int64)
    key_ptr += key_head * key_steps[1]
    value_ptr += key_head * value_steps[1]

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
    position = (query + offset)[:, None]

    running_max = tl.full([row_block_size], -float("inf"), arithmetic)
    running_total = tl.zeros([row_block_size], arithmetic)
    accumulator = tl.zeros([row_block_size, padded(value_width)], arithmetic)
    seen_keys = tl.maximum(tl.minimum(length, offset + query_count), 0)
    # The blocks to read are one list: those up to the gap, then those behind it.
    gap_start, gap = gap_of(seen_keys, offset, sinks, window, key_block_size)
    first, stop = part_of(split, splits, seen_keys - gap, key_block_size)
    for listed in range(first, stop, key_block_size):
        key_start = listed + tl.where(listed < gap_start, 0, gap)
        keys = key_start + tl.arange(0, key_block_size)
        present = sinks_and_window(keys < seen_keys, keys, offset, sinks, window)
        page, row = page_and_row(keys, present, batch, pages_ptr, page_steps, page_size)
        key_rows = key_ptr + page * key_steps[0] + row * key_steps[2]
        key_block = load_rows(key_rows, present, width)
        scores = product(query_block, tl.trans(key_block)) * scale
        seen = present[None, :] & (keys[None, :] <= position)
        seen = sinks_and_window(seen, keys[None, :], position, sinks, window)
        scores = tl.where(seen, scores, -float("inf"))

        new_max = tl.maximum(running_max, tl.max(scores, 1))
        weights = tl.exp(scores - finite(new_max)[:, None])
        shrink = tl.exp(running_max - finite(new_max))
        running_total = running_total * shrink + tl.sum(weights, 1)
        value_rows = value_ptr + page * value_steps[0] + row * value_steps[2]
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
    sink_logit_ptr,
    merged_ptr,
    splits,
    counts,
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
    sink_logit = -float("inf")
    if sink_logit_ptr is not None:
        query_count, heads = counts
        head = row // query_count % heads
        sink_logit = tl.load(sink_logit_ptr + head).to(part_max.dtype)

    highest = finite(tl.maximum(tl.max(part_max, 0), sink_logit))
    shrink = tl.exp(part_max - highest)
    total = tl.sum(part_total * shrink, 0) + tl.exp(sink_logit - highest)
    read = tl.sum(part_read * shrink[:, None], 0)
    read = read / tl.where(total == 0.0, 1.0, total)  # no key at all: 0 / 1
    tl.store(merged_ptr + row * value_width + columns, read, mask=inside)


def partial_reads(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    query_offset: int | None = None,
    lengths: Tensor | None = None,
    sinks: int = 0,
    window: int | None = None,
    pages: Tensor | None = None,
    scale: float | None = None,
    splits: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(m, l, o) of every row and part: (rows, splits), (rows, splits), (rows, splits, E).

    Rows are numbered through (batch, head, query). In float32, in float64 for float64.
    """
    _, keys = room_of(query, key, pages)
    query, key, value = (batch_and_heads(readable(part_kernel, x)) for x in (query, key, value))
    batch, heads, queries, width = query.shape
    key_heads, value_width = value.shape[1], value.shape[3]
    group = heads // key_heads
    choices = tile(group * queries, width, value_width, query.dtype, paged=pages is not None)
    row_blocks = triton.cdiv(group * queries, choices["row_block_size"])
    if splits is None:
        programs = batch * key_heads * row_blocks
        walked = keys if window is None else min(keys, sinks + window + queries - 1)
        splits = splits_to_fill(programs, walked, processors_of(query.device))

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
            None if lengths is None else lengths.contiguous(),
            pages,
            highest,
            total,
            read,
            query.stride()[:3],
            key.stride()[:3],
            value.stride()[:3],
            None if pages is None else pages.stride(),
            (queries, keys, group, key_heads),
            query_offset,
            sinks,
            window,
            scale=width**-0.5 if scale is None else float(scale),
            width=width,
            value_width=value_width,
            page_size=None if pages is None else key.shape[2],
            **choices,
        )
    return highest, total, read


def merged(
    highest: Tensor,
    total: Tensor,
    read: Tensor,
    dtype: torch.dtype,
    sink_logit: Tensor | None = None,
    queries: int = 1,
) -> Tensor:
    """The finished read of every row, (rows, E): all its parts as one.

    `queries` is how many rows in turn belong to one head, and so have the same sink logit.
    """
    rows, splits, value_width = read.shape
    result = torch.empty(rows, value_width, dtype=dtype, device=read.device)
    split_block_size = triton.next_power_of_2(splits)
    numbers = split_block_size * triton.next_power_of_2(value_width)
    counts = None
    if sink_logit is not None:
        sink_logit = readable(merge_kernel, sink_logit).contiguous()
        counts = (queries, len(sink_logit))
    with on_device_of(read):
        merge_kernel[(rows,)](
            highest,
            total,
            read,
            sink_logit,
            result,
            splits,
            counts,
            value_width=value_width,
            split_block_size=split_block_size,
            num_warps=max(1, min(8, numbers // 2048)),
        )
    return result


def tile(rows: int, width: int, value_width: int, dtype: torch.dtype, paged: bool = False) -> dict:
    """The compile-time choices: arithmetic, rows and keys of a tile, warps, stages of the pipeline.

    A block has as many keys as 32 kilobytes hold, 16 to 128. Full precision is multiplied number
    by number in registers, so its tiles have 16 rows, and so many warps that none are spilled.
    Page numbers must come before the rows can be asked for: two stages more keep as many blocks
    on their way as without pages.
    """
    numbers_of_a_key = triton.next_power_of_2(padded(width) + padded(value_width))
    key_block_size = max(16, min(128, BYTES_OF_A_BLOCK // (numbers_of_a_key * dtype.itemsize)))
    full_precision = dtype in (torch.float32, torch.float64)
    return {
        "arithmetic": tl.float64 if dtype == torch.float64 else tl.float32,
        "row_block_size": 16 if full_precision else min(padded(rows), LARGEST_ROW_BLOCK),
        "key_block_size": key_block_size,
        "num_warps": {torch.float64: 8, torch.float32: min(8, key_block_size // 4)}.get(dtype, 4),
        "num_stages": 2 if full_precision else 5 if paged else 3,
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
