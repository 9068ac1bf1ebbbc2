"""Windows, channels, and the two by turns, on images that need what is near and what is far."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnlib.choices import check_choice
from attnlib.models.channel_attention import ChannelAttention
from attnlib.models.multi_head import MultiHeadAttention
from attnlib.read.rectangle_attention import rectangle_attention
from attnlib.tasks.majority_texture import TILE, MajorityTexture, upscaled
from attnlib.training import classification, evaluate, train

LAYERS = {
    "windows": ("windows", "windows"),
    "channels": ("channels", "channels"),
    "both": ("windows", "channels"),
    "full": ("full", "full"),
}
"""The attentions of the two halves of the blocks, which take turns."""


class TileWindows(nn.Module):
    """Attention inside windows of 4 x 4 places, as an operator."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The read of `rectangle_attention`."""
        grid = (self.size, self.size)
        return rectangle_attention(query, key, value, grid=grid, height=TILE, width=TILE)


class DualAttention(nn.Module):
    """A class for every pixel, by blocks of attention and perceptron whose attentions take turns.

    Pixels are tokens with learned row and column vectors. Every choice of `layers` has the same
    parameters. Channel attention scales its scores by 1 / sqrt(N), so that their size does not
    grow with the image (the paper divides by sqrt(D)).
    Shapes: images (batch, 1, size, size) -> logits (batch, N, 2).
    """

    def __init__(
        self,
        layers: str,
        *,
        size: int = 16,
        width: int = 32,
        heads: int = 2,
        blocks: int = 2,
        seed: int = 0,
    ):
        super().__init__()
        check_choice("layers", layers, tuple(LAYERS))

        def attention(kind: str) -> nn.Module:
            if kind == "channels":
                return ChannelAttention(width, heads, scale=1 / size)
            if kind == "windows":
                return MultiHeadAttention(width, heads, operator=TileWindows(size))
            return MultiHeadAttention(width, heads)

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Linear(1, width)
            self.rows = nn.Parameter(0.5 * torch.randn(size, 1, width))
            self.columns = nn.Parameter(0.5 * torch.randn(1, size, width))
            self.attentions = nn.ModuleList(
                attention(LAYERS[layers][block % 2]) for block in range(blocks)
            )
            self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(blocks))
            self.perceptrons = nn.ModuleList(
                nn.Sequential(
                    nn.LayerNorm(width),
                    nn.Linear(width, 2 * width),
                    nn.GELU(),
                    nn.Linear(2 * width, width),
                )
                for _ in range(blocks)
            )
            self.to_logits = nn.Linear(width, 2)

    def forward(
        self, images: Float[Tensor, "batch 1 size size"]
    ) -> Float[Tensor, "batch N classes"]:
        """Logits of every pixel."""
        x = self.embedding(images.flatten(-2).mT) + (self.rows + self.columns).flatten(0, 1)
        for norm, attention, perceptron in zip(
            self.norms, self.attentions, self.perceptrons, strict=True
        ):
            x = x + attention(norm(x))
            x = x + perceptron(x)
        return self.to_logits(x)


def learn_tiles(
    layers: str, asked: str, seed: int, *, steps: int = 300, blocks: int = 2
) -> dict[str, float]:
    """Trains one model; returns its accuracy on new images.

    `own_tile` is the accuracy of who knows the texture of each pixel's own tile and no more.
    """
    task = MajorityTexture(asked=asked)
    model = DualAttention(layers, size=task.size, blocks=blocks, seed=seed)
    train(model, task.batches(16, seed), steps=steps, progress=False)
    held_out = task.batch(256, 10_000 + seed)
    own_tile = upscaled(held_out.horizontal).flatten(1) == held_out.targets
    accuracy = evaluate(model, [held_out], objective=classification).accuracy
    parameters = float(sum(p.numel() for p in model.parameters()))
    return {
        "accuracy": accuracy,
        "own_tile": own_tile.float().mean().item(),
        "parameters": parameters,
    }
