"""Aggregated attention: a fovea with queries of its own, cosine scores and words for offsets."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, normalize, softplus

from attnlib.atlas import Taxonomy, mechanism
from attnlib.models.depthwise import DepthwiseConvolution
from attnlib.read.foveal_attention import (
    Grid,
    aggregated_weights,
    check_pool,
    check_window,
    pooled,
    window_read,
)
from attnlib.read.grid_offsets import places_at, window_offsets
from attnlib.read.heads import merge_heads, split_heads

START_TEMPERATURE = 1 / 0.24
"""What a cosine is multiplied with at the start, besides log n (the paper's value)."""


@mechanism(
    key="transnext-aggregated",
    paper="transnext-aggregated",
    chapter="8-vision/windows-and-neighbourhoods",
    section="coarse-and-fine",
    step="support",
    idea="window and pooled keys under one softmax, cosine scores times log n, words for offsets",
    equation=r"o_i = (A_{\rho} + \hat q_i T) V_{\rho(i)} + A_{\sigma} V_{\sigma}, \;"
    r" [A_\rho, A_\sigma] = \mathrm{softmax}(\tau \log n_i (\hat q_i + e) \hat K^\top + B)",
    cost="time N (window^2 + S) (D + E) for S cells",
    promises=None,
    taxonomy=Taxonomy("self", "multi", "soft", "multi-head"),
)
class AggregatedAttention(nn.Module):
    r"""Each token reads the window around it and S coarse tokens from everywhere, in one softmax.

    .. math:: [A_\rho, A_\sigma] = \mathrm{softmax}\bigl(\tau \log n_i \,
        (\hat q_i + e)\, [\hat K_\rho, \hat K_\sigma]^\top + [B, 0]\bigr), \qquad
        o_i = (A_\rho + \hat q_i T + b)\, V_\rho + A_\sigma V_\sigma

    with unit vectors \hat q and \hat k, a learned query e and temperature tau > 0 for each head,
    n_i the keys that token i has, B a learned number and T a learned vector for each offset of the
    window. The coarse tokens are the means over the cells of gelu(W x), normalized; the same
    projections give their keys and values. The weights of q T are added after the softmax, so those
    rows need not sum to one. The paper also gives the coarse keys a bias of their place, a small
    network of the log-distances, which is left out here.

    Shapes: x (batch, rows * columns, width) -> the same.
    Cost: 5 N width^2 for the projections, N (window^2 + S) (D + E) for the rest.
    Raises ValueError for a window that is even or too wide and cells that do not divide the grid.
    Source: Shi (2024), TransNeXt, sections 3.1 to 3.3.
    """

    def __init__(
        self, width: int, heads: int, *, grid: Grid, window: int = 3, pool: Grid, seed: int = 0
    ):
        super().__init__()
        check_pool(grid, pool)
        check_window(window, grid)
        if heads < 1 or width % heads:
            raise ValueError(f"heads must divide width {width}, got {heads}")
        self.heads, self.grid, self.window, self.pool = heads, grid, window, pool
        head_width, offsets = width // heads, window**2
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.to_query = nn.Linear(width, width)
            self.to_key_and_value = nn.Linear(width, 2 * width)
            self.to_coarse = nn.Linear(width, width)
            self.coarse_norm = nn.LayerNorm(width)
            self.to_output = nn.Linear(width, width)
            self.own_query = nn.Parameter(0.02 * torch.randn(heads, 1, head_width))
            self.offset_words = nn.Parameter(0.02 * torch.randn(heads, head_width, offsets))
        self.offset_bias = nn.Parameter(torch.zeros(heads, 1, offsets))
        self.score_bias = nn.Parameter(torch.zeros(heads, 1, offsets))
        start = math.log(math.expm1(START_TEMPERATURE))
        self.raw_temperature = nn.Parameter(torch.full((heads, 1, 1), start))
        inside = places_at(grid, window_offsets(window), slice(0, math.prod(grid)))[1]
        keys = inside.sum(-1, keepdim=True) + math.prod(pool)
        self.register_buffer("keys", keys.float(), persistent=False)

    def forward(
        self, x: Float[Tensor, "batch N width"], *, return_weights: bool = False
    ) -> Float[Tensor, "batch N width"] | tuple[Tensor, tuple[Tensor, Tensor]]:
        """The read; with `return_weights` also the weights (fine, coarse) of the softmax."""
        unit = normalize(split_heads(self.to_query(x), self.heads), dim=-1)
        key, value = self.keys_and_values(x)
        coarse = self.coarse_norm(pooled(gelu(self.to_coarse(x)), self.grid, self.pool))
        coarse_key, coarse_value = self.keys_and_values(coarse)

        sharpness = softplus(self.raw_temperature) * self.keys.log()
        query = (unit + self.own_query) * sharpness
        where = {"grid": self.grid, "window": self.window}
        fine_weights, coarse_weights = aggregated_weights(
            query, key, coarse_key, scale=1.0, bias=self.score_bias, **where
        )
        words = unit @ self.offset_words + self.offset_bias
        read = window_read(fine_weights + words, value, **where) + coarse_weights @ coarse_value
        out = self.to_output(merge_heads(read))
        return (out, (fine_weights, coarse_weights)) if return_weights else out

    def keys_and_values(
        self, x: Float[Tensor, "batch M width"]
    ) -> tuple[Float[Tensor, "batch heads M D"], Float[Tensor, "batch heads M D"]]:
        """Keys of length one and values, for fine and coarse tokens alike."""
        key, value = (
            split_heads(part, self.heads) for part in self.to_key_and_value(x).chunk(2, -1)
        )
        return normalize(key, dim=-1), value


class ConvolutionalGLU(nn.Module):
    r"""A perceptron whose gate sees the neighbors: gelu(convolution(x W_1)) * (x W_2), projected.

    Shapes: x (batch, rows * columns, width) -> the same. Source: Shi (2024), section 3.4.
    """

    def __init__(self, width: int, hidden: int, *, grid: Grid):
        super().__init__()
        self.to_gate_and_value = nn.Linear(width, 2 * hidden)
        self.convolution = DepthwiseConvolution(hidden, grid)
        self.to_output = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "batch N width"]) -> Float[Tensor, "batch N width"]:
        """The gated tokens."""
        gate, value = self.to_gate_and_value(x).chunk(2, dim=-1)
        return self.to_output(gelu(self.convolution(gate)) * value)
