"""Branch, attend, mix: trained dense models become the experts of one mixture."""

import copy
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attnlib.models.language import DecoderLM
from attnlib.models.multi_head import MultiHeadAttention, rotate_all
from attnlib.read.attention_experts import soft_attention_experts
from attnlib.read.head_routing import check_active, renormalized_gates
from attnlib.read.heads import split_heads
from attnlib.weight.softmax_attention import softmax_attention


class AttentionExperts(nn.Module):
    r"""Attention layers of several models, softly mixed: every expert reads for every token.

    .. math:: y = \sum_e g_e(x)\, \mathrm{layer}_e(x), \qquad g(x) = \mathrm{softmax}(W x)

    Each expert keeps its own queries, keys, values and output. The layers are copied; the router W
    starts with small normal numbers.
    Shapes: x (batch, N, width) -> (batch, N, width). Cost: that of all the layers.
    Raises TypeError or ValueError for layers that are not alike.
    Source: Zhang et al. (2024), "BAM!", section 4.
    """

    def __init__(self, layers: Sequence[MultiHeadAttention]):
        super().__init__()
        _check_layers(layers)
        self.experts = nn.ModuleList(copy.deepcopy(layer) for layer in layers)
        self.is_causal = layers[0].is_causal
        self.router = _router(layers[0].to_query.in_features, len(layers))

    def gates(self, x: Float[Tensor, "batch N width"]) -> Float[Tensor, "batch N X"]:
        """How much of each expert a token takes; they sum to one."""
        return self.router(x).softmax(-1)

    def keys_and_values(self, x: Float[Tensor, "batch N width"]) -> tuple[Tensor, Tensor]:
        """(batch, X, heads, N, D) each: every expert's own."""
        kept = [_keys_and_values(expert, x) for expert in self.experts]
        key, value = (torch.stack(parts, dim=1) for parts in zip(*kept, strict=True))
        return key, value

    def forward(
        self,
        x: Float[Tensor, "batch N width"],
        *,
        attn_mask: None = None,
        return_weights: bool = False,
    ) -> Float[Tensor, "batch N width"]:
        """The mixture of what the experts read."""
        if attn_mask is not None or return_weights:
            raise ValueError("attn_mask and return_weights: a mixture of layers takes neither")
        queries = [_placed(e, split_heads(e.to_query(x), e.heads)) for e in self.experts]
        return soft_attention_experts(
            torch.stack(queries, dim=1),
            *self.keys_and_values(x),
            outputs=torch.stack([expert.to_output.weight for expert in self.experts]),
            gates=self.gates(x),
            is_causal=self.is_causal,
        )


class SharedKeyExperts(AttentionExperts):
    """`AttentionExperts` with one set of keys and values, made with the mean of the matrices.

    One cache for all experts, as long as that of one layer.
    Source: Zhang et al. (2024), "BAM!", section 4 (experts that share keys and values).
    """

    def __init__(self, layers: Sequence[MultiHeadAttention]):
        super().__init__(layers)
        self.shared = mean_of(layers)
        for expert in self.experts:
            del expert.to_key, expert.to_value
        del self.shared.to_query, self.shared.to_output

    def keys_and_values(self, x: Float[Tensor, "batch N width"]) -> tuple[Tensor, Tensor]:
        """(batch, 1, heads, N, D) each: one for all experts."""
        key, value = _keys_and_values(self.shared, x)
        return key[:, None], value[:, None]


class PerceptronExperts(nn.Module):
    r"""Perceptrons of several models, of which each token takes the `active` that it likes best.

    .. math:: y = \sum_{e \in G} g_e(x)\, \mathrm{perceptron}_e(x)

    with `renormalized_gates`, which sum to one. All perceptrons are computed here and those
    not chosen are weighed by zero; a fast form would skip them.
    Shapes: (batch, N, width) -> (batch, N, width).
    Raises ValueError for more active perceptrons than there are. Source: Shazeer et al. (2017).
    """

    def __init__(self, perceptrons: Sequence[nn.Module], width: int, active: int):
        super().__init__()
        check_active(active, len(perceptrons))
        self.experts = nn.ModuleList(copy.deepcopy(perceptron) for perceptron in perceptrons)
        self.active = active
        self.router = _router(width, len(perceptrons))

    def gates(self, x: Float[Tensor, "batch N width"]) -> Float[Tensor, "batch N X"]:
        """The gates, zero where a perceptron is not chosen."""
        return renormalized_gates(self.router(x), self.active)

    def forward(self, x: Float[Tensor, "batch N width"]) -> Float[Tensor, "batch N width"]:
        """The mixture of the chosen perceptrons."""
        outputs = torch.stack([expert(x) for expert in self.experts], dim=-1)
        return torch.einsum("bnx,bnwx->bnw", self.gates(x), outputs)


class ParallelBlock(nn.Module):
    """x + attention(norm(x)) + perceptron(norm(x)): both parts read the same, at the same time.

    Made of the parts of a `Block` (its second norm is left out), which it takes over.
    Shapes: (batch, N, width) -> (batch, N, width).
    Source: Zhang et al. (2024), "BAM!", section 3.1, whose models have this block.
    """

    def __init__(self, block: nn.Module):
        super().__init__()
        self.attention_norm = block.attention_norm
        self.attention = block.attention
        self.perceptron = block.perceptron

    def forward(
        self,
        x: Float[Tensor, "batch N width"],
        *,
        attn_mask: Bool[Tensor, "..."] | None = None,
        return_weights: bool = False,
    ) -> Float[Tensor, "batch N width"] | tuple[Tensor, Tensor]:
        """The next tokens; with `return_weights` also the weights (batch, heads, N, N)."""
        normed, weights = self.attention_norm(x), None
        read = self.attention(normed, attn_mask=attn_mask, return_weights=return_weights)
        if return_weights:
            read, weights = read
        x = x + read + self.perceptron(normed)
        return (x, weights) if return_weights else x


def with_parallel_blocks(model: DecoderLM) -> DecoderLM:
    """Put every block's two parts side by side; the model is changed and returned."""
    model.blocks = nn.ModuleList(ParallelBlock(block) for block in model.blocks)
    return model


def upcycle_perceptrons(
    seeds: Sequence[DecoderLM], *, active: int | None = None, seed: int = 0
) -> DecoderLM:
    """One model of several: their perceptrons are experts, all else is the mean of the models.

    The `seeds` must have the same shapes, and had better come from one model trained further in
    several ways, or their mean says nothing. `active` perceptrons a token, two unless given (one
    for a single seed). From identical seeds the new model is that seed exactly (up to rounding),
    whatever its routers say, which start from `seed`. The seeds are left as they were.
    Raises TypeError or ValueError for seeds that are not alike.
    Source: Sukhbaatar et al. (2024), "Branch-Train-MiX".
    """
    return _upcycled(seeds, mean_of, active, seed)


def upcycle_shared_keys(
    seeds: Sequence[DecoderLM], *, active: int | None = None, seed: int = 0
) -> DecoderLM:
    """As `upcycle_perceptrons`, and queries and outputs of attention are experts as well.

    Keys and values are made once, with the mean of the seeds' matrices (`SharedKeyExperts`).
    Source: Zhang et al. (2024), "BAM!", section 4.
    """
    return _upcycled(seeds, SharedKeyExperts, active, seed)


def upcycle_all(
    seeds: Sequence[DecoderLM], *, active: int | None = None, seed: int = 0
) -> DecoderLM:
    """As `upcycle_perceptrons`, and whole attention layers are experts as well.

    Source: Zhang et al. (2024), "BAM!", section 4.
    """
    return _upcycled(seeds, AttentionExperts, active, seed)


def _upcycled(
    seeds: Sequence[DecoderLM],
    mixed_attention: Callable[[list[nn.Module]], nn.Module],
    active: int | None,
    seed: int,
) -> DecoderLM:
    mixture = mean_of(seeds)
    active = min(2, len(seeds)) if active is None else active
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for i, block in enumerate(mixture.blocks):
            theirs = [model.blocks[i] for model in seeds]
            block.attention = mixed_attention([other.attention for other in theirs])
            block.perceptron = PerceptronExperts(
                [other.perceptron for other in theirs], mixture.embedding.embedding_dim, active
            )
    return mixture.to(seeds[0].embedding.weight)


@torch.no_grad()
def mean_of(models: Sequence[nn.Module]) -> nn.Module:
    """A copy of the models whose parameters are the means of theirs.

    Raises ValueError for no models and for models whose parameters differ in name or shape.
    """
    _check_alike(models)
    mean = copy.deepcopy(models[0])
    theirs = [dict(model.named_parameters()) for model in models]
    for name, parameter in mean.named_parameters():
        parameter.copy_(sum(parameters[name] for parameters in theirs) / len(models))
    return mean


def _keys_and_values(layer: MultiHeadAttention, x: Tensor) -> tuple[Tensor, Tensor]:
    key = split_heads(layer.to_key(x), layer.heads)
    return _placed(layer, key), split_heads(layer.to_value(x), layer.heads)


def _placed(layer: MultiHeadAttention, x: Tensor) -> Tensor:
    return rotate_all(x) if layer.position == "rope" else x


def _router(width: int, experts: int) -> nn.Linear:
    router = nn.Linear(width, experts, bias=False)
    nn.init.normal_(router.weight, std=0.02)
    return router


def _check_alike(models: Sequence[nn.Module]) -> None:
    if not models:
        raise ValueError("seeds must hold at least one model, got none")
    first = [(name, tuple(value.shape)) for name, value in models[0].named_parameters()]
    for i, model in enumerate(models):
        shapes = [(name, tuple(value.shape)) for name, value in model.named_parameters()]
        if type(model) is not type(models[0]) or shapes != first:
            raise ValueError(
                f"seeds must have the same parameters in the same shapes; seed {i} differs from "
                "seed 0"
            )


def _check_layers(layers: Sequence[nn.Module]) -> None:
    _check_alike(layers)
    for layer in layers:
        if not isinstance(layer, MultiHeadAttention):
            raise TypeError(f"seeds must attend by MultiHeadAttention, got {type(layer).__name__}")
        if layer.operator is not softmax_attention or layer.position not in ("none", "rope"):
            raise ValueError(
                "seeds must attend by softmax, with position none, sinusoidal, learned or rope"
            )
        if layer.key_heads != layer.heads:
            raise ValueError(f"seeds must have a key head for each head, got {layer.key_heads}")
