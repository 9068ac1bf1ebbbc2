"""Landmark attention: a block is read through its landmark, which says how much of it to read."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.checks import check_attention, check_count, check_dtype, check_scale, check_tensor
from attnlib.memory.partial_read import PartialRead, finish
from attnlib.read.chosen_blocks import (
    BlockReads,
    block_count,
    block_reads,
    chosen_pairs,
    highest_blocks,
    merged,
)
from attnlib.weight.grouped_softmax import grouped_softmax


def landmark_weights(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    landmark: Float[Tensor, "*heads blocks D"],
    positions: Int[Tensor, " N"] | None,
    *,
    block_size: int,
    top_k: int | None = None,
    scale: float | None = None,
) -> Float[Tensor, "*heads N M"]:
    """The weights of `landmark_attention`, dense; no `positions`: not causal, no own block."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    keys, blocks = key.shape[-2], landmark.shape[-2]
    place = torch.arange(keys, device=key.device)
    block, own = place // block_size, own_blocks(query, positions, block_size)
    landmark_scores = (query * scale) @ landmark.mT
    past = past_blocks(landmark_scores, own, top_k)

    is_own = block == own[:, None]
    seen = chosen_pairs(past, block_size, keys)
    if positions is not None:
        seen = seen | (is_own & (place <= positions[:, None]))
    groups = torch.where(is_own, 0, block + 1)
    weights = grouped_softmax(
        torch.cat(((query * scale) @ key.mT, landmark_scores), dim=-1),
        torch.cat((groups, groups.new_zeros(len(own), blocks)), dim=-1),
        torch.cat((seen, past), dim=-1),
    )
    inside, of_blocks = weights.split((keys, blocks), dim=-1)
    of_blocks = of_blocks.repeat_interleave(block_size, dim=-1)[..., :keys]
    return inside * torch.where(is_own, 1.0, of_blocks)


def dense_landmark_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    value: Float[Tensor, "*heads M E"],
    *,
    landmark: Float[Tensor, "*heads blocks D"],
    block_size: int,
    top_k: int | None = None,
    is_causal: bool = True,
    query_offset: int = 0,
    scale: float | None = None,
) -> Float[Tensor, "*heads N E"]:
    """The definition: the weights as a matrix, then the read. Cost: time and memory N M."""
    positions = positions_of(query, is_causal, query_offset)
    sizes = {"block_size": block_size, "top_k": top_k, "scale": scale}
    return landmark_weights(query, key, landmark, positions, **sizes) @ value


def some_landmarks(query: Tensor, key: Tensor, value: Tensor) -> dict:
    """Blocks of 4 keys for a trial, three are retrieved; a landmark is its block's first key."""
    landmark = key[..., ::4, :].detach().clone()
    return {"landmark": landmark, "block_size": 4, "top_k": min(3, landmark.shape[-2])}


@mechanism(
    key="landmark-attention",
    paper="landmark-attention",
    chapter="6-sparse/content-routing",
    section="a-landmark-a-block",
    step="weight",
    idea="a landmark key stands for each block; its weight is shared out among the block's keys",
    equation=r"w_{ij} = \mathrm{softmax}_{\mathcal{B}(j)}(s_i)_j \; p_i(\ell_{\mathcal{B}(j)})",
    cost="time N M / B for the landmarks, T B N (D + E) for T retrieved blocks",
    oracle=dense_landmark_attention,
    promises=Promises(
        query_equivariant=False,
        key_invariant=False,
        grouped_query=False,
        padding=False,
        arguments=some_landmarks,
    ),
    taxonomy=Taxonomy(
        sequences="self", levels="multi", positions="soft", representations="multi-head"
    ),
)
def landmark_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    value: Float[Tensor, "*heads M E"],
    *,
    landmark: Float[Tensor, "*heads blocks D"],
    block_size: int,
    top_k: int | None = None,
    is_causal: bool = True,
    query_offset: int = 0,
    query_positions: Int[Tensor, " N"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "*heads N E"]:
    r"""Attention by grouped softmax: first between blocks, by landmarks, then inside each block.

    A query shares its weight between the keys of its own block and the landmarks of the blocks
    before it, in one softmax. What a landmark gets is shared among its block's keys, in another:

    .. math:: w_{ij} = \begin{cases} p_i(j) & j \text{ in the own block} \\
              p_i(\ell_b) \, \mathrm{softmax}_{\mathcal{B}_b}(s_i)_j & j \in \mathcal{B}_b
              \text{ before it} \end{cases}

    `landmark` holds one key for each block of `block_size` keys (the last block may be shorter);
    landmarks have no value and are never read. With `top_k` a query reads, besides its own block,
    only the `top_k` past blocks whose landmarks score best, and no N x M matrix is made. Without
    `is_causal` (ours) no block is a query's own and all are read through landmarks.
    `query_positions` places the queries elsewhere than at 0 ... N - 1 plus `query_offset`.

    Cost: N M (D + E) without `top_k`; with it N M D / B + T B N (D + E), T = top_k + 1.
    Source: Mohtashami and Jaggi (2023), section 3. Derived in chapter 6.1.
    """
    check_landmarks(query, key, value, landmark, block_size, top_k)
    check_scale(scale)
    check_count("query_offset", query_offset)
    positions = positions_of(query, is_causal, query_offset, query_positions)
    dtype = torch.float32 if query.element_size() < 4 else query.dtype
    tensors = (x.to(dtype) for x in (query, key, value, landmark))
    form = read_by_weights if top_k is None else read_retrieved
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return form(*tensors, positions, block_size, top_k, scale).to(query.dtype)


def read_by_weights(query, key, value, landmark, positions, block_size, top_k, scale) -> Tensor:
    """All blocks: the dense form."""
    sizes = {"block_size": block_size, "top_k": top_k, "scale": scale}
    return landmark_weights(query, key, landmark, positions, **sizes) @ value


def read_retrieved(query, key, value, landmark, positions, block_size, top_k, scale) -> Tensor:
    """The own block and the `top_k` best past ones, block by block.

    A past block's read is finished inside the block and enters the sum over blocks as one key
    whose score is that of the landmark.
    """
    queries = query.shape[-2]
    own = own_blocks(query, positions, block_size)
    scores = (query * scale) @ landmark.mT
    past = past_blocks(scores, own, top_k)
    is_own = torch.arange(landmark.shape[-2], device=query.device) == own[:, None]
    reads = block_reads(
        query, key, value, past | is_own, positions, block_size=block_size, scale=scale
    )
    entered = own[reads.row % queries] == reads.block
    score = scores.reshape(query.shape[:-1].numel(), scores.shape[-1])[reads.row, reads.block]
    part = seen_through(score[:, None], reads.part)
    chosen = (torch.where(entered[:, None], a, b) for a, b in zip(reads.part, part, strict=True))
    rows = query.shape[:-1]
    out = finish(merged(BlockReads(*reads[:2], PartialRead(*chosen)), rows.numel()))
    nothing = query[..., :0].sum() + key[..., :0].sum() + value[..., :0].sum()
    return out.reshape(*rows, value.shape[-1]) + nothing


def seen_through(score: Float[Tensor, "pairs 1"], part: PartialRead) -> PartialRead:
    """A finished read as one key with this score: weight e^score, value the read."""
    weight = torch.exp(score - score.detach())  # one, but its gradient is that of the score
    return PartialRead(score.detach(), weight, weight * finish(part))


def own_blocks(query: Tensor, positions: Tensor | None, block_size: int) -> Int[Tensor, " N"]:
    """The block that each query stands in; -1, which is none, where nothing is causal."""
    if positions is None:
        return torch.full((query.shape[-2],), -1, device=query.device)
    return positions // block_size


def past_blocks(
    scores: Float[Tensor, "*heads N blocks"], own: Int[Tensor, " N"], top_k: int | None
) -> Bool[Tensor, "*heads N blocks"]:
    """The blocks that a query sees through landmarks: those before its own, or the best of them."""
    block = torch.arange(scores.shape[-1], device=scores.device)
    hidden = (own >= 0)[:, None] & (block >= own[:, None])
    if top_k is None:
        return (~hidden).expand(scores.shape)
    return highest_blocks(scores.detach().masked_fill(hidden, -torch.inf), top_k)


def positions_of(
    query: Tensor, is_causal: bool, query_offset: int, query_positions: Tensor | None = None
) -> Int[Tensor, " N"] | None:
    """Where the queries stand; None where nothing is causal."""
    if not is_causal:
        return None
    if query_positions is None:
        return torch.arange(query.shape[-2], device=query.device) + query_offset
    if not isinstance(query_positions, Tensor):
        came = type(query_positions).__name__
        raise TypeError(f"query_positions must be a torch.Tensor, got {came}")
    whole = not query_positions.is_floating_point() and query_positions.dtype != torch.bool
    if not whole or query_positions.shape != query.shape[-2:-1]:
        raise ValueError(
            f"query_positions must be {query.shape[-2]} whole numbers, "
            f"got {query_positions.dtype} {tuple(query_positions.shape)}"
        )
    if (query_positions < 0).any():
        raise ValueError(f"query_positions must not be negative, got {query_positions.min()}")
    return query_positions + query_offset


def check_landmarks(query, key, value, landmark, block_size: int, top_k: int | None) -> None:
    """Raise unless there is one landmark of the keys' width for each block."""
    check_attention(query, key, value)
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"key must have the width {query.shape[-1]} of query, got {key.shape[-1]}")
    check_tensor("landmark", landmark)
    check_dtype("landmark", landmark, query)
    blocks = block_count(key.shape[-2], block_size)
    expected = (*key.shape[:-2], blocks, key.shape[-1])
    if landmark.shape != expected:
        raise ValueError(
            f"landmark must have shape {expected}, one for each block of {block_size} keys, "
            f"got {tuple(landmark.shape)}"
        )
    if top_k is not None:
        check_count("top_k", top_k)
        if top_k > blocks:
            raise ValueError(f"top_k must be at most the number of blocks, {blocks}, got {top_k}")
