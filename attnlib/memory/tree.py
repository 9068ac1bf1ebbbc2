"""A tree of parts: unfinished reads merged pairwise, round after round.

Merging is associative, so the parts may be grouped as one likes. A chain of p parts takes p - 1
merges one after the other; a tree takes the same p - 1 merges in ceil(log2 p) rounds, and all
merges of a round may run at once, on as many devices.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.checks import check_attention, check_count, check_mask, check_scale
from attnlib.memory.partial_read import PartialRead, empty_read, finish, merge, partial_read
from attnlib.read.heads import repeat_key_heads
from attnlib.score.changes import ScoreMod, changed
from attnlib.score.compare import dot_product
from attnlib.support import Predicate, allowed_keys, index_grid


def merge_tree(parts: Sequence[PartialRead]) -> tuple[PartialRead, int]:
    """All parts as one, and the number of rounds that it took: ceil(log2 p) for p parts.

    In each round neighbors merge pairwise; a last one without a neighbor waits for the next round.
    Raises ValueError where there are no parts.
    Source: Shyam et al. (2024), theorem 1: N/p + log p steps for an associative reduction.
    """
    if not parts:
        raise ValueError("parts must hold at least one PartialRead, got none")
    parts, rounds = list(parts), 0
    while len(parts) > 1:
        pairs = [merge(left, right) for left, right in zip(parts[::2], parts[1::2], strict=False)]
        parts = pairs + parts[2 * len(pairs) :]
        rounds += 1
    return parts[0], rounds


@mechanism(
    key="tree-attention",
    paper="tree-attention",
    chapter="1-foundations/exact-and-cached",
    section="a-tree-of-parts",
    step="memory",
    idea="keys cut into shards, each read alone, the unfinished reads merged in a tree",
    equation=r"\mathrm{softmax}(Q K^\top / \sqrt{D})\, V",
    cost="time N M (D + E), in ceil(log2 p) rounds of merging after the p shards are read",
    oracle=attend,
    promises=Promises(),
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def tree_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    *,
    shards: int = 8,
    score_mod: ScoreMod | None = None,
    support: Predicate | None = None,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Float[Tensor, "*heads N E"]:
    r"""Exact softmax attention with the keys in `shards` parts, merged in a tree.

    .. math:: o = \mathrm{finish}(r_1 \oplus r_2 \oplus \dots \oplus r_p), \qquad
        r_s = \Big(m_s,\; \sum_{j \in s} e^{s_j - m_s},\; \sum_{j \in s} e^{s_j - m_s} v_j\Big)

    In one process, to be compared with `attend`; `attnlib.distributed.tree_decode` is the same
    with a process for each shard. Shards differ by one key at most; a shard without keys is the
    empty read. Half precision is accumulated in float32.

    Shapes as in `attend`. Cost: time N M (D + E); memory N M / p for the scores of one shard and
    p N (E + 2) for the parts, N M where gradients are wanted.
    Source: Shyam et al. (2024), section 5 and algorithm 3. Derived in chapter 1.4.
    """
    check_attention(query, key, value, enable_gqa)
    check_scale(scale)
    check_count("query_offset", query_offset)
    check_count("shards", shards, least=1)
    if enable_gqa:
        key, value = repeat_key_heads(query, key, value)
    b, h, q_idx, kv_idx = index_grid(query, key.shape[-2], query_offset)
    if attn_mask is not None:
        shape = torch.Size((*query.shape[:-1], key.shape[-2]))
        check_mask(attn_mask, shape)
        attn_mask = attn_mask.expand(shape)

    dtype = torch.float32 if query.element_size() < 4 else query.dtype

    def read_shard(columns: slice) -> PartialRead:
        where = (b, h, q_idx, kv_idx[:, columns])
        mask = None if attn_mask is None else attn_mask[..., columns]
        allowed = allowed_keys(where, support, mask, is_causal)
        scores = dot_product(query.to(dtype), key[..., columns, :].to(dtype), scale)
        if score_mod is not None:
            scores = changed(score_mod, scores, where)
        return partial_read(scores, value[..., columns, :].to(dtype), allowed)

    parts = [
        read_shard(columns)
        if columns.start < columns.stop
        else empty_read(query.to(dtype), value.shape[-1])
        for columns in shard_slices(key.shape[-2], shards)
    ]
    merged, _ = merge_tree(parts)
    return finish(merged).to(query.dtype)


def shard_slices(length: int, shards: int) -> list[slice]:
    """`length` tokens cut into `shards` slices whose sizes differ by one at most."""
    bounds = [length * shard // shards for shard in range(shards + 1)]
    return [slice(start, stop) for start, stop in pairwise(bounds)]
