"""Softmax attention read chunk by chunk: the same numbers without the N x M matrix."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.checks import check_attention, check_count, check_mask, check_scale
from attnlib.memory.partial_read import empty_read, finish, merge, partial_read
from attnlib.read.heads import repeat_key_heads
from attnlib.score.changes import ScoreMod, changed
from attnlib.score.compare import dot_product
from attnlib.support import Grid, Predicate, allowed_keys, index_grid


@mechanism(
    key="memory-efficient-attention",
    paper="memory-efficient-attention",
    chapter="1-foundations/exact-and-cached",
    section="one-pass",
    step="read",
    idea="softmax attention folded chunk by chunk into a running maximum, total and read",
    equation=r"\mathrm{softmax}(Q K^\top / \sqrt{D})\, V",
    cost="time N M (D + E), memory (N + M)(D + E) + chunk M",
    oracle=attend,
    promises=Promises(),
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def chunked_softmax_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    *,
    score_mod: ScoreMod | None = None,
    support: Predicate | None = None,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
    enable_gqa: bool = False,
    chunk: int = 512,
) -> Float[Tensor, "*heads N E"]:
    r"""Exact softmax attention by the online softmax: equal to `attend` up to rounding.

    Queries are taken `chunk` rows at a time; for each such block the keys are folded, `chunk` at a
    time, into a running (max, total, read). A tile in which nothing is allowed is skipped. The
    backward pass recomputes each block, so no tile outlives its block in either direction.
    Half precision is accumulated in float32.

    Shapes as in `attend`. Cost: time N M (D + E), memory (N + M)(D + E) + chunk * M for gradients,
    (N + M)(D + E) + chunk^2 without.
    Source: Milakov and Gimelshein (2018); Rabe and Staats (2021). Derived in chapter 1.4.
    """
    check_attention(query, key, value, enable_gqa)
    check_scale(scale)
    check_count("query_offset", query_offset)
    check_count("chunk", chunk, least=1)
    if enable_gqa:
        key, value = repeat_key_heads(query, key, value)
    where = index_grid(query, key.shape[-2], query_offset)
    if attn_mask is not None:
        shape = torch.Size((*query.shape[:-1], key.shape[-2]))
        check_mask(attn_mask, shape)
        attn_mask = attn_mask.expand(shape)

    dtype = torch.float32 if query.element_size() < 4 else query.dtype

    def read_block(query: Tensor, key: Tensor, value: Tensor, rows: slice) -> Tensor:
        state = empty_read(query.to(dtype), value.shape[-1])
        for columns in chunks(key.shape[-2], chunk):
            tile = tile_of(where, rows, columns)
            if is_causal and tile[3][0, 0] > tile[2][-1, 0]:
                break  # this chunk and all later ones lie in the future of every row
            mask = None if attn_mask is None else attn_mask[..., rows, columns]
            allowed = allowed_keys(tile, support, mask, is_causal)
            if not allowed.any():
                continue
            scores = dot_product(query.to(dtype), key[..., columns, :].to(dtype), scale)
            if score_mod is not None:
                scores = changed(score_mod, scores, tile)
            part = partial_read(
                scores, value[..., columns, :].to(dtype), None if allowed.all() else allowed
            )
            state = merge(state, part)
        return finish(state).to(query.dtype)

    def block(rows: slice) -> Tensor:
        args = (query[..., rows, :], key, value, rows)
        if torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)):
            return checkpoint(read_block, *args, use_reentrant=False)
        return read_block(*args)

    # Nothing of nothing: where no tile is read, it still ties the zero read to its inputs.
    nothing = query[..., :0].sum() + key[..., :0].sum() + value[..., :0].sum()
    blocks = [block(rows) for rows in chunks(query.shape[-2], chunk)]
    if not blocks:
        return query.new_zeros(*query.shape[:-1], value.shape[-1]) + nothing
    return torch.cat(blocks, dim=-2) + nothing


def chunks(length: int, size: int) -> list[slice]:
    """The slices [0, size), [size, 2 size), ... that cover `length`."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def tile_of(where: Grid, rows: slice, columns: slice) -> Grid:
    """The index tensors of one tile of the scores."""
    b, h, q_idx, kv_idx = where
    return b, h, q_idx[rows], kv_idx[:, columns]
