"""Weights that are decided one by one, folded tile by tile: a plain sum, without the N x M matrix.

Softmax has to carry a running maximum and total from tile to tile (`chunked_softmax`). A weight
that depends on its own score and on n alone leaves nothing to carry but the read.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attnlib.backend import gradient_wanted
from attnlib.checks import check_attention, check_count, check_mask, check_scale
from attnlib.read.chunked_softmax import chunks, tile_of
from attnlib.read.heads import repeat_key_heads
from attnlib.score.changes import ScoreMod, changed
from attnlib.score.compare import dot_product
from attnlib.support import Predicate, allowed_keys, index_grid


def attend_in_tiles(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    *,
    weight_of: Callable[[Tensor, Tensor], Tensor],
    score_mod: ScoreMod | None = None,
    support: Predicate | None = None,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
    enable_gqa: bool = False,
    chunk: int = 512,
) -> Float[Tensor, "*heads N E"]:
    r"""o_i = sum over tiles of sum_{j in the tile} weight_of(s_ij, n_i) v_j.

    `weight_of` maps scores (..., rows, keys) and n (..., rows, 1), the number of keys that the
    whole row may see, to weights. n is counted before the scores are looked at. A tile in which
    nothing is allowed is skipped; the backward pass computes each block of `chunk` rows again.
    Half precision is accumulated in float32.

    Shapes, support and errors as in `attend`. Cost: time N M (D + E), memory
    (N + M)(D + E) + chunk * M for gradients, without them chunk^2 and a bool for chunk * M pairs.
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
    dtype = torch.promote_types(query.dtype, torch.float32)

    def tiles_of(rows: slice) -> list[tuple[slice, Tensor]]:
        """The stretches of keys that some row of the block sees, with who sees what."""
        tiles = []
        for columns in chunks(key.shape[-2], chunk):
            tile = tile_of(where, rows, columns)
            if is_causal and columns.start >= query_offset + rows.stop:
                break  # this chunk and all later ones lie in the future of every row
            mask = None if attn_mask is None else attn_mask[..., rows, columns]
            allowed = allowed_keys(tile, support, mask, is_causal)
            if allowed.any():
                tiles.append((columns, allowed))
        return tiles

    def read_block(query: Tensor, key: Tensor, value: Tensor, rows: slice) -> Tensor:
        tiles = tiles_of(rows)
        read = query.new_zeros(*query.shape[:-1], value.shape[-1], dtype=dtype)
        count = sum(allowed.sum(-1, keepdim=True) for _, allowed in tiles)
        for columns, allowed in tiles:
            scores = dot_product(query.to(dtype), key[..., columns, :].to(dtype), scale)
            if score_mod is not None:
                scores = changed(score_mod, scores, tile_of(where, rows, columns))
            weights = weight_of(scores, count.clamp(min=1).to(dtype)).masked_fill(~allowed, 0.0)
            read = read + weights @ value[..., columns, :].to(dtype)
        return read.to(query.dtype)

    blocks = chunks(query.shape[-2], chunk) or [slice(0, 0)]
    # A single block has nothing to gain from being computed twice.
    recompute = len(blocks) > 1 and gradient_wanted(query, key, value)

    def block(rows: slice) -> Tensor:
        args = (query[..., rows, :], key, value, rows)
        return (
            checkpoint(read_block, *args, use_reentrant=False) if recompute else read_block(*args)
        )

    # Nothing of nothing: where no tile is read, it still ties the zero read to its inputs.
    nothing = query[..., :0].sum() + key[..., :0].sum() + value[..., :0].sum()
    return torch.cat([block(rows) for rows in blocks], dim=-2) + nothing
