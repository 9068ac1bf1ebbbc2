"""A small vision model in which every layer may see the grid of tokens through another support."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from attnlib.checks import check_count
from attnlib.choices import check_choice
from attnlib.models.attention_layer import projection
from attnlib.models.blocks import Block
from attnlib.models.depthwise import check_grid
from attnlib.models.gated_positional import GatedPositionalAttention, check_tokens
from attnlib.models.positions import TOKEN_SCALE
from attnlib.models.vision import patches
from attnlib.patterns.grid import blocks, neighborhood
from attnlib.read.heads import merge_heads, split_heads
from attnlib.support import Predicate, dense, everything

LAYOUTS = ("plain", "gated", "windows", "neighborhood")


class SupportedAttention(nn.Module):
    r"""Multi-head softmax attention of tokens on a grid, over the keys of one support.

    .. math:: y_i = \sum_h W^O_h \sum_{j \in S_i} w_{hij}\, W^V_h x_j, \qquad
              w_{hi} = \mathrm{softmax}_{S_i}(q_{hi} \cdot k_{hj} / \sqrt{D} + B_h[d_{ij}])

    `support` is a predicate of row-major places (`attnlib.patterns`), without it every place is
    seen. With `relative=True` each head learns B, one number for each displacement d on the grid,
    from zero on; with False there is no B. This is the dense form: the support is a table.

    Shapes: (batch, N, width) -> (batch, N, width), N = rows * columns. Cost: time N^2 width.
    Raises ValueError for sizes that do not divide and for a support that leaves a row empty.
    Source: Ramachandran et al. (2019) for attention in a local support with relative positions.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        grid: tuple[int, int],
        support: Predicate | None = None,
        relative: bool = False,
    ):
        super().__init__()
        check_count("heads", heads, least=1)
        if width % heads:
            raise ValueError(f"heads must divide width {width}, got {heads}")
        self.grid, self.heads = check_grid(grid), heads
        self.to_query, self.to_key, self.to_value, self.to_output = (
            projection(width, width) for _ in range(4)
        )
        self.register_buffer("outside", outside(support, grid), persistent=False)
        self.register_buffer("displacement", displacement_numbers(grid), persistent=False)
        displacements = (2 * grid[0] - 1) * (2 * grid[1] - 1)
        self.bias = nn.Parameter(torch.zeros(heads, displacements)) if relative else None

    def added_scores(self) -> Float[Tensor, "*heads N N"]:
        """B where a key is seen, minus infinity elsewhere."""
        if self.bias is None:
            return self.outside
        return self.bias[:, self.displacement] + self.outside

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
                f"attn_mask must be None: give a support, got {type(attn_mask).__name__}"
            )
        check_tokens(x, self.grid)
        query, key, value = (
            split_heads(to(x), self.heads) for to in (self.to_query, self.to_key, self.to_value)
        )
        added = self.added_scores()
        read = scaled_dot_product_attention(query, key, value, attn_mask=added)
        out = self.to_output(merge_heads(read))
        if not return_weights:
            return out
        return out, (query @ key.mT * query.shape[-1] ** -0.5 + added).softmax(-1)


def outside(support: Predicate | None, grid: tuple[int, int]) -> Float[Tensor, "N N"]:
    """Zero for the pairs of places in the support, minus infinity for the others."""
    places = math.prod(grid)
    seen = dense(everything if support is None else support, places, places)[0, 0]
    if not seen.any(-1).all():
        row = int(seen.any(-1).logical_not().nonzero()[0])
        raise ValueError(f"support must let every place see a key, got none for place {row}")
    return torch.zeros(places, places).masked_fill(~seen, -math.inf)


def displacement_numbers(grid: tuple[int, int]) -> Int[Tensor, "N N"]:
    """A number for the displacement from each query to each key, from 0 on, row by row."""
    rows, columns = grid
    place = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).view(-1, 2)
    down, right = (place[None, :] - place[:, None]).unbind(-1)
    return (down + rows - 1) * (2 * columns - 1) + right + columns - 1


class GridVision(nn.Module):
    """Cut an image into patches, read them on their grid layer by layer, name its class.

    `make_layers` holds one function a layer that makes its attention, a module of tokens
    (batch, N, width), as `grid_layers` gives them. Every layer stands in a `Block` with its
    perceptron. A learned vector is added for each place, and with `readout="image"` the logits are
    read from the mean of all tokens: there is no class token, so that all tokens lie on the grid.
    With `readout="token"` each token gets its own logits. The same `seed` gives the same
    parameters outside the attention layers, whatever these are.

    Shapes: images (batch, channels, rows * patch, columns * patch) -> logits (batch, classes), or
    (batch, N, classes) for "token". Raises ValueError for images of another shape.
    Source: Dosovitskiy et al. (2021), section 3.1, with the mean instead of a class token.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        patch: int,
        classes: int,
        make_layers: Sequence[Callable[[], nn.Module]],
        *,
        channels: int = 1,
        width: int = 36,
        expansion: int = 2,
        readout: str = "image",
        seed: int = 0,
    ):
        super().__init__()
        rows, columns = check_grid(grid)
        check_count("patch", patch, least=1)
        check_choice("readout", readout, ("image", "token"))
        self.shape, self.patch = (channels, rows * patch, columns * patch), patch
        self.readout = readout
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Linear(channels * patch * patch, width)
            self.places = nn.Parameter(torch.randn(rows * columns, width) * TOKEN_SCALE)
            self.norm = nn.LayerNorm(width)
            self.to_logits = nn.Linear(width, classes)
            self.blocks = nn.ModuleList(Block(width, 1, expansion=expansion) for _ in make_layers)
            for block, make_layer in zip(self.blocks, make_layers, strict=True):
                block.attention = make_layer()

    def forward(
        self, images: Float[Tensor, "batch channels height width"], *, return_weights: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits; with `return_weights` also the weights (layers, batch, heads, N, N)."""
        if tuple(images.shape[1:]) != self.shape:
            raise ValueError(
                f"images must have shape (batch, {', '.join(map(str, self.shape))}), "
                f"got {tuple(images.shape)}"
            )
        x = self.embedding(patches(images, self.patch)) + self.places
        weights = []
        for block in self.blocks:
            x = block(x, return_weights=return_weights)
            if return_weights:
                x, layer_weights = x
                weights.append(layer_weights)
        logits = self.to_logits(self.norm(x.mean(1) if self.readout == "image" else x))
        return (logits, torch.stack(weights)) if return_weights else logits


def grid_layers(
    layout: str,
    layers: int,
    *,
    width: int,
    heads: int,
    grid: tuple[int, int],
    window: int = 3,
    block: int = 4,
    relative: bool = False,
) -> list[Callable[[], nn.Module]]:
    """What `GridVision` takes: the same number of projections in each of four layouts.

    plain: every place is seen; gated: `GatedPositionalAttention` from its convolutional start;
    windows: blocks of block x block places, every second layer shifted by half a block;
    neighborhood: the window x window places around each. `relative` as in `SupportedAttention`.
    Source: Dosovitskiy et al. (2021), d'Ascoli et al. (2021), Liu et al. (2021), Hassani et al.
    (2023), each reduced to its support.
    """
    check_choice("layout", layout, LAYOUTS)
    check_count("layers", layers, least=1)
    if layout == "gated":
        return [partial(GatedPositionalAttention, width, heads, grid=grid)] * layers
    supports = {
        "plain": lambda layer: None,
        "windows": lambda layer: blocks(grid, block, shift=layer % 2 * (block // 2)),
        "neighborhood": lambda layer: neighborhood(grid, window),
    }
    options = {"grid": grid, "relative": relative}
    return [
        partial(SupportedAttention, width, heads, support=supports[layout](layer), **options)
        for layer in range(layers)
    ]


def gates(model: GridVision) -> Float[Tensor, "layers heads"]:
    """The share of place, sigmoid(lambda), of every head in every gated layer."""
    layers = [block.attention for block in model.blocks]
    gated = [layer for layer in layers if isinstance(layer, GatedPositionalAttention)]
    if not gated:
        raise ValueError("model must have a GatedPositionalAttention, got none in its layers")
    return torch.stack([layer.gate.detach().sigmoid() for layer in gated])
