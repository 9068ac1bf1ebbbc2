"""Rectangle windows: half of the heads read flat ones, half tall ones."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attnlib.atlas import Taxonomy, mechanism
from attnlib.checks import check_count
from attnlib.models.depthwise import DepthwiseConvolution
from attnlib.read.heads import merge_heads, split_heads
from attnlib.read.rectangle_attention import checked_shift, rectangle_attention
from attnlib.support import dense

Pair = tuple[int, int]


@mechanism(
    key="cat-rwin",
    paper="cat-rwin",
    chapter="8-vision/windows-and-neighbourhoods",
    section="rectangles",
    step="support",
    idea="half of the heads read flat rectangles, half tall ones; a convolution reads the near",
    equation=r"o = W^O ([A_{hw}; A_{wh}] + \mathrm{conv}(V))",
    cost="time N h w (D + E) a head, 4 N width^2 for the projections",
    promises=None,
    taxonomy=Taxonomy("self", "single", "local", "multi-head"),
)
class RectangleWindowAttention(nn.Module):
    r"""Windows of height x width in the first half of the heads, width x height in the second.

    .. math:: o = W^O \bigl( [\mathrm{attention}_{h \times w}(Q, K, V);\,
        \mathrm{attention}_{w \times h}(Q, K, V)] + \mathrm{convolution}_{3 \times 3}(V) \bigr)

    With `shifted` both kinds of windows begin half a window further on each axis (the paper's axial
    shift; blocks alternate shifted and not). The depthwise convolution of the values knows no
    windows. With `height` = 1 and `width` = the side of a square grid a head reads a whole line.

    Shapes: x (batch, rows * columns, channels) -> the same.
    Raises ValueError for an odd number of heads and rectangles that do not tile the grid.
    Source: Chen et al. (2022), CAT, sections 3.2 and 3.3; the paper adds a learned bias of the
    displacement to the scores, which is left out here.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        grid: Pair,
        height: int,
        width: int,
        shifted: bool = False,
    ):
        super().__init__()
        if heads < 2 or heads % 2 or channels % heads:
            raise ValueError(f"heads must be even and divide channels {channels}, got {heads}")
        self.heads, self.grid = heads, grid
        self.windows = [
            {"height": tall, "width": wide, "shift": (tall // 2, wide // 2) if shifted else (0, 0)}
            for tall, wide in ((height, width), (width, height))
        ]
        for window in self.windows:
            checked_shift(grid, **window)
        self.to_query = nn.Linear(channels, channels, bias=False)
        self.to_key = nn.Linear(channels, channels, bias=False)
        self.to_value = nn.Linear(channels, channels, bias=False)
        self.to_output = nn.Linear(channels, channels, bias=False)
        for layer in (self.to_query, self.to_key, self.to_value, self.to_output):
            nn.init.normal_(layer.weight, std=channels**-0.5)
        self.convolution = DepthwiseConvolution(channels, grid)

    def forward(self, x: Float[Tensor, "batch N channels"]) -> Float[Tensor, "batch N channels"]:
        """What the two kinds of windows and the convolution read."""
        values = self.to_value(x)
        parts = [
            split_heads(part, self.heads).chunk(2, dim=-3)
            for part in (self.to_query(x), self.to_key(x), values)
        ]
        halves = zip(*parts, strict=True)
        reads = [
            rectangle_attention(*half, grid=self.grid, **window)
            for half, window in zip(halves, self.windows, strict=True)
        ]
        read = merge_heads(torch.cat(reads, dim=-3))
        return self.to_output(read + self.convolution(values))


def reachable(
    layers: Sequence[Sequence[Callable[..., Tensor]]], places: int
) -> Bool[Tensor, "places places"]:
    """Which places can have an effect on which after some layers of attention.

    Each layer is the list of the supports of its heads: a place takes over from whatever any head
    sees, and from itself. Row i marks the places that the read of place i depends on.
    Raises ValueError for a layer without heads.
    """
    check_count("places", places, least=1)
    reached = torch.eye(places, dtype=torch.bool)
    for heads in layers:
        if not heads:
            raise ValueError("layers must name at least one support each, got an empty layer")
        seen = torch.stack([dense(support, places, places)[0, 0] for support in heads]).any(0)
        step = seen | torch.eye(places, dtype=torch.bool)
        reached = (step.float() @ reached.float()) > 0
    return reached
