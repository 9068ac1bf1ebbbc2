"""Experts for parts of tokens: the heads of attention, in the place of the perceptron."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnlib.checks import check_count
from attnlib.models.attention_layer import check_divides, projection
from attnlib.models.language import DecoderLM
from attnlib.read.head_routing import check_active, renormalized_gates
from attnlib.read.sub_tokens import merge_tokens, split_tokens


class SubTokenExperts(nn.Module):
    r"""A mixture of perceptrons in which every part of a token chooses its own.

    .. math:: (x_{i1}, \ldots, x_{iP}) = \mathrm{split}(W^{\mathrm{head}} x_i), \qquad
              o_{ip} = x_{ip} + \sum_{e \in G_{ip}} g_e(x_{ip}) f_e(x_{ip}), \qquad
              y_i = W^{\mathrm{merge}} [o_{i1}; \ldots; o_{iP}]

    f_e is a perceptron from width / parts over `hidden` back, G the `active` experts with the
    largest router scores, g `renormalized_gates`. With `parts=1` tokens are routed whole, between
    the same two maps. All experts are computed here, and those not chosen are weighed by zero.

    Parameters: 2 width^2 + experts (2 hidden width / parts + hidden + width / parts + width /
    parts). The multiplications of chosen experts a token are 2 active hidden width: as many for any
    `parts`. Shapes: (batch, N, width) -> (batch, N, width).
    Raises ValueError for sizes that do not fit. Source: Wu et al. (2024), eqs. 3 to 8; the division
    of the gates by their sum is ours.
    """

    def __init__(self, width: int, experts: int, *, parts: int, active: int = 1, hidden: int = 64):
        super().__init__()
        check_divides("parts", parts, "width", width)
        check_count("experts", experts, least=1)
        check_count("hidden", hidden, least=1)
        check_active(active, experts)
        self.parts, self.active = parts, active
        self.to_heads = projection(width, width)
        self.to_scores = projection(width // parts, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width // parts, hidden), nn.GELU(), nn.Linear(hidden, width // parts)
            )
            for _ in range(experts)
        )
        self.to_merged = projection(width, width)

    def cut(self, x: Float[Tensor, "batch N width"]) -> Float[Tensor, "batch NP part"]:
        """The parts of the tokens, one after the other."""
        return split_tokens(self.to_heads(x), self.parts)

    def gates(self, x: Float[Tensor, "batch N width"]) -> Float[Tensor, "batch NP experts"]:
        """The gates of each part of the tokens x, zero where an expert is not chosen."""
        return renormalized_gates(self.to_scores(self.cut(x)), self.active)

    def forward(self, x: Float[Tensor, "batch N width"]) -> Float[Tensor, "batch N width"]:
        """What the experts make of each token."""
        parts = self.cut(x)
        gates = renormalized_gates(self.to_scores(parts), self.active)
        outputs = torch.stack([expert(parts) for expert in self.experts], dim=-1)
        return self.to_merged(
            merge_tokens(parts + torch.einsum("bne,bnwe->bnw", gates, outputs), self.parts)
        )


def with_sub_token_experts(
    model: DecoderLM, experts: int, *, parts: int, active: int = 1, hidden: int = 64, seed: int = 0
) -> DecoderLM:
    """Put `SubTokenExperts` in the place of every perceptron; the model is changed and returned.

    Raises TypeError for another model.
    """
    if not isinstance(model, DecoderLM):
        raise TypeError(f"model must be a DecoderLM, got {type(model).__name__}")
    width = model.embedding.embedding_dim
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [
            SubTokenExperts(width, experts, parts=parts, active=active, hidden=hidden)
            for _ in model.blocks
        ]
    for block, layer in zip(model.blocks, layers, strict=True):
        block.perceptron = layer
    return model


@torch.no_grad()
def watch_sub_gates(model: nn.Module, inputs: Tensor) -> list[Float[Tensor, "batch NP experts"]]:
    """The gates of every `SubTokenExperts` of a model on one batch of inputs, layer by layer.

    Raises ValueError for a model that has none.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, SubTokenExperts)]
    if not layers:
        raise ValueError("model must hold at least one SubTokenExperts, got none")
    seen = []
    hooks = [
        layer.register_forward_pre_hook(
            lambda layer, arguments: seen.append(layer.gates(arguments[0]))
        )
        for layer in layers
    ]
    try:
        model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return seen
