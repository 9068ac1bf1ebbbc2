"""Block-sparse attention: a table says which blocks of keys a block of queries reads."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.backend import gradient_wanted, runs_kernel, width_obstacle
from attnlib.checks import check_attention, check_count, check_scale, fits
from attnlib.support import Predicate, Support, index_grid, seen_keys

NUMBERS_AT_A_TIME = 2**21
"""How many numbers of keys, values and scores the PyTorch form holds at a time."""


def listed_pairs(
    blocks: Bool[Tensor, "*lead query_blocks key_blocks"], block_size: int | tuple[int, int]
) -> Support:
    """The support of a table of blocks: query i sees key j where their blocks' entry is True.

    Further axes of `blocks` are (heads) or (batch, heads), as in `attend`; 1 broadcasts.
    """
    query_block, key_block = both_sizes(block_size)
    if not isinstance(blocks, Tensor) or blocks.dtype != torch.bool or not 2 <= blocks.dim() <= 4:
        raise TypeError(
            "blocks must be a bool tensor of two to four axes (True = the block is read)"
        )
    table = blocks[(None,) * (4 - blocks.dim())]
    batches, heads = (int(size > 1) for size in table.shape[:2])  # 0: one table serves all

    def seen(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return table[b * batches, h * heads, q_idx // query_block, kv_idx // key_block]

    return Support(seen, f"listed_pairs(blocks, {block_size})")


def listed_blocks(
    support: Predicate, queries: int, keys: int, block_size: int | tuple[int, int]
) -> Bool[Tensor, "query_blocks key_blocks"]:
    """The smallest table whose blocks cover a support: True where any pair of the block is seen.

    A block is read whole, so attention over the table sees what the support sees and a little more.
    """
    query_block, key_block = both_sizes(block_size)
    where = index_grid(torch.empty(queries, 0), keys)
    seen = torch.broadcast_to(seen_keys(support, where), (queries, keys))
    seen = pad(seen, (0, -keys % key_block, 0, -queries % query_block))
    return seen.unflatten(1, (-1, key_block)).unflatten(0, (-1, query_block)).any(-1).any(1)


def dense_block_sparse_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    value: Float[Tensor, "*heads M E"],
    blocks: Bool[Tensor, "*lead query_blocks key_blocks"],
    *,
    block_size: int | tuple[int, int],
    is_causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
) -> Float[Tensor, "*heads N E"]:
    """The definition: `attend` whose support is the table. Cost: time and memory N M."""
    query_block, key_block = both_sizes(block_size)
    table = blocks.repeat_interleave(query_block, -2).repeat_interleave(key_block, -1)
    return attend(
        query,
        key,
        value,
        attn_mask=table[..., : query.shape[-2], : key.shape[-2]],
        is_causal=is_causal,
        query_offset=query_offset,
        scale=scale,
    )


def some_blocks(query: Tensor, key: Tensor, value: Tensor) -> dict:
    """A table for a trial: of blocks of 4 queries and 3 keys those that begin near each other."""
    rows = torch.arange(0, query.shape[-2], 4)[:, None]
    columns = torch.arange(0, key.shape[-2], 3)
    return {"blocks": (rows - columns).abs() < 8, "block_size": (4, 3)}


@mechanism(
    key="block-sparse",
    paper="dao-2022",
    chapter="6-sparse/content-routing",
    section="blocks-that-are-never-read",
    step="support",
    idea="a table says which blocks of keys a block of queries reads; the others are never touched",
    equation=r"o_i = \sum_{j \in \mathcal{B}(i)} \mathrm{softmax}_j(q_i k_j / \sqrt{D})\, v_j",
    cost="time and memory traffic: the listed share of N M (D + E)",
    oracle=dense_block_sparse_attention,
    promises=Promises(
        query_equivariant=False,
        key_invariant=False,
        grouped_query=False,
        padding=False,
        arguments=some_blocks,
    ),
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="local", representations="multi-head"
    ),
)
def block_sparse_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    value: Float[Tensor, "*heads M E"],
    blocks: Bool[Tensor, "*lead query_blocks key_blocks"],
    *,
    block_size: int | tuple[int, int],
    is_causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
    backend: str = "auto",
) -> Float[Tensor, "*heads N E"]:
    r"""Softmax attention over the listed blocks only; all other keys are never loaded.

    .. math:: o_i = \sum_{j \in S_i} \mathrm{softmax}_{S_i}(s_i)_j \, v_j, \qquad
              S_i = \{ j : \mathrm{blocks}[\lfloor i / B_q \rfloor, \lfloor j / B_k \rfloor] \}

    Shapes as in `attend`. `blocks` is bool (..., ceil(N / Bq), ceil(M / Bk)), True where a block
    is read; axes before the last two broadcast over batch and heads. `block_size` is (Bq, Bk) or
    one number for both. Blocks count from the first row and the first key; with `is_causal` a row
    of a listed block sees the keys up to i + `query_offset`. A row without keys reads zero.

    Cost: time L (D + E) and no N M matrix, with L the number of pairs in listed blocks.
    `backend` as in `attnlib.backend`; the kernel takes block sizes 16, 32, 64 and 128. The PyTorch
    form gathers the listed blocks for as many rows at a time as fit a fixed memory.
    Source: Dao et al. (2022), section 3.3. Derived in chapter 6.1.
    """
    check_attention(query, key, value)
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"key must have the width {query.shape[-1]} of query, got {key.shape[-1]}")
    check_scale(scale)
    check_count("query_offset", query_offset)
    sizes = both_sizes(block_size)
    check_table(blocks, query, key, sizes)
    options = {"is_causal": is_causal, "query_offset": query_offset, "scale": scale}
    if runs_kernel(backend, query.device, lambda: why_not_kernel(query, value, sizes)):
        from attnlib.kernels import block_sparse_attention as kernel

        tensors = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
        return kernel(*tensors, blocks, block_size=sizes, **options)
    # A block that is longer than the text holds the text; it need not be filled up.
    lengths = query.shape[-2], key.shape[-2]
    sizes = tuple(min(size, max(1, n)) for size, n in zip(sizes, lengths, strict=True))
    return gathered_attention(query, key, value, blocks, sizes, **options)


def gathered_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: Tensor,
    sizes: tuple[int, int],
    *,
    is_causal: bool,
    query_offset: int,
    scale: float | None,
) -> Tensor:
    """The PyTorch form: query blocks with equally many listed blocks are read together."""
    rows, columns = sizes
    queries, keys = query.shape[-2], key.shape[-2]
    query_blocks, key_blocks = blocks.shape[-2:]
    lead = math.prod(query.shape[:-2])
    dtype = torch.float32 if query.element_size() < 4 else query.dtype
    table = blocks.expand(*query.shape[:-2], query_blocks, key_blocks)
    table = table.reshape(lead * query_blocks, key_blocks)
    first = torch.arange(query_blocks, device=query.device).repeat(lead) * rows + query_offset
    if is_causal:  # blocks that begin after the last row of a query block are in its future
        starts = torch.arange(key_blocks, device=query.device) * columns
        table = table & (starts <= first[:, None] + rows - 1)

    def in_blocks(tensor: Tensor, count: int, size: int) -> Tensor:
        flat = tensor.reshape(lead, tensor.shape[-2], tensor.shape[-1]).to(dtype)
        padded = pad(flat, (0, 0, 0, count * size - tensor.shape[-2]))
        return padded.reshape(lead * count, size, tensor.shape[-1])

    query_tiles = in_blocks(query, query_blocks, rows)
    key_tiles, value_tiles = (in_blocks(x, key_blocks, columns) for x in (key, value))
    counts = table.sum(-1)
    within_row = torch.arange(rows, device=query.device)
    within_column = torch.arange(columns, device=query.device)

    def read_run(query_tiles: Tensor, key_tiles: Tensor, value_tiles: Tensor, run: Tensor):
        listed = table[run].nonzero()[:, 1].view(len(run), -1)
        tiles = listed + (run // query_blocks * key_blocks)[:, None]
        place = (listed[..., None] * columns + within_column).flatten(1)[:, None, None, :]
        seen = place < keys
        if is_causal:
            seen = seen & (place <= (first[run, None] + within_row)[:, None, :, None])
        return scaled_dot_product_attention(
            query_tiles[run][:, None],
            key_tiles[tiles].flatten(1, 2)[:, None],
            value_tiles[tiles].flatten(1, 2)[:, None],
            attn_mask=None if seen.all() else seen.expand(-1, 1, rows, -1),
            scale=scale,
        )[:, 0]

    tensors = query_tiles, key_tiles, value_tiles
    places, reads = [], []
    for run in runs_of_rows(counts, rows, columns, query.shape[-1] + value.shape[-1]):
        places.append(run)
        if gradient_wanted(*tensors):
            reads.append(checkpoint(read_run, *tensors, run, use_reentrant=False))
        else:
            reads.append(read_run(*tensors, run))
    nothing = query[..., :0].sum() + key[..., :0].sum() + value[..., :0].sum()
    out = query_tiles.new_zeros(lead * query_blocks, rows, value.shape[-1])
    if places:
        out = out.index_copy(0, torch.cat(places), torch.cat(reads))
    out = out.reshape(lead, query_blocks * rows, value.shape[-1])[:, :queries]
    return out.reshape(*query.shape[:-1], value.shape[-1]).to(query.dtype) + nothing


def runs_of_rows(counts: Tensor, rows: int, columns: int, width: int) -> list[Tensor]:
    """Query blocks with the same number of listed blocks, in runs that fit the memory."""
    runs = []
    for count in counts.unique().tolist():
        if count == 0:
            continue
        numbers = count * columns * (width + rows)
        same = (counts == count).nonzero()[:, 0]
        runs += same.split(max(1, NUMBERS_AT_A_TIME // numbers))
    return runs


def both_sizes(block_size: int | tuple[int, int]) -> tuple[int, int]:
    """(queries, keys) of a block. Raise unless they are whole numbers of at least 1."""
    sizes = block_size if isinstance(block_size, tuple) else (block_size, block_size)
    if len(sizes) != 2:
        raise ValueError(f"block_size must be a number or a pair (Bq, Bk), got {block_size!r}")
    for size in sizes:
        check_count("block_size", size, least=1)
    return sizes


def check_table(blocks: Tensor, query: Tensor, key: Tensor, sizes: tuple[int, int]) -> None:
    """Raise unless `blocks` is a bool table of the blocks of these queries and keys."""
    if not isinstance(blocks, Tensor) or blocks.dtype != torch.bool:
        came = blocks.dtype if isinstance(blocks, Tensor) else type(blocks).__name__
        raise TypeError(f"blocks must be a bool tensor (True = the block is read), got {came}")
    counts = (-(-x.shape[-2] // size) for x, size in zip((query, key), sizes, strict=True))
    expected = torch.Size((*query.shape[:-2], *counts))
    if blocks.dim() < 2 or blocks.shape[-2:] != expected[-2:] or not fits(blocks.shape, expected):
        raise ValueError(
            f"blocks must have shape {tuple(expected)}, or broadcast to it over batch and heads "
            f"({query.shape[-2]} queries and {key.shape[-2]} keys in blocks of {sizes[0]} and "
            f"{sizes[1]}), got {tuple(blocks.shape)}"
        )


def why_not_kernel(query: Tensor, value: Tensor, sizes: tuple[int, int]) -> str | None:
    """What of this call the kernel cannot do, or None."""
    from attnlib.kernels.block_lists import BLOCK_SIZES

    if any(size not in BLOCK_SIZES for size in sizes):
        return f"the kernel takes block sizes 16, 32, 64 and 128, got {sizes}"
    return width_obstacle(query, value)
