"""A vision transformer in about a page."""

from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from attnlib.choices import check_choice
from attnlib.models.blocks import Block
from attnlib.models.positions import POSITIONS, TOKEN_SCALE, AddedPosition, position_in_score
from attnlib.weight.softmax_attention import softmax_attention


class VisionTransformer(nn.Module):
    """Cut an image into patches, read them as a sequence, name its class.

    `pooling` is "class" (a learned token in front, read at the end) or "mean" (the mean of all
    patches). Positions are those of the sequence, row by row, the class token first; arguments
    `operator`, `position` and `seed` as in `DecoderLM`, without a causal mask.
    Shapes: images (batch, channels, size, size) -> logits (batch, classes); there are
    (size / patch)^2 patches.
    Source: Dosovitskiy et al. (2021), section 3.1.
    """

    def __init__(
        self,
        size: int,
        patch: int,
        classes: int,
        *,
        channels: int = 1,
        width: int = 64,
        heads: int = 2,
        layers: int = 2,
        operator: str | Callable[..., Tensor] | type[nn.Module] = softmax_attention,
        position: str = "learned",
        pooling: str = "class",
        expansion: int = 2,
        seed: int = 0,
    ):
        super().__init__()
        check_choice("position", position, POSITIONS)
        check_choice("pooling", pooling, ("class", "mean"))
        if patch < 1 or size % patch:
            raise ValueError(f"patch must divide size {size}, got {patch}")
        self.shape, self.patch = (channels, size, size), patch
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Linear(channels * patch * patch, width)
            self.class_token = None
            if pooling == "class":
                self.class_token = nn.Parameter(torch.randn(width) * TOKEN_SCALE)
            self.position = AddedPosition(position, (size // patch) ** 2 + 1, width)
            self.blocks = nn.ModuleList(
                Block(
                    width,
                    heads,
                    operator=operator,
                    position=position_in_score(position),
                    expansion=expansion,
                )
                for _ in range(layers)
            )
            self.norm = nn.LayerNorm(width)
            self.to_logits = nn.Linear(width, classes)

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
        if self.class_token is not None:
            x = torch.cat((self.class_token.expand(len(x), 1, -1), x), dim=1)
        x = self.position(x)
        weights = []
        for block in self.blocks:
            x = block(x, return_weights=return_weights)
            if return_weights:
                x, layer_weights = x
                weights.append(layer_weights)
        pooled = x.mean(1) if self.class_token is None else x[:, 0]
        logits = self.to_logits(self.norm(pooled))
        return (logits, torch.stack(weights)) if return_weights else logits


def patches(
    images: Float[Tensor, "batch channels height width"], patch: int
) -> Float[Tensor, "batch patches pixels"]:
    """The image as a sequence of flattened squares, row by row."""
    return rearrange(images, "b c (y p) (x q) -> b (y x) (c p q)", p=patch, q=patch)
