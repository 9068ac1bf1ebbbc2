"""Convolutions written as attention, and a gate that lets a head leave its place (ConViT)."""

import math

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from attnlib.atlas import Taxonomy, mechanism
from attnlib.checks import check_count, check_tensor
from attnlib.models.attention_layer import projection
from attnlib.models.depthwise import check_grid
from attnlib.read.heads import merge_heads, split_heads

SATURATED = 50.0
"""A gate so large that its sigmoid is 1 to the last bit of a float64."""


def kernel_offsets(size: int) -> Int[Tensor, "taps 2"]:
    """The displacements (rows, columns) of a size x size kernel, row by row, in the order of
    `conv2d`: -1, 0, 1 for a size of 3, and 0, 1 for a size of 2."""
    check_count("size", size, least=1)
    steps = torch.arange(size) - (size - 1) // 2
    return torch.cartesian_prod(steps, steps).view(-1, 2)


def quadratic_embedding(
    centers: Float[Tensor, "heads 2"], locality: float
) -> Float[Tensor, "heads 3"]:
    r"""v = -a (1, -2 c_1, -2 c_2): then v . (|d|^2, d_1, d_2) is -a |d - c|^2 and a constant.

    Source: d'Ascoli et al. (2021), eq. 5, after Cordonnier et al. (2020), eq. 9.
    """
    if not (math.isfinite(locality) and locality > 0):
        raise ValueError(f"locality must be positive and finite, got {locality}")
    return -locality * torch.cat((torch.ones_like(centers[:, :1]), -2 * centers), dim=1)


def position_scores(
    embedding: Float[Tensor, "heads 3"], grid: tuple[int, int]
) -> Float[Tensor, "heads N N"]:
    r"""v_h . r_ij with r = (\|d\|^2, d_1, d_2), d the displacement from query i to key j.

    Places lie row by row on `grid`; N = rows * columns. Cost: N^2 a head.
    """
    rows, columns = check_grid(grid)
    place = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).view(-1, 2)
    displacement = (place[None, :] - place[:, None]).to(embedding)
    encoding = torch.cat((displacement.square().sum(-1, keepdim=True), displacement), dim=-1)
    return torch.einsum("hp,ijp->hij", embedding, encoding)


def axis_weights(
    embedding: Float[Tensor, "heads 3"], axis: int, length: int
) -> Float[Tensor, "heads length length"]:
    """The softmax of v.r along one axis (0 rows, 1 columns) of the grid alone."""
    place = torch.arange(length).to(embedding)
    step = place[None, :] - place[:, None]
    square, linear = embedding[:, 0, None, None], embedding[:, 1 + axis, None, None]
    return (square * step.square() + linear * step).softmax(-1)


def positional_read(
    value: Float[Tensor, "*batch heads N E"],
    embedding: Float[Tensor, "heads 3"],
    grid: tuple[int, int],
) -> Float[Tensor, "*batch heads N E"]:
    r"""The read of softmax(v.r) without the N x N matrix: first along rows, then along columns.

    The score is a sum, v_0 d_1^2 + v_1 d_1 of the rows and v_0 d_2^2 + v_2 d_2 of the columns, so
    the softmax over the grid is a product of two softmaxes, each over one axis.
    Cost: time N (rows + columns) E a head instead of N^2 E.
    """
    rows, columns = grid
    image = value.unflatten(-2, (rows, columns))
    image = torch.einsum("hia,...haje->...hije", axis_weights(embedding, 0, rows), image)
    image = torch.einsum("hjb,...hibe->...hije", axis_weights(embedding, 1, columns), image)
    return image.flatten(-3, -2)


def gated_positional_weights(
    query: Float[Tensor, "*batch heads N D"],
    key: Float[Tensor, "*batch heads N D"],
    embedding: Float[Tensor, "heads 3"],
    gate: Float[Tensor, " heads"],
    grid: tuple[int, int],
) -> Float[Tensor, "*batch heads N N"]:
    r"""The dense form: content and position, each through its own softmax, mixed by a gate.

    .. math:: A_h = (1 - \sigma(\lambda_h))\, \mathrm{softmax}(q k^\top / \sqrt{D})
                    + \sigma(\lambda_h)\, \mathrm{softmax}(v_h \cdot r_{ij})

    Rows sum to one, so the paper's division by the sum of the row changes nothing.
    Source: d'Ascoli et al. (2021), eq. 7.
    """
    content = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1)
    position = position_scores(embedding, grid).softmax(-1)
    share = gate.sigmoid()[:, None, None]
    return (1 - share) * content + share * position


@mechanism(
    key="convit-gpsa",
    paper="convit-gpsa",
    chapter="8-vision/windows-and-neighbourhoods",
    section="a-gate-that-frees-it",
    step="weight",
    idea="each head mixes a read by content with a read by place, by a gate that is learnt",
    equation=(
        r"w = (1 - g)\, c + g\, p,\; c = \mathrm{softmax}(q k^\top / \sqrt{D}),"
        r"\; p = \mathrm{softmax}(v_h \cdot r_{ij})"
    ),
    cost="time N^2 (D + E) for the content, N (rows + columns) E for the place",
    promises=None,
    taxonomy=Taxonomy("self", "single", "soft", "multi-head"),
)
class GatedPositionalAttention(nn.Module):
    r"""Self-attention on a grid that begins as a convolution and may leave it, head by head.

    .. math:: y = \sum_h W^O_h \bigl((1 - \sigma(\lambda_h))\, C_h
                  + \sigma(\lambda_h)\, P_h\bigr) W^V_h x

    C_h is a softmax of scaled dot products of queries and keys, P_h one of v_h . r_ij, where
    r = (\|d\|^2, d_1, d_2) holds the displacement d from query to key. At the start each of the
    K^2 heads looks at its own tap of a K x K kernel (`convolutional=True`), as sharply as
    `locality` says, with the gate lambda = `gate`; with `convolutional=False` the v_h are small
    random numbers. `head_width` is width / heads unless given, `output_width` is width.

    Shapes: x (batch, N, width) -> (batch, N, output_width) with N = rows * columns.
    Cost: as much as softmax attention, and N (rows + columns) E a head for the place.
    Raises ValueError unless heads is a square number, sizes divide and x fills the grid.
    Source: d'Ascoli et al. (2021), eqs. 5 to 7. Derived in chapter 8.1.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        grid: tuple[int, int],
        locality: float = 1.0,
        gate: float = 1.0,
        convolutional: bool = True,
        head_width: int | None = None,
        output_width: int | None = None,
    ):
        super().__init__()
        self.grid, self.heads = check_grid(grid), heads
        size = _kernel_size(heads)
        if head_width is None and width % heads:
            raise ValueError(f"heads must divide width {width}, got {heads}")
        inner = width if head_width is None else heads * head_width
        self.to_query, self.to_key, self.to_value = (projection(width, inner) for _ in range(3))
        self.to_output = projection(inner, width if output_width is None else output_width)
        embedding = quadratic_embedding(kernel_offsets(size).float(), locality)
        if not convolutional:
            embedding = torch.randn_like(embedding) * RANDOM_SCALE
        self.embedding = nn.Parameter(embedding)
        self.gate = nn.Parameter(torch.full((heads,), float(gate)))

    @property
    def centers(self) -> Float[Tensor, "heads 2"]:
        """Where each head looks, (rows, columns) from the query: the top of its quadratic."""
        return -self.embedding[:, 1:] / (2 * self.embedding[:, :1])

    def position_scores(self) -> Float[Tensor, "heads N N"]:
        """v_h . r_ij for all pairs of places."""
        return position_scores(self.embedding, self.grid)

    def forward(
        self,
        x: Float[Tensor, "batch N width"],
        *,
        attn_mask: None = None,
        return_weights: bool = False,
    ) -> Float[Tensor, "batch N width"] | tuple[Tensor, Tensor]:
        """The read; with `return_weights` also the weights (batch, heads, N, N)."""
        if attn_mask is not None:
            raise ValueError(
                "attn_mask must be None: every place of the grid is read, "
                f"got {type(attn_mask).__name__}"
            )
        check_tokens(x, self.grid)
        query, key, value = (
            split_heads(to(x), self.heads) for to in (self.to_query, self.to_key, self.to_value)
        )
        share = self.gate.sigmoid()[:, None, None]
        content = scaled_dot_product_attention(query, key, value)
        position = positional_read(value, self.embedding, self.grid)
        out = self.to_output(merge_heads((1 - share) * content + share * position))
        if not return_weights:
            return out
        return out, gated_positional_weights(query, key, self.embedding, self.gate, self.grid)


RANDOM_SCALE = 0.02
"""Standard deviation of v without the convolutional start: nearly uniform weights."""


@mechanism(
    key="cordonnier-2020",
    paper="cordonnier-2020",
    chapter="8-vision/windows-and-neighbourhoods",
    section="a-convolution-in-attention",
    step="score",
    idea="K^2 heads that each look at one neighbor are a K x K convolution",
    equation=r"\mathrm{softmax}_j(-a \| d_{ij} - c_h \|^2) \to [\, d_{ij} = c_h \,]",
    cost="time N (rows + columns) K^2 width, where a convolution takes N K^2 width",
    promises=None,
    taxonomy=Taxonomy("self", "single", "local", "multi-head"),
)
def convolution_as_attention(
    weight: Float[Tensor, "output input size size"],
    *,
    grid: tuple[int, int],
    locality: float = SATURATED,
) -> GatedPositionalAttention:
    r"""A layer of attention that computes the convolution with `weight` (as in `conv2d`).

    Head h = (a, b) looks at one displacement of the kernel, reads x itself there (W^V = 1) and
    writes weight[:, :, a, b] times it. The gates are saturated: content plays no part. From
    `locality` = 40 on the other weights are below 1e-17 and it is the convolution to rounding.

    At the border a head whose center lies outside the grid reads the nearest place inside: the
    limit is `conv2d` with replicated edges (padding_mode="replicate"), not with zeros. An even
    kernel reaches one place further down and right, as `conv2d` does with the padding there.
    Raises TypeError or ValueError for a weight that is no square kernel.
    Source: Cordonnier et al. (2020), theorem 1 and eq. 9. Derived in chapter 8.1.
    """
    check_tensor("weight", weight)
    if weight.dim() != 4 or weight.shape[2] != weight.shape[3]:
        raise ValueError(
            f"weight must have shape (output, input, size, size), got {tuple(weight.shape)}"
        )
    output_width, width, size, _ = weight.shape
    layer = GatedPositionalAttention(
        width,
        size**2,
        grid=grid,
        locality=locality,
        gate=SATURATED,
        head_width=width,
        output_width=output_width,
    ).to(weight)
    same = torch.eye(width).to(weight)
    with torch.no_grad():
        layer.to_value.weight.copy_(repeat(same, "d c -> (h d) c", h=size**2))
        layer.to_output.weight.copy_(rearrange(weight, "o d a b -> o (a b d)"))
    return layer


def nonlocality(
    weights: Float[Tensor, "*batch N N"], grid: tuple[int, int]
) -> Float[Tensor, "*batch"]:
    r"""The mean distance that is read over: (1/N) sum_ij A_ij \|d_ij\|, in places.

    Source: d'Ascoli et al. (2021), eq. 8.
    """
    check_tokens(weights, check_grid(grid))
    length = torch.tensor([[1.0, 0.0, 0.0]], dtype=weights.dtype)
    distance = position_scores(length, grid)[0].sqrt()
    return (weights * distance).sum(-1).mean(-1)


def _kernel_size(heads: int) -> int:
    """The K of heads = K^2."""
    check_count("heads", heads, least=1)
    size = math.isqrt(heads)
    if size**2 != heads:
        raise ValueError(
            f"heads must be a square number, one for each tap of a K x K kernel, got {heads}"
        )
    return size


def check_tokens(x: Tensor, grid: tuple[int, int]) -> None:
    """Check that x has a token for each place of the grid."""
    check_tensor("x", x)
    if x.dim() < 2 or x.shape[-2] != math.prod(grid):
        raise ValueError(
            f"x must have {grid[0]} * {grid[1]} tokens, one for each place of the grid, "
            f"got shape {tuple(x.shape)}"
        )
