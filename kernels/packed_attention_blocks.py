"""Sequences laid end to end: where each starts, and which block of which sequence a program takes.

Three sequences of 5, 2 and 4 rows in one tensor of 11, without padding:

    row        0  1  2  3  4 | 5  6 | 7  8  9 10          starts  0 5 7 11
    blocks of 3   |0     |3  |  |0  |  |0     |3          of (sequence, start in it)

The host makes the list of blocks, once for a launch: (0, 0) (0, 3) (1, 0) (2, 0) (2, 3). A program
reads its entry, and from the starts where its sequence begins and how long it is. From there on it
counts rows within the sequence, as a program of flash_attention.py counts them within a head. The
lengths are never arguments of a kernel, so another mix of lengths compiles nothing anew.

The blocks that see the most come first. A block that starts last is then a short one, and no
processor works on a long one while the others have run out.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from attnlib.kernels.bands import band_of
from torch import Tensor


class Packing(NamedTuple):
    """Where the sequences start, int64 on the host, (sequences + 1,) each, and what a row sees."""

    query_starts: Tensor
    key_starts: Tensor
    band: tuple[int, int]

    def query_blocks(self, size: int) -> Tensor:
        """The list of query blocks of this size."""
        return blocks_of(self.query_starts, self.key_starts, self.band, size)

    def key_blocks(self, size: int) -> Tensor:
        """The list of key blocks. Key j is seen by the queries from j - highest to j - lowest."""
        lowest, highest = self.band
        return blocks_of(self.key_starts, self.query_starts, (-highest, -lowest), size)


def packing_of(
    query: Tensor,
    key: Tensor,
    query_starts: Tensor,
    key_starts: Tensor | None,
    is_causal: bool,
    window: int | None,
) -> Packing:
    """The checked starts on the host, and a band that holds for the longest sequences."""
    on_host = checked_starts("query_starts", query_starts, "queries", query.shape[-2])
    keys_on_host = on_host
    if key_starts is not None:
        keys_on_host = checked_starts("key_starts", key_starts, "keys", key.shape[-2])
    elif key.shape[-2] != query.shape[-2]:
        raise ValueError(
            "key_starts must be given where there are not as many keys as queries, "
            f"got {key.shape[-2]} keys and {query.shape[-2]} queries"
        )
    if len(keys_on_host) != len(on_host):
        raise ValueError(
            f"key_starts must start as many sequences as query_starts, {len(on_host) - 1}, "
            f"got {len(keys_on_host) - 1}"
        )
    longest = (
        int(starts.diff().max()) if len(starts) > 1 else 0 for starts in (on_host, keys_on_host)
    )
    return Packing(on_host, keys_on_host, band_of(*longest, is_causal, 0, window))


def checked_starts(name: str, starts: Tensor, rows: str, total: int) -> Tensor:
    """The starts as int64 on the host. Raise unless they ascend from 0 to the number of rows."""
    if not isinstance(starts, Tensor):
        raise TypeError(f"{name} must be an int32 or int64 tensor, got {type(starts).__name__}")
    if starts.dtype not in (torch.int32, torch.int64):
        came = str(starts.dtype).removeprefix("torch.")
        raise TypeError(f"{name} must be an int32 or int64 tensor, got {came}")
    if starts.dim() != 1 or len(starts) == 0:
        raise ValueError(f"{name} must have shape (sequences + 1,), got {tuple(starts.shape)}")
    if starts.device.type not in ("cpu", "cuda"):
        raise ValueError(f"{name} must be on a CUDA device or the CPU, got {starts.device}")
    starts = starts.detach().to("cpu", torch.int64, copy=True)
    if starts[0] != 0:
        raise ValueError(f"{name} must begin with 0, got {starts[0].item()}")
    if starts[-1] != total:
        raise ValueError(f"{name} must end with the {total} {rows}, got {starts[-1].item()}")
    descends = starts[1:] < starts[:-1]
    if descends.any():
        first = int(descends.nonzero()[0])
        raise ValueError(
            f"{name} must not descend, got {starts[first].item()} before "
            f"{starts[first + 1].item()} (entries {first} and {first + 1})"
        )
    return starts


def blocks_of(starts: Tensor, other_starts: Tensor, band: tuple[int, int], size: int) -> Tensor:
    """(sequence, start in it) of each block, int32 (blocks, 2): those that see the most first.

    `other_starts` are those of what the rows see: keys for queries, queries for keys.
    """
    lengths, others = starts.diff(), other_starts.diff()
    counts = (lengths + size - 1) // size
    sequence = torch.arange(len(lengths), device=starts.device).repeat_interleave(counts)
    number = torch.arange(len(sequence), device=starts.device)
    start = (number - (counts.cumsum(0) - counts)[sequence]) * size
    stop = torch.minimum(start + size, lengths[sequence])
    seen_until = torch.minimum(stop + band[1], others[sequence])
    seen = (seen_until - (start + band[0]).clamp(min=0)).clamp(min=0)
    blocks = torch.stack([sequence, start], dim=-1).to(torch.int32)
    return blocks[seen.argsort(descending=True, stable=True)]


@triton.jit
def my_block(list_ptr, heads):
    """Where the block of this program starts in its sequence, the sequence, and the head."""
    block_count = tl.num_programs(0) // heads
    entry_ptr = list_ptr + tl.program_id(0) % block_count * 2
    return tl.load(entry_ptr + 1), tl.load(entry_ptr), tl.program_id(0) // block_count


@triton.jit
def rows_of(starts_ptr, sequence):
    """Where the rows of a sequence start in the tensor, and how many they are."""
    first = tl.load(starts_ptr + sequence)
    return first, (tl.load(starts_ptr + sequence + 1) - first).to(tl.int32)


@triton.jit
def sequence_at(ptr, steps, head, first):
    """Where the rows of one sequence start in one head."""
    return ptr + head.to(tl.int64) * steps[0] + first * steps[1]
