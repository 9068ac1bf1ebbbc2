"""Rank-augmented linear attention as a layer: reweighted keys, then a gate from the input."""

from jaxtyping import Float
from torch import Tensor, nn

from attnlib.models.attention_layer import check_divides, projection
from attnlib.models.depthwise import DepthwiseConvolution
from attnlib.models.multi_head import read_weights
from attnlib.read.heads import merge_heads, split_heads
from attnlib.read.rank_augmented import rank_augmented_attention


class RankAugmentedAttention(nn.Module):
    r"""Reads of all heads side by side, times a linear gate, then a projection.

    .. math:: Y = \left((O + \mathrm{conv}(V)) \odot (X W^G + b)\right) W^O

    with O the reads of `attnlib.read.rank_augmented`. A product of two matrices entry by entry can
    have the product of their ranks; that is how the gate raises the rank of what is read.
    Without a `grid` (rows, columns) there is no convolution, so the layer takes any length.

    Shapes: x (batch, N, width) -> the same. Cost: 5 N width^2 for the projections.
    Source: Fan et al. (2025); the convolution (size 5) is in their code. Derived in chapter 3.1.
    """

    def __init__(self, width: int, heads: int, *, grid: tuple[int, int] | None = None):
        super().__init__()
        check_divides("heads", heads, "width", width)
        self.heads = heads
        self.to_query, self.to_key = projection(width, width), projection(width, width)
        self.to_value, self.to_output = projection(width, width), projection(width, width)
        self.to_gate = nn.Linear(width, width)
        self.near = None if grid is None else DepthwiseConvolution(width, grid, size=5)

    def forward(
        self, x: Float[Tensor, "batch N width"], *, return_weights: bool = False
    ) -> Float[Tensor, "batch N width"] | tuple[Tensor, Tensor]:
        """The gated read of x; with `return_weights` also (batch, heads, N, N)."""
        query = split_heads(self.to_query(x), self.heads)
        key = split_heads(self.to_key(x), self.heads)
        value = self.to_value(x)
        read = merge_heads(rank_augmented_attention(query, key, split_heads(value, self.heads)))
        if self.near is not None:
            read = read + self.near(value)
        out = self.to_output(read * self.to_gate(x))
        if return_weights:
            return out, read_weights(rank_augmented_attention, query, key)
        return out
