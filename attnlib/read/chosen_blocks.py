"""Every query chooses its own blocks of keys: the read of all chosen pairs, block by block."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attnlib.checks import check_count
from attnlib.memory.partial_read import PartialRead, finish, partial_read


class BlockReads(NamedTuple):
    """One partial read for each pair of a query and a block that it chose.

    Rows are numbered through all batch entries, heads and queries, in order of the pairs' blocks.
    """

    row: Int[Tensor, " pairs"]
    block: Int[Tensor, " pairs"]
    part: PartialRead


def block_reads(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    value: Float[Tensor, "*heads M E"],
    chosen: Bool[Tensor, "*heads N blocks"],
    positions: Int[Tensor, " N"] | None,
    *,
    block_size: int,
    scale: float,
) -> BlockReads:
    """The partial reads of all chosen pairs; with `positions` a query sees keys j <= position.

    The queries that chose a block are brought together, and the block is read once for all of them.
    Cost: time k N B (D + E) for k chosen blocks of B keys a query; memory k N E.
    """
    queries, keys = query.shape[-2], key.shape[-2]
    blocks = chosen.shape[-1]
    heads = math.prod(query.shape[:-2])
    flat = chosen.reshape(heads, queries, blocks).transpose(1, 2)
    lead, block, row = flat.nonzero().unbind(1)  # in order of blocks, then of queries
    folded = (x.reshape(heads, *x.shape[-2:]) for x in (query, key, value))
    query, key, value = folded
    sizes = flat.sum(-1).flatten().tolist()
    gathered = (query[lead, row] * scale).split(sizes)
    rows = row.split(sizes)
    parts = []
    for number, (some_queries, some_rows) in enumerate(zip(gathered, rows, strict=True)):
        if len(some_rows) == 0:
            continue
        head, start = number // blocks, number % blocks * block_size
        stop = min(start + block_size, keys)
        seen = None
        if positions is not None:
            place = torch.arange(start, stop, device=query.device)
            seen = place <= positions[some_rows, None]
        scores = some_queries @ key[head, start:stop].mT
        parts.append(partial_read(scores, value[head, start:stop], seen))
    if parts:
        part = PartialRead(*map(torch.cat, zip(*parts, strict=True)))
    else:
        part = PartialRead(*(query.new_zeros(0, width) for width in (1, 1, value.shape[-1])))
    return BlockReads(lead * queries + row, block, part)


def merged(reads: BlockReads, count: int) -> PartialRead:
    """The pairs of each of `count` rows as one partial read: sums at the row's highest score."""
    width = reads.part.read.shape[-1]
    highest = reads.part.max.new_full((count, 1), -torch.inf)
    highest = highest.scatter_reduce(0, reads.row[:, None], reads.part.max.detach(), "amax")
    shrink = torch.exp(reads.part.max - highest[reads.row])
    shrink = shrink.nan_to_num(0.0)  # a pair in which nothing is seen, of a row that sees nothing
    nothing = reads.part.read.new_zeros(count, width)
    total = nothing.new_zeros(count, 1).index_add(0, reads.row, reads.part.total * shrink)
    return PartialRead(highest, total, nothing.index_add(0, reads.row, reads.part.read * shrink))


def read_chosen_blocks(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    value: Float[Tensor, "*heads M E"],
    chosen: Bool[Tensor, "*heads N blocks"],
    *,
    block_size: int,
    is_causal: bool = True,
    query_offset: int = 0,
    scale: float | None = None,
) -> Float[Tensor, "*heads N E"]:
    """Softmax attention of every query over the blocks that it chose, without the N x M matrix.

    `chosen` is bool, True where query i reads block b, the keys b B ... b B + B - 1. Under
    `is_causal` it sees of them the keys j <= i + `query_offset`. Equal to `attend` whose support is
    `chosen_pairs`. Half precision is computed in float32.
    Source of the grouping by blocks: Lu et al. (2025), algorithm 1. Derived in chapter 6.1.
    """
    dtype = torch.float32 if query.element_size() < 4 else query.dtype
    positions = None
    if is_causal:
        positions = torch.arange(query.shape[-2], device=query.device) + query_offset
    reads = block_reads(
        *(x.to(dtype) for x in (query, key, value)),
        chosen.expand(*query.shape[:-1], chosen.shape[-1]),
        positions,
        block_size=block_size,
        scale=query.shape[-1] ** -0.5 if scale is None else scale,
    )
    rows = query.shape[:-1]
    out = finish(merged(reads, rows.numel())).reshape(*rows, value.shape[-1])
    nothing = query[..., :0].sum() + key[..., :0].sum() + value[..., :0].sum()
    return out.to(query.dtype) + nothing


def chosen_pairs(
    chosen: Bool[Tensor, "*heads N blocks"], block_size: int, keys: int
) -> Bool[Tensor, "*heads N M"]:
    """The table of blocks as a mask of keys, ready to be an `attn_mask` of `attend`."""
    return chosen.repeat_interleave(block_size, dim=-1)[..., :keys]


def block_count(keys: int, block_size: int) -> int:
    """How many blocks cover the keys; the last may be shorter."""
    check_count("block_size", block_size, least=1)
    return -(-keys // block_size)


def highest_blocks(
    scores: Float[Tensor, "*heads N blocks"], count: int
) -> Bool[Tensor, "*heads N blocks"]:
    """The `count` blocks with the highest scores, fewer where fewer are above minus infinity.

    Of equal scores the earlier block comes first, so that later blocks never push one out.
    """
    order = scores.argsort(dim=-1, descending=True, stable=True)[..., :count]
    table = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, True)
    return table & (scores > -torch.inf)
