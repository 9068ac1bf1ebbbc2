"""Supports chosen block by block, as modules that carry their sizes: operators of a model."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnlib.checks import check_count
from attnlib.read.block_sparse import block_sparse_attention
from attnlib.read.chosen_blocks import block_count
from attnlib.read.landmark_attention import landmark_attention
from attnlib.read.mixture_of_blocks import mean_keys, moba_attention


class NearBlocks(nn.Module):
    """Block-sparse attention to the query's own block, the one before it and the first.

    Without `is_causal` also to the one after it.
    """

    def __init__(self, head_width: int, *, block_size: int = 8):
        super().__init__()
        check_count("block_size", block_size, least=1)
        self.block_size = block_size

    def forward(
        self,
        query: Float[Tensor, "*batch heads N D"],
        key: Float[Tensor, "*batch heads M D"],
        value: Float[Tensor, "*batch heads M E"],
        *,
        is_causal: bool = False,
    ) -> Float[Tensor, "*batch heads N E"]:
        """The read of `attnlib.block_sparse_attention` with this table."""
        rows = torch.arange(block_count(query.shape[-2], self.block_size), device=query.device)
        columns = torch.arange(block_count(key.shape[-2], self.block_size), device=query.device)
        near = (rows[:, None] - columns).abs() <= 1
        return block_sparse_attention(
            query,
            key,
            value,
            near | (columns == 0),
            block_size=self.block_size,
            is_causal=is_causal,
        )


class MixtureOfBlocks(nn.Module):
    """MoBA with its sizes; it learns nothing of its own. A text of fewer blocks is read whole."""

    def __init__(self, head_width: int, *, block_size: int = 8, top_k: int = 3):
        super().__init__()
        check_count("block_size", block_size, least=1)
        check_count("top_k", top_k, least=1)
        self.block_size, self.top_k = block_size, top_k

    def forward(
        self,
        query: Float[Tensor, "*batch heads N D"],
        key: Float[Tensor, "*batch heads M D"],
        value: Float[Tensor, "*batch heads M E"],
        *,
        is_causal: bool = False,
        query_offset: int = 0,
    ) -> Float[Tensor, "*batch heads N E"]:
        """The read of `attnlib.moba_attention`."""
        blocks = max(1, block_count(key.shape[-2], self.block_size))
        return moba_attention(
            query,
            key,
            value,
            block_size=self.block_size,
            top_k=min(self.top_k, blocks),
            is_causal=is_causal,
            query_offset=query_offset,
        )


class MeanLandmarks(nn.Module):
    """Landmark attention without landmark tokens: a linear map of a block's mean key stands for it.

    A variation of ours that drops into any model; `LandmarkLM` has landmark tokens, as the paper.
    """

    def __init__(self, head_width: int, *, block_size: int = 8):
        super().__init__()
        check_count("block_size", block_size, least=1)
        self.block_size = block_size
        self.to_landmark = nn.Linear(head_width, head_width, bias=False)

    def forward(
        self,
        query: Float[Tensor, "*batch heads N D"],
        key: Float[Tensor, "*batch heads M D"],
        value: Float[Tensor, "*batch heads M E"],
        *,
        is_causal: bool = False,
        query_offset: int = 0,
    ) -> Float[Tensor, "*batch heads N E"]:
        """The read of `attnlib.landmark_attention` with landmarks made from the keys."""
        return landmark_attention(
            query,
            key,
            value,
            landmark=self.to_landmark(mean_keys(key, self.block_size)),
            block_size=self.block_size,
            is_causal=is_causal,
            query_offset=query_offset,
        )
