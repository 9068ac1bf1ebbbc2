"""A support as tiles: predicates become lists of tiles and bit masks, once, on the host.

A predicate says whether a query sees a key: `(b, h, q_idx, kv_idx) -> bool` on index tensors, as
in attnlib/support.py and in FlexAttention. A kernel never calls it. Here it is asked about every
pair, one row of tiles after the other, so that no N x M table is ever held. A tile in which

    no pair is seen    is skipped: it is in no list
    all pairs are      is full:    it needs no mask
    some pairs are     is partial: it is listed with a mask, one bit a pair

Causal and a window of 8, for 12 queries and keys in tiles of 4 x 4:

    1 . . . | . . . . | . . . .
    1 1 . . | . . . . | . . . .        of the first row of tiles one is partial, two are skipped
    1 1 1 . | . . . . | . . . .
    1 1 1 1 | . . . . | . . . .
    --------+---------+--------
    1 1 1 1 | 1 . . . | . . . .
    1 1 1 1 | 1 1 . . | . . . .        full, partial, skipped
    1 1 1 1 | 1 1 1 . | . . . .
    1 1 1 1 | 1 1 1 1 | . . . .
    --------+---------+--------
    . 1 1 1 | 1 1 1 1 | 1 . . .        query 8: the masks 0b1110 and 0b0001
    . . 1 1 | 1 1 1 1 | 1 1 . .        partial, full, partial
    . . . 1 | 1 1 1 1 | 1 1 1 .
    . . . . | 1 1 1 1 | 1 1 1 1

Bit c of a word is column c of the tile, counted from the right as digits are: 0b1110 are columns 1,
2 and 3. A word has 32 bits, so a row of 128 keys is four words. Bits of pairs that the table does
not have are 0: a tile that its edge cuts is never full.

A predicate that does not ask for b or h has one list for all batch entries or heads: what it gives
back broadcasts over the axis that it does not ask for, and that is how it is known.

This file imports no triton: the host's side of a support works everywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from attnlib.kernels.block_lists import block_count, check_block_size, listed
from attnlib.kernels.launch import check_whole
from torch import Tensor

Predicate = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
BITS = 32  # of a word of a mask


class TileLists(NamedTuple):
    """For each block of rows the blocks of columns that it meets: full ones first, then partial.

    Shapes: blocks (#B, #H, rows, L), ascending among the full and among the partial ones; counts
    (#B, #H, rows, 2), how many are full and how many are listed at all; masks (#B, #H, rows, L),
    the number of the mask of each partial entry. All are int32.
    """

    blocks: Tensor
    counts: Tensor
    masks: Tensor


@dataclass(frozen=True, eq=False)
class TiledSupport:
    """Which tiles of a table of queries and keys are full, which are partial, and their masks.

    Shapes: full and partial bool (#B, #H, ceil(queries / Bq), ceil(keys / Bk)), (Bq, Bk) the
    block_size, #: 1 is shared. masks int32 (partial tiles, ceil(Bk / 32), Bq), bit c of word w for
    column 32 w + c: in the order of query blocks; of one query block those of batch entry 0 first,
    of each entry head after head, and then by key block.

    by_query and by_key are the lists that the kernels walk, made from these.

    Raises ValueError that names the tensor: a wrong dtype, shape or device, a tile that is both
    full and partial, a full tile that reaches past the last query or key.
    """

    full: Tensor
    partial: Tensor
    masks: Tensor
    queries: int
    keys: int
    block_size: tuple[int, int]
    by_query: TileLists = field(init=False)
    by_key: TileLists = field(init=False)

    def __post_init__(self) -> None:
        check_tables(self)
        check_masks(self)
        numbers = mask_numbers(self.partial)
        object.__setattr__(self, "by_query", lists_of(self.full, self.partial, numbers))
        object.__setattr__(self, "by_key", lists_of(self.full.mT, self.partial.mT, numbers.mT))
        object.__setattr__(self, "made_as", self.versions())

    @property
    def lead(self) -> tuple[int, int]:
        """How many batch entries and heads are told apart: 1 where one list serves all."""
        return tuple(self.full.shape[:2])

    def versions(self) -> tuple[int, ...]:
        """How often what the kernels read has been written to; inference tensors do not count."""
        read = self.masks, *self.by_query, *self.by_key
        return tuple(0 if tensor.is_inference() else tensor._version for tensor in read)

    def dense(self) -> Tensor:
        """The support as a table of bools (#B, #H, queries, keys), to be looked at."""
        rows, columns = self.block_size
        seen = self.full[..., None, None].expand(*self.full.shape, rows, columns).clone()
        bits = self.masks.mT[..., None] >> torch.arange(BITS, device=self.masks.device) & 1
        order = seen.movedim(-4, 0)  # the order of the masks: a view, query blocks first
        order[self.partial.movedim(-2, 0)] = bits.flatten(-2)[..., :columns].bool()
        *lead, row_blocks, column_blocks = self.full.shape
        table = seen.transpose(-3, -2).reshape(*lead, row_blocks * rows, column_blocks * columns)
        return table[..., : self.queries, : self.keys]


def tiled_support(
    *predicates: Predicate,
    queries: int,
    keys: int,
    batch: int = 1,
    heads: int = 1,
    block_size: int | tuple[int, int] = 128,
    query_offset: int = 0,
    device: torch.device | str | None = None,
) -> TiledSupport:
    """The tiles of the pairs that every predicate lets see each other: skipped, full or partial.

    Each predicate is asked as `predicate(b, h, q_idx, kv_idx)` with int64 index tensors of shapes
    (batch, 1, 1, 1), (1, heads, 1, 1), (rows, 1) and (1, keys), and gives bools that broadcast to
    (batch, heads, rows, keys). q_idx is the position of a query, query_offset more than its row.
    Several batch axes are numbered through as one. Where no predicate asks for b (or h), one list
    serves all batch entries (or heads). No predicate at all: every pair.

    block_size: (Bq, Bk) or one number for both, each 16, 32, 64 or 128. device: that of the
    attention's tensors, and of tables that the predicates look things up in.

    Make it once where the support is used again. Cost: every predicate is asked about N M pairs a
    batch entry and head that it tells apart; Bq M bools are held at a time, and
    N M / 8 bytes of masks at most, where every tile is partial. It waits for the GPU.

    Raises TypeError for a predicate that cannot be called or does not give bools, ValueError for a
    shape that does not broadcast, a table that is too small, a wrong size or device.
    """
    check_predicates(predicates)
    check_whole("queries", queries, least=0)
    check_whole("keys", keys, least=0)
    check_whole("batch", batch, least=1)
    check_whole("heads", heads, least=1)
    check_whole("query_offset", query_offset)
    rows, columns = check_block_size(block_size)
    b = torch.arange(batch, device=device).view(-1, 1, 1, 1)
    if b.is_meta:
        raise ValueError("device must be a CUDA device or the CPU, got meta: it has no numbers")
    h = torch.arange(heads, device=device).view(-1, 1, 1)
    kv_idx = torch.arange(keys, device=device)[None, :]
    strips = []
    for start in range(0, queries, rows):
        stop = min(start + rows, queries)
        q_idx = torch.arange(start, stop, device=device)[:, None] + query_offset
        strips.append(tiles_of_strip(seen_by_all(predicates, (b, h, q_idx, kv_idx)), rows, columns))
    if not strips:  # no query, no row of tiles
        none = torch.empty(1, 1, 0, block_count(keys, columns), dtype=torch.bool, device=device)
        masks = torch.empty(0, words_of(columns), rows, dtype=torch.int32, device=device)
        return TiledSupport(none, none.clone(), masks, queries, keys, (rows, columns))
    full, partial, masks = zip(*strips, strict=True)
    tables = torch.stack(full, dim=-2), torch.stack(partial, dim=-2)
    return TiledSupport(*tables, torch.cat(masks), queries, keys, (rows, columns))


def seen_by_all(predicates: tuple[Predicate, ...], where: tuple[Tensor, ...]) -> Tensor:
    """Which pairs of `where` all predicates allow: (#B, #H, rows, keys)."""
    pairs = torch.broadcast_shapes(*(index.shape for index in where))
    seen = torch.ones(1, 1, *pairs[-2:], dtype=torch.bool, device=where[0].device)
    for number, predicate in enumerate(predicates):
        seen = seen & answer_of(predicate, number, where, pairs)
    return seen


def tiles_of_strip(seen: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of a row of tiles (#B, #H, up to `rows` queries, keys): which are full, which are partial,
    (#B, #H, key blocks) each, and the masks of the partial ones, (partial tiles, words, rows)."""
    missing_rows, missing_columns = rows - seen.shape[-2], -seen.shape[-1] % columns
    seen = torch.nn.functional.pad(seen, (0, missing_columns, 0, missing_rows))
    tiles = seen.unflatten(-1, (seen.shape[-1] // columns, columns)).transpose(-3, -2)
    full = tiles.all(-1).all(-1)
    partial = tiles.any(-1).any(-1) & ~full
    return full, partial, packed_bits(tiles[partial]).mT.contiguous()


def packed_bits(seen: Tensor) -> Tensor:
    """Bools (..., columns) as bits: int32 (..., ceil(columns / 32)), column 0 the lowest bit."""
    seen = torch.nn.functional.pad(seen, (0, -seen.shape[-1] % BITS))
    worth = [1 << bit for bit in range(BITS - 1)] + [-(1 << (BITS - 1))]  # the last is the sign
    worth = torch.tensor(worth, dtype=torch.int32, device=seen.device)
    return (seen.unflatten(-1, (-1, BITS)) * worth).sum(-1, dtype=torch.int32)


def words_of(columns: int) -> int:
    """How many words the mask of one row of a tile has."""
    return block_count(columns, BITS)


def mask_numbers(partial: Tensor) -> Tensor:
    """The number of the mask of each partial tile, as a table; 0 where there is none."""
    in_order = partial.movedim(-2, 0)
    numbers = in_order.flatten().cumsum(0) - 1
    numbers = numbers.view(in_order.shape).movedim(0, -2)
    return torch.where(partial, numbers, 0).to(torch.int32)


def lists_of(full: Tensor, partial: Tensor, numbers: Tensor) -> TileLists:
    """Tables (#B, #H, rows, columns) as lists of the columns of each row, full ones first."""
    full_blocks, full_counts = listed(full)
    partial_blocks, partial_counts = listed(partial)
    counts = full_counts + partial_counts
    longest = max(counts.flatten().tolist(), default=0)
    entry = torch.arange(longest, device=full.device).expand(*counts.shape, longest)
    among_partial = (entry - full_counts[..., None]).clamp(min=0)
    blocks = torch.where(
        entry < full_counts[..., None],
        full_blocks[..., :longest],
        partial_blocks.gather(-1, among_partial),
    )
    masks = numbers.gather(-1, blocks.long())
    counts = torch.stack([full_counts, counts], dim=-1)
    return TileLists(blocks.contiguous(), counts, masks.contiguous())


def check_predicates(predicates: tuple) -> None:
    """Raise a TypeError unless each can be called."""
    for number, predicate in enumerate(predicates):
        if not callable(predicate):
            raise TypeError(
                "predicates must be callables (b, h, q_idx, kv_idx) -> bool, "
                f"got {type(predicate).__name__} as number {number}"
            )


def answer_of(
    predicate: Predicate, number: int, where: tuple[Tensor, ...], pairs: torch.Size
) -> Tensor:
    """What a predicate says of the pairs, once it is sure to be bools that broadcast to them."""
    name = f"predicate {getattr(predicate, 'name', None) or getattr(predicate, '__name__', '')}"
    name = f"{name} (number {number})"
    try:
        seen = predicate(*where)
    except IndexError as error:
        raise ValueError(
            f"{name} must hold for all queries and keys, got a table that is too small: {error}"
        ) from error
    if not isinstance(seen, Tensor) or seen.dtype != torch.bool:
        came = seen.dtype if isinstance(seen, Tensor) else type(seen).__name__
        raise TypeError(f"{name} must give a bool tensor, got {str(came).removeprefix('torch.')}")
    if seen.device != where[0].device:
        raise ValueError(
            f"{name} must answer on the device of the support, {where[0].device}, got {seen.device}"
        )
    fits = seen.dim() <= 4 and all(
        have in (1, want) for have, want in zip(seen.shape[::-1], pairs[::-1], strict=False)
    )
    if not fits:
        raise ValueError(
            f"{name} must give a shape that broadcasts to {tuple(pairs)}, got {tuple(seen.shape)}"
        )
    return seen


def check_unchanged(support: TiledSupport) -> None:
    """Raise a ValueError where a tensor that kernels read was written to after it was checked."""
    if support.versions() != support.made_as:
        raise ValueError("support was written to after its lists were checked; make a new one")


def check_tables(support: TiledSupport) -> None:
    """Raise a ValueError unless both tables have their shape and no full tile is cut."""
    check_whole("queries", support.queries, least=0)
    check_whole("keys", support.keys, least=0)
    if check_block_size(support.block_size) is not support.block_size:
        raise ValueError(f"block_size must be a pair (queries, keys), got {support.block_size!r}")
    lengths = support.queries, support.keys
    expected = tuple(map(block_count, lengths, support.block_size))
    for name in ("full", "partial"):
        table = getattr(support, name)
        if not isinstance(table, Tensor) or table.dtype != torch.bool:
            came = table.dtype if isinstance(table, Tensor) else type(table).__name__
            raise ValueError(f"{name} must be a bool tensor, got {came}")
        if table.dim() != 4 or table.shape[-2:] != expected or table.shape != support.full.shape:
            raise ValueError(
                f"{name} must have shape (batch or 1, heads or 1, {expected[0]}, {expected[1]}), "
                f"the same for full and partial, got {tuple(table.shape)}"
            )
        if table.device.type not in ("cpu", "cuda") or table.device != support.full.device:
            raise ValueError(
                f"{name} must be on a CUDA device or the CPU and beside full, got {table.device}"
            )
    if (support.full & support.partial).any():
        raise ValueError("full and partial must not both hold a tile")
    for axis, length, size in zip((-2, -1), lengths, support.block_size, strict=True):
        if length % size and support.full.select(axis, -1).any():
            raise ValueError(
                f"full must not hold a tile that reaches past the last row or column: blocks of "
                f"{size} do not divide {length}, so the last ones are partial"
            )


def check_masks(support: TiledSupport) -> None:
    """Raise a ValueError unless there is one mask for each partial tile."""
    masks = support.masks
    if not isinstance(masks, Tensor) or masks.dtype != torch.int32:
        came = masks.dtype if isinstance(masks, Tensor) else type(masks).__name__
        raise ValueError(f"masks must be an int32 tensor, got {came}")
    rows, columns = support.block_size
    expected = int(support.partial.sum()), words_of(columns), rows
    if masks.shape != expected or not masks.is_contiguous():
        raise ValueError(
            f"masks must be contiguous and have shape {expected}, one for each partial tile, "
            f"got {tuple(masks.shape)}"
        )
    if masks.device != support.full.device:
        raise ValueError(f"masks must be on the device of full, got {masks.device}")
