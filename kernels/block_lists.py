"""Which tiles block-sparse attention reads, as lists: made once on the host, walked by kernels.

A table (query blocks x key blocks), True where a tile is read, becomes two lists that say the same:

    table     1 0 1 0      key blocks of query block 0:  0 2          count 2
              0 1 1 1                                1:  1 2 3        count 3

    and, for the key gradient, the query blocks of key block 0: 0,  1: 1,  2: 0 1,  3: 1

A kernel that walks over a list does work for the tiles that are kept and none for the others.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK_SIZES = (16, 32, 64, 128)


@dataclass(frozen=True, eq=False)
class BlockLists:
    """The key blocks of each query block, and the query blocks of each key block.

    Shapes: key_blocks (*#batch, #H, query blocks, L), of which row i holds key_counts[..., i]
    block numbers, ascending, no number twice; what follows in the row is not read. The same for
    query_blocks (*#batch, #H, key blocks, L') and query_counts. #: 1 or missing broadcasts. All
    are int32 on one device.

    The numbers are checked here, once, which waits for the GPU. A kernel is given them unread, so
    do not write into the four tensors: attention refuses lists that were changed.

    Raises ValueError that names the tensor: wrong dtype, shape or device, a count that is negative
    or larger than the list, a number out of range or not ascending, two lists that do not agree.
    """

    key_blocks: Tensor
    key_counts: Tensor
    query_blocks: Tensor
    query_counts: Tensor

    def __post_init__(self) -> None:
        check_form(self)
        for side, other in (("key", "query"), ("query", "key")):
            rows_of_other = getattr(self, f"{other}_blocks").shape[-2]
            check_numbers(
                side,
                getattr(self, f"{side}_blocks"),
                getattr(self, f"{side}_counts"),
                rows_of_other,
            )
        keys_first = table_of(self.query_blocks, self.query_counts, self.key_blocks.shape[-2])
        if not torch.equal(self.table(), keys_first.mT):
            raise ValueError(
                "query_blocks must list the same tiles as key_blocks: key block j has query block "
                "i where query block i has key block j"
            )
        object.__setattr__(self, "checked_as", self.versions())

    def tensors(self) -> tuple[Tensor, ...]:
        """The four tensors."""
        return self.key_blocks, self.key_counts, self.query_blocks, self.query_counts

    def table(self) -> Tensor:
        """The table (*#batch, #H, query blocks, key blocks): True where a tile is read."""
        return table_of(self.key_blocks, self.key_counts, self.query_blocks.shape[-2])

    def versions(self) -> tuple[int, ...]:
        """How often each tensor has been written to; inference tensors do not count it."""
        return tuple(0 if t.is_inference() else t._version for t in self.tensors())


def block_lists(blocks: Tensor) -> BlockLists:
    """The lists of a table: bool (*#batch, #H, query blocks, key blocks), True where read.

    Make them once where a table is used more than once: block_sparse_attention takes them in its
    place. They hold 8 bytes for each entry of the table.

    Raises TypeError unless the table is a bool tensor, ValueError unless it has two axes or more
    and numbers in it (the meta device has none).
    """
    check_table(blocks)
    if blocks.is_meta:
        raise ValueError("blocks must be on a CUDA device or the CPU, got meta: it has no numbers")
    return BlockLists(*listed(blocks), *listed(blocks.mT))


def listed(table: Tensor) -> tuple[Tensor, Tensor]:
    """The columns of each row that are True, ascending, and how many there are."""
    true_first = (~table).to(torch.uint8).argsort(dim=-1, stable=True)
    return true_first.to(torch.int32).contiguous(), table.sum(-1, dtype=torch.int32).contiguous()


def table_of(blocks: Tensor, counts: Tensor, columns: int) -> Tensor:
    """The table (..., rows, columns) of lists (..., rows, L)."""
    table = torch.zeros(*counts.shape, columns + 1, dtype=torch.bool, device=blocks.device)
    beyond_last = torch.where(taken(blocks, counts), blocks, columns)
    return table.scatter_(-1, beyond_last.long(), True)[..., :columns]


def taken(blocks: Tensor, counts: Tensor) -> Tensor:
    """Which numbers of the lists count."""
    return torch.arange(blocks.shape[-1], device=blocks.device) < counts[..., None]


def block_count(length: int, size: int) -> int:
    """How many blocks of this size cover a length."""
    return -(-length // size)


def every_head(lists: BlockLists, query: Tensor) -> tuple[Tensor, ...]:
    """The four tensors as (B, H, rows, L), counts with L = 1. What is shared has a stride of 0."""
    lead = query.shape[:-2]
    folded = math.prod(lead[:-1]), lead[-1] if lead else 1
    counts = lists.key_counts[..., None], lists.query_counts[..., None]
    tensors = lists.key_blocks, counts[0], lists.query_blocks, counts[1]
    return tuple(
        tensor.contiguous().expand(*lead, *tensor.shape[-2:]).reshape(*folded, *tensor.shape[-2:])
        for tensor in tensors
    )


def check_table(blocks: Tensor) -> None:
    """Raise unless `blocks` is a bool tensor with two axes or more."""
    if not isinstance(blocks, Tensor):
        raise TypeError(f"blocks must be a bool tensor or BlockLists, got {type(blocks).__name__}")
    if blocks.dtype != torch.bool:
        came = str(blocks.dtype).removeprefix("torch.")
        raise TypeError(f"blocks must be bool (True: the tile is read), got {came}")
    if blocks.dim() < 2:
        raise ValueError(
            f"blocks must have shape (..., query blocks, key blocks), got {tuple(blocks.shape)}"
        )


def check_block_size(block_size: int | tuple[int, int]) -> tuple[int, int]:
    """(queries, keys) of a block. Raise a ValueError unless both are 16, 32, 64 or 128."""
    pair = block_size if isinstance(block_size, tuple) else (block_size, block_size)
    if len(pair) != 2 or any(type(size) is not int or size not in BLOCK_SIZES for size in pair):
        raise ValueError(
            "block_size must be 16, 32, 64 or 128, or a pair of these (queries, keys), "
            f"got {block_size!r}"
        )
    return pair


def check_blocks(
    blocks: Tensor | BlockLists, query: Tensor, key: Tensor, block_size: tuple[int, int]
) -> None:
    """Raise unless a table or its lists fit the tensors; the numbers in lists are not read."""
    if isinstance(blocks, BlockLists):
        if blocks.versions() != blocks.checked_as:
            raise ValueError("blocks was written to after its lists were checked; make new lists")
        shape = (*blocks.key_counts.shape, blocks.query_blocks.shape[-2])
    else:
        check_table(blocks)
        shape = tuple(blocks.shape)
    lead = tuple(query.shape[:-2])
    expected = tuple(
        block_count(tensor.shape[-2], size)
        for tensor, size in zip((query, key), block_size, strict=True)
    )
    fits = len(shape) - 2 <= len(lead) and all(
        have in (1, want) for have, want in zip(shape[-3::-1], lead[::-1], strict=False)
    )
    if shape[-2:] != expected or not fits:
        raise ValueError(
            f"blocks must have shape {(*lead, *expected)}, or broadcast to it over batch and heads "
            f"({query.shape[-2]} queries and {key.shape[-2]} keys in blocks of "
            f"{block_size[0]} and {block_size[1]}), got {shape}"
        )


def check_form(lists: BlockLists) -> None:
    """Raise a ValueError unless dtypes, devices and shapes are those of lists."""
    names = ("key_blocks", "key_counts", "query_blocks", "query_counts")
    for name, tensor in zip(names, lists.tensors(), strict=True):
        if not isinstance(tensor, Tensor) or tensor.dtype != torch.int32:
            came = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            came = str(came).removeprefix("torch.")
            raise ValueError(f"{name} must be an int32 tensor, got {came}")
        if tensor.device != lists.key_blocks.device:
            raise ValueError(
                f"{name} must be on the device of key_blocks, {lists.key_blocks.device}, "
                f"got {tensor.device}"
            )
    for side in ("key", "query"):
        blocks, counts = getattr(lists, f"{side}_blocks"), getattr(lists, f"{side}_counts")
        if blocks.dim() < 2:
            raise ValueError(
                f"{side}_blocks must have shape (..., blocks, list), got {tuple(blocks.shape)}"
            )
        if counts.shape != blocks.shape[:-1]:
            raise ValueError(
                f"{side}_counts must have one number for each list, {tuple(blocks.shape[:-1])}, "
                f"got {tuple(counts.shape)}"
            )
    if lists.query_blocks.shape[:-2] != lists.key_blocks.shape[:-2]:
        raise ValueError(
            "query_blocks must have the batch axes and heads of key_blocks, "
            f"{tuple(lists.key_blocks.shape[:-2])}, got {tuple(lists.query_blocks.shape[:-2])}"
        )


def check_numbers(side: str, blocks: Tensor, counts: Tensor, limit: int) -> None:
    """Raise a ValueError unless the counts fit the lists and the numbers ascend in 0 ... limit."""
    longest = blocks.shape[-1]
    if ((counts < 0) | (counts > longest)).any():
        raise ValueError(
            f"{side}_counts must be from 0 to {longest}, the length of a list, "
            f"got {counts.min().item()} to {counts.max().item()}"
        )
    used = taken(blocks, counts)
    if (used & ((blocks < 0) | (blocks >= limit))).any():
        numbers = blocks[used]
        raise ValueError(
            f"{side}_blocks must be block numbers from 0 to {limit - 1}, "
            f"got {numbers.min().item()} to {numbers.max().item()}"
        )
    if (used[..., 1:] & (blocks[..., 1:] <= blocks[..., :-1])).any():
        raise ValueError(f"{side}_blocks must ascend within a list, no number twice")
