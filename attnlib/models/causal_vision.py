"""Images under a causal mask: where the class token stands, and a mask that closes slowly."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnlib.checks import check_count
from attnlib.choices import check_choice
from attnlib.models.blocks import Block
from attnlib.models.positions import TOKEN_SCALE
from attnlib.models.vision import patches
from attnlib.weight.soft_mask import check_share, soft_mask, soft_masked_attention
from attnlib.weight.softmax_attention import softmax_attention

__all__ = ["CausalVision", "MaskedSoftmax", "soft_mask", "soft_masked_attention"]


class MaskedSoftmax(nn.Module):
    """The operator of `CausalVision`: a causal mask, or while `share` is a number the soft mask."""

    def __init__(self, head_width: int):
        super().__init__()
        self.share: float | None = None

    def forward(
        self,
        query: Float[Tensor, "*batch heads N D"],
        key: Float[Tensor, "*batch heads N D"],
        value: Float[Tensor, "*batch heads N E"],
    ) -> Float[Tensor, "*batch heads N E"]:
        """Softmax attention of each token over its past, wholly or for the most part."""
        if self.share is None:
            return softmax_attention(query, key, value, is_causal=True)
        return soft_masked_attention(query, key, value, share=self.share)


class CausalVision(nn.Module):
    """A vision transformer whose tokens see their past alone: patches row by row, one class token.

    `class_token` is "first" (before the patches, as usual: under the mask it sees itself alone) or
    "last" (behind them: it sees all). The logits are read from the class token. Positions are
    learned. `soften(share)` puts the soft mask in place of the causal one, `soften(None)` ends it;
    `soften(0.0)` is not the causal model, its denominators still see the future.
    Shapes: images (batch, channels, size, size) -> logits (batch, classes).
    Source: Wang et al. (2024), sections 3.3 (class token) and 3.6 (soft mask).
    """

    def __init__(
        self,
        size: int,
        patch: int,
        classes: int,
        *,
        class_token: str = "last",
        channels: int = 1,
        width: int = 64,
        heads: int = 2,
        layers: int = 2,
        expansion: int = 2,
        seed: int = 0,
    ):
        super().__init__()
        check_choice("class_token", class_token, ("first", "last"))
        check_count("patch", patch, least=1)
        if size % patch:
            raise ValueError(f"patch must divide size {size}, got {patch}")
        self.shape, self.patch = (channels, size, size), patch
        self.first = class_token == "first"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Linear(channels * patch * patch, width)
            self.class_token = nn.Parameter(torch.randn(width) * TOKEN_SCALE)
            self.positions = nn.Parameter(torch.randn((size // patch) ** 2 + 1, width))
            self.blocks = nn.ModuleList(
                Block(width, heads, operator=MaskedSoftmax, expansion=expansion)
                for _ in range(layers)
            )
            self.norm = nn.LayerNorm(width)
            self.to_logits = nn.Linear(width, classes)
        self.positions.data *= TOKEN_SCALE

    def soften(self, share: float | None) -> None:
        """Take the soft mask with this share of both directions, or None for the causal mask."""
        if share is not None:
            check_share(share)
        for block in self.blocks:
            block.attention.operator.share = share

    def forward(
        self, images: Float[Tensor, "batch channels size size"], *, return_weights: bool = False
    ) -> Float[Tensor, "batch classes"] | tuple[Tensor, Tensor]:
        """Logits; with `return_weights` also the weights (layers, batch, heads, N, N)."""
        if tuple(images.shape[1:]) != self.shape:
            raise ValueError(
                f"images must have shape (batch, {', '.join(map(str, self.shape))}), "
                f"got {tuple(images.shape)}"
            )
        x = self.embedding(patches(images, self.patch))
        token = self.class_token.expand(len(x), 1, -1)
        x = torch.cat((token, x) if self.first else (x, token), dim=1) + self.positions
        weights = []
        for block in self.blocks:
            x = block(x, return_weights=return_weights)
            if return_weights:
                x, layer_weights = x
                weights.append(layer_weights)
        logits = self.to_logits(self.norm(x[:, 0 if self.first else -1]))
        return (logits, torch.stack(weights)) if return_weights else logits
