"""A language model with landmarks: one landmark token for each block of the text."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attnlib.checks import check_count
from attnlib.models.language import DecoderLM
from attnlib.read.chosen_blocks import block_count
from attnlib.read.landmark_attention import landmark_attention


class LandmarkHeads(nn.Module):
    """Landmark attention for a sequence of N tokens followed by their landmarks.

    The last ceil(N / block_size) places are landmarks: their keys are the landmarks of the blocks,
    and as queries they stand at the last place of their block, so that they see all of it.
    """

    def __init__(self, block_size: int):
        super().__init__()
        self.block_size = block_size
        self.top_k: int | None = None

    def forward(
        self,
        query: Float[Tensor, "*batch heads L D"],
        key: Float[Tensor, "*batch heads L D"],
        value: Float[Tensor, "*batch heads L E"],
        *,
        is_causal: bool = True,
    ) -> Float[Tensor, "*batch heads L E"]:
        """The read of tokens and landmarks, L = N + ceil(N / block_size)."""
        length = query.shape[-2]
        blocks = block_count(length, self.block_size + 1)
        tokens = length - blocks
        place = torch.arange(tokens, device=query.device)
        ends = (torch.arange(blocks, device=query.device) + 1) * self.block_size - 1
        return landmark_attention(
            query,
            key[..., :tokens, :],
            value[..., :tokens, :],
            landmark=key[..., tokens:, :],
            block_size=self.block_size,
            top_k=self.top_k,
            is_causal=is_causal,
            query_positions=torch.cat((place, ends.clamp(max=tokens - 1))),
        )


class LandmarkLM(nn.Module):
    """A decoder that trains on short texts with all blocks and reads long ones by retrieval.

    A landmark token is added for each block of `block_size` tokens. Positions are not encoded, so
    the landmarks may stand at the end of the sequence; what they see is their own block and what
    comes before it. After training, `retrieve(top_k)` makes each query of each head read its own
    block and the `top_k` past blocks whose landmarks score best.
    Shapes: tokens (batch, N) -> logits (batch, N, vocabulary). Further arguments as `DecoderLM`.
    Source: Mohtashami and Jaggi (2023), section 3; there the landmarks stand between the blocks
    and positions are encoded.
    """

    def __init__(self, vocabulary: int, *, block_size: int, seed: int = 0, **sizes):
        super().__init__()
        self.block_size, self.vocabulary = block_size, vocabulary
        operator = LandmarkHeads(block_size)
        self.decoder = DecoderLM(
            vocabulary + 1, operator=operator, position="none", seed=seed, **sizes
        )

    def retrieve(self, top_k: int | None) -> None:
        """Read `top_k` past blocks from now on; None: all of them."""
        if top_k is not None:
            check_count("top_k", top_k)
        for block in self.decoder.blocks:
            block.attention.operator.top_k = top_k

    def forward(self, tokens: Int[Tensor, "batch N"]) -> Float[Tensor, "batch N vocabulary"]:
        """Logits of the tokens; the landmarks predict nothing."""
        size, length = tokens.shape
        blocks = block_count(length, self.block_size)
        landmarks = tokens.new_full((size, blocks), self.vocabulary)
        logits = self.decoder(torch.cat((tokens, landmarks), dim=1))
        return logits[:, :length, : self.vocabulary]
