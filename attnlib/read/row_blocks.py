"""`attend`, a block of queries at a time: any weight of a row without the N x M matrix."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attnlib.attend import attend
from attnlib.backend import gradient_wanted
from attnlib.checks import check_attention, check_count, check_mask, check_scale
from attnlib.read.chunked_softmax import chunks
from attnlib.score.changes import ScoreMod
from attnlib.score.compare import dot_product
from attnlib.support import Predicate
from attnlib.weight.softmax import softmax


def attend_in_rows(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    *,
    score: Callable[..., Tensor] = dot_product,
    score_mod: ScoreMod | None = None,
    support: Predicate | None = None,
    weight: Callable[[Tensor, Tensor], Tensor] = softmax,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
    enable_gqa: bool = False,
    chunk: int = 512,
) -> Float[Tensor, "*heads N E"]:
    r"""Equal to `attend` with this score and weight; only `chunk` rows of weights exist at a time.

    A weight that looks at its whole row (a threshold, a sum) needs no more than that row, so the
    rows may be taken in blocks. The backward pass computes each block again. Under is_causal a
    block leaves out the keys that lie in the future of all its rows. Half precision is computed in
    float32.

    Shapes, support and errors as in `attend`. Cost: time N M (D + E), memory
    (N + M)(D + E) + chunk M, with gradients too.
    """
    check_attention(query, key, value, enable_gqa)
    check_scale(scale)
    check_count("query_offset", query_offset)
    check_count("chunk", chunk, least=1)
    keys = key.shape[-2]
    if attn_mask is not None:
        shape = torch.Size((*query.shape[:-1], keys))
        check_mask(attn_mask, shape)
        attn_mask = attn_mask.expand(shape)
    dtype = torch.promote_types(query.dtype, torch.float32)

    def read_block(query: Tensor, key: Tensor, value: Tensor, rows: slice) -> Tensor:
        seen = slice(0, min(keys, query_offset + rows.stop) if is_causal else keys)
        read = attend(
            query.to(dtype),
            key[..., seen, :].to(dtype),
            value[..., seen, :].to(dtype),
            score=score,
            score_mod=score_mod,
            support=support,
            weight=weight,
            attn_mask=None if attn_mask is None else attn_mask[..., rows, seen],
            is_causal=is_causal,
            query_offset=query_offset + rows.start,
            scale=scale,
            enable_gqa=enable_gqa,
        )
        return read.to(query.dtype)

    blocks = chunks(query.shape[-2], chunk) or [slice(0, 0)]
    # A single block has nothing to gain from being computed twice.
    recompute = len(blocks) > 1 and gradient_wanted(query, key, value)

    def block(rows: slice) -> Tensor:
        args = (query[..., rows, :], key, value, rows)
        return (
            checkpoint(read_block, *args, use_reentrant=False) if recompute else read_block(*args)
        )

    return torch.cat([block(rows) for rows in blocks], dim=-2)
