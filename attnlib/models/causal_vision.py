"""Images under a causal mask: where the class token stands, and a mask that closes slowly."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnlib.checks import check_count
from attnlib.choices import check_choice
from attnlib.models.blocks import Block
from attnlib.models.positions import TOKEN_SCALE
from attnlib.models.vision import patches
from attnlib.weight.softmax_attention import softmax_attention


def soft_mask(length: int, share: float, *, dtype=None) -> Float[Tensor, "N N"]:
    r"""S = c B + (1 - c) C: the mask on the way from everything (c = 1) to the past alone (c = 0).

    B is all ones, C is one for the keys j <= i and zero for the others; c is `share`.
    Source: Wang et al. (2024), section 3.4.
    Raises ValueError for a share outside 0 ... 1.
    """
    check_count("length", length, least=1)
    check_share(share)
    everything = torch.ones(length, length, dtype=dtype)
    return share * everything + (1 - share) * everything.tril()


def soft_masked_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    share: float = 0.0,
) -> Float[Tensor, "*heads N E"]:
    r"""The soft mask on top of the softmax: o = (S \odot softmax(Q K^T / sqrt(D))) V.

    The softmax runs over all keys and the mask comes after it, so rows are not normalized again:
    with `share` = 0 a row keeps only the weight that its past got beside its future, and the size
    of that weight still tells of the future's scores.
    Source: Wang et al. (2024), section 3.4; S as in `soft_mask`.
    """
    scores = query @ key.mT * query.shape[-1] ** -0.5
    mask = soft_mask(query.shape[-2], share, dtype=query.dtype).to(query.device)
    return (mask * torch.softmax(scores, dim=-1)) @ value


def check_share(share: float) -> None:
    """Check that a share lies between nothing and everything."""
    if isinstance(share, bool) or not isinstance(share, int | float):
        raise TypeError(f"share must be a number, got {type(share).__name__}")
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in 0 ... 1, got {share}")


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
    learned. `soften(share)` puts the soft mask in place of the causal one, `soften(None)` ends it.
    Shapes: images (batch, channels, size, size) -> logits (batch, classes).
    Source: Wang et al. (2024), sections 3.3 (class token) and 3.4 (soft mask).
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
