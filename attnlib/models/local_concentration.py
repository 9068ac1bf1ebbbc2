"""Local concentration: two convolutions that put back the nearness that linear attention lacks."""

from jaxtyping import Float
from torch import Tensor, nn

from attnlib.models.depthwise import DepthwiseConvolution, to_grid, to_tokens


class LocalConcentration(nn.Module):
    r"""Two depthwise convolutions with a nonlinearity and a batch norm between them.

    .. math:: \mathrm{LCM}(x) = \mathrm{conv}(\mathrm{norm}(\mathrm{gelu}(\mathrm{conv}(x))))

    In the paper's block it is a branch of its own behind the attention's: x + attention(norm(x)),
    then x + LCM(norm(x)), then the perceptron, in the blocks whose attention is linear.

    Shapes: x (batch, rows * columns, width) -> the same. Cost: time 2 N width size^2.
    Source: Zheng (2025), "L2ViT", with size 7. Seen in the companion of chapter 3.1.
    """

    def __init__(self, width: int, grid: tuple[int, int], size: int = 7):
        super().__init__()
        self.first = DepthwiseConvolution(width, grid, size)
        self.gelu = nn.GELU()
        self.norm = nn.BatchNorm2d(width)
        self.second = DepthwiseConvolution(width, grid, size)

    def forward(self, x: Float[Tensor, "batch N width"]) -> Float[Tensor, "batch N width"]:
        """What the neighborhood of every token adds to it."""
        near = to_grid(self.gelu(self.first(x)), self.first.grid)
        return self.second(to_tokens(self.norm(near)))
