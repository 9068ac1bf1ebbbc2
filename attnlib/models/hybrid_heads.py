"""Heads that look back and heads that keep a state, side by side in one layer."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnlib.models.attention_layer import projection
from attnlib.models.delta_layer import GatedDeltaLayer
from attnlib.models.state_layer import SoftmaxLayer
from attnlib.read.heads import merge_heads, split_heads
from attnlib.read.hybrid_heads import hybrid_heads


class HybridHeads(nn.Module):
    r"""A layer of `heads` softmax heads and `heads` gated delta heads, fused by `hybrid_heads`.

    Each kind has its own projections; alpha and mu start at `gates`, 0 unless given, where the
    layer is two layers side by side. The paper adds RWKV-7 heads to the softmax heads of a trained
    model; ours keep a state by the gated delta rule, whose kin that is.
    Shapes: x (batch, N, width) -> (batch, N, width).
    """

    is_causal = True

    def __init__(
        self, width: int, heads: int, *, gates: float = 0.0, largest_beta: float = 1.0, **sizes
    ):
        super().__init__()
        self.heads = heads
        self.looking = SoftmaxLayer(width, heads, **sizes)
        self.keeping = GatedDeltaLayer(width, heads, largest_beta=largest_beta, **sizes)
        for part in (self.looking, self.keeping):
            part.to_output = nn.Identity()
        self.added = nn.Parameter(torch.full((heads, 1, 1), gates))
        self.mixed = nn.Parameter(torch.full((heads, 1, 1), gates))
        self.to_share = nn.Linear(width, heads)
        self.to_output = projection(3 * heads * self.looking.value_width, width)

    def forward(
        self,
        x: Float[Tensor, "batch N width"],
        *,
        attn_mask: None = None,
        return_weights: bool = False,
    ) -> Float[Tensor, "batch N width"]:
        """The read of each token by all heads."""
        options = {"attn_mask": attn_mask, "return_weights": return_weights}
        looking = split_heads(self.looking(x, **options), self.heads)
        keeping = split_heads(self.keeping(x, **options), self.heads)
        share = self.to_share(x).sigmoid().mT.unsqueeze(-1)
        fused = hybrid_heads(looking, keeping, added=self.added, mixed=self.mixed, share=share)
        return self.to_output(merge_heads(fused))

    def state_numbers(self, length: int) -> int:
        """What both kinds of heads keep."""
        return self.looking.state_numbers(length) + self.keeping.state_numbers(length)
