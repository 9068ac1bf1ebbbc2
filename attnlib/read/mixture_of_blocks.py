"""Mixture of block attention (MoBA): every query reads the blocks whose mean key it likes best."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.checks import check_attention, check_count, check_scale
from attnlib.read.chosen_blocks import (
    block_count,
    chosen_pairs,
    highest_blocks,
    read_chosen_blocks,
)


def mean_keys(
    key: Float[Tensor, "*heads M D"], block_size: int
) -> Float[Tensor, "*heads blocks D"]:
    """The mean key of every block; a shorter last block is averaged over the keys it has."""
    keys, blocks = key.shape[-2], block_count(key.shape[-2], block_size)
    sums = pad(key, (0, 0, 0, blocks * block_size - keys)).unflatten(-2, (blocks, block_size))
    starts = torch.arange(blocks, device=key.device) * block_size
    sizes = (keys - starts).clamp(max=block_size)
    return sums.sum(-2) / sizes[:, None].to(key.dtype)


def gate_scores(
    query: Float[Tensor, "*heads N D"], key: Float[Tensor, "*heads M D"], *, block_size: int
) -> Float[Tensor, "*heads N blocks"]:
    """How much a query likes a block: its product with the block's mean key.

    Source: Lu et al. (2025), section 2.2.
    """
    return query @ mean_keys(key, block_size).mT


@torch.no_grad()
def chosen_blocks(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    *,
    block_size: int,
    top_k: int,
    is_causal: bool = True,
    query_offset: int = 0,
) -> Bool[Tensor, "*heads N blocks"]:
    """The blocks that each query reads: its own, and the best of those that lie wholly before it.

    `top_k` counts the own block, as the authors' code does: top_k = 1 is the own block alone. While
    fewer than `top_k` blocks have begun, all of them are read. Without `is_causal` (ours) no block
    is a query's own: it reads the `top_k` best of all. Of equal scores the earlier block wins.
    No gradient flows through the choice.
    """
    check_top_k(top_k, block_count(key.shape[-2], block_size))
    # Scores in half precision could overflow, and would tie where those of attention do not.
    dtype = torch.float32 if query.element_size() < 4 else query.dtype
    scores = gate_scores(query.to(dtype), key.to(dtype), block_size=block_size)
    if is_causal:
        positions = torch.arange(query.shape[-2], device=query.device) + query_offset
        own = (positions // block_size)[:, None]
        block = torch.arange(scores.shape[-1], device=query.device)
        scores = scores.masked_fill(block > own, -torch.inf).masked_fill(block == own, torch.inf)
    return highest_blocks(scores, top_k)


def dense_moba_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    value: Float[Tensor, "*heads M E"],
    *,
    block_size: int,
    top_k: int,
    is_causal: bool = True,
    query_offset: int = 0,
    scale: float | None = None,
) -> Float[Tensor, "*heads N E"]:
    """The definition: `attend` over the chosen blocks. Cost: time and memory N M."""
    choice = {"is_causal": is_causal, "query_offset": query_offset}
    chosen = chosen_blocks(query, key, block_size=block_size, top_k=top_k, **choice)
    mask = chosen_pairs(chosen, block_size, key.shape[-2])
    return attend(query, key, value, attn_mask=mask, scale=scale, **choice)


@mechanism(
    key="moba",
    paper="moba",
    chapter="6-sparse/content-routing",
    section="mixture-of-blocks",
    step="support",
    idea="every query reads its own block and the past blocks whose mean key it likes best",
    equation=r"S_i = \bigcup \{ \mathcal{B}_b : q_i \bar k_b \in \mathrm{top}_k \}",
    cost="time N M D / B for the gate, k N B (D + E) for the read; memory k N E",
    oracle=dense_moba_attention,
    promises=Promises(
        query_equivariant=False,
        key_invariant=False,
        grouped_query=False,
        padding=False,
        arguments=lambda query, key, value: {
            "block_size": 3,
            "top_k": min(4, max(1, -(-key.shape[-2] // 3))),
        },
    ),
    taxonomy=Taxonomy(
        sequences="self", levels="multi", positions="soft", representations="multi-head"
    ),
)
def moba_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    value: Float[Tensor, "*heads M E"],
    *,
    block_size: int,
    top_k: int,
    is_causal: bool = True,
    query_offset: int = 0,
    scale: float | None = None,
) -> Float[Tensor, "*heads N E"]:
    r"""Softmax attention of each query over its own block and its `top_k` - 1 best past blocks.

    .. math:: g_{ib} = [\, q_i \cdot \bar k_b \in \mathrm{top}_k \,], \qquad
              o_i = \mathrm{softmax}(q_i K_{S_i}^\top / \sqrt{D})\, V_{S_i}, \quad
              S_i = \bigcup_{g_{ib} = 1} \mathcal{B}_b

    with the mean key of a block as its k-bar, no future block, and the own block always
    (`chosen_blocks`). Once top_k reaches the number of blocks this is full attention.

    Shapes as in `attend`. The queries that chose a block are read together, and the parts of one
    query are merged by their log-sums, so no N x M matrix is made.
    Cost: time N M D / B + k N B (D + E), with k = top_k and B = block_size.
    Raises ValueError for a `top_k` below 1 or above the number of blocks.
    Source: Lu et al. (2025), section 2.2 and algorithm 1. Derived in chapter 6.1.
    """
    check_attention(query, key, value)
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"key must have the width {query.shape[-1]} of query, got {key.shape[-1]}")
    check_scale(scale)
    check_count("query_offset", query_offset)
    choice = {"block_size": block_size, "is_causal": is_causal, "query_offset": query_offset}
    chosen = chosen_blocks(query, key, top_k=top_k, **choice)
    return read_chosen_blocks(query, key, value, chosen, scale=scale, **choice)


def check_top_k(top_k: int, blocks: int) -> None:
    """Raise unless there are so many blocks; where there are no keys at all, 1 is allowed."""
    check_count("top_k", top_k, least=1)
    if top_k > max(1, blocks):
        raise ValueError(f"top_k must be at most the number of blocks, {blocks}, got {top_k}")
