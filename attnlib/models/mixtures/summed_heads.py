"""Multi-head attention as a sum over heads, with a gate on every head."""

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attnlib.models.attention_layer import rotated
from attnlib.models.multi_head import MultiHeadAttention, read_weights
from attnlib.read.head_routing import check_head_names
from attnlib.read.heads import merge_heads, split_heads
from attnlib.read.skipped_heads import gated_heads_attention
from attnlib.weight.softmax_attention import softmax_attention


class Routing(NamedTuple):
    """What was decided for a batch of tokens.

    `gates` are those of all heads, zero where a head is off. `scores` and `chosen` (also gates,
    zero where a head is off) are those of the routed heads, which are the last ones.
    """

    gates: Float[Tensor, "batch N heads"]
    scores: Float[Tensor, "batch N routed"]
    chosen: Float[Tensor, "batch N routed"]


def head_outputs(
    attention: MultiHeadAttention,
    x: Float[Tensor, "batch N width"],
    context: Float[Tensor, "batch M width"] | None = None,
    *,
    attn_mask: Bool[Tensor, "..."] | None = None,
) -> Float[Tensor, "batch heads N width"]:
    r"""What each head adds to the output: W^O_h times its read. Their sum is the layer's output.

    .. math:: W^O [o^1; \ldots; o^H] = \sum_h W^O_h o^h, \qquad W^O = [W^O_1, \ldots, W^O_H]

    Cost: H times the numbers of the output. Raises as `check_plain`.
    Source: Jin et al. (2024), "MoH", eqs. 2 and 3. Derived in chapter 5.2.
    """
    query, key, value = projected(attention, x, context)
    read = softmax_attention(query, key, value, **attention.options(attn_mask))
    blocks = attention.to_output.weight.unflatten(1, (attention.heads, -1))
    return torch.einsum("bhnd,whd->bhnw", read, blocks)


def mix_heads(
    outputs: Float[Tensor, "batch heads N width"], gates: Float[Tensor, "batch N heads"]
) -> Float[Tensor, "batch N width"]:
    """The mixture: y_i = sum_h g_ih outputs_hi."""
    return torch.einsum("bhnw,bnh->bnw", outputs, gates)


class GatedHeads(nn.Module):
    r"""Multi-head attention with a gate on each token and head.

    .. math:: y_i = \sum_h g_{ih}\, W^O_h \, \mathrm{attention}(W^Q_h x, W^K_h c, W^V_h c)_i

    It takes over the projections of `attention` (they are the same parameters). The gates are
    `gate`, one number a head and all ones at first, unless the call brings its own; a subclass says
    what the gates of a token are (`route`). `operator` is `gated_heads_attention`, or
    `skipped_heads_attention`, which gives the same and does not read where a gate is zero.

    Shapes: x (batch, N, width), context (batch, M, width) -> (batch, N, width).
    Raises TypeError for another layer; ValueError for one that shares key heads, has another
    operator than softmax attention, or changes its scores by position.
    Source: Jin et al. (2024), "MoH", eq. 4; Michel et al. (2019), where the gates are
    called xi. Derived in chapter 5.2.
    """

    def __init__(
        self,
        attention: MultiHeadAttention,
        *,
        operator: Callable[..., Tensor] = gated_heads_attention,
    ):
        super().__init__()
        check_plain(attention)
        self.attention, self.operator = attention, operator
        self.heads, self.is_causal = attention.heads, attention.is_causal
        self.register_buffer("gate", attention.to_query.weight.detach().new_ones(self.heads))
        self.routing: Routing | None = None  # what the last call decided

    def route(self, x: Float[Tensor, "batch N width"], query: Float[Tensor, "..."]) -> Routing:
        """The gates of the tokens x, whose queries are `query` (batch, heads, N, D)."""
        gates = self.gate.to(x).expand(*x.shape[:-1], self.heads)
        return Routing(gates, gates, gates)

    def gates(self, x: Float[Tensor, "batch N width"]) -> Float[Tensor, "batch N heads"]:
        """The gates of the tokens x."""
        query, _, _ = projected(self.attention, x)
        return self.route(x, query).gates

    def keep_heads(self, kept: Sequence[int]) -> "GatedHeads":
        """Prune: `gate` is one for the heads named and zero for all others.

        Raises ValueError for a head that does not exist; the layer is then left as it was.
        """
        check_head_names("kept", kept, self.heads)
        self.gate.zero_()[list(kept)] = 1
        return self

    def forward(
        self,
        x: Float[Tensor, "batch N width"],
        gates: Float[Tensor, "batch N heads"] | None = None,
        *,
        context: Float[Tensor, "batch M width"] | None = None,
        attn_mask: Bool[Tensor, "..."] | None = None,
        return_weights: bool = False,
    ) -> Float[Tensor, "batch N width"] | tuple[Tensor, Tensor]:
        """The read of x; with `return_weights` also the weights (batch, heads, N, M), ungated."""
        query, key, value = projected(self.attention, x, context)
        if gates is None:
            self.routing = self.route(x, query)
            gates = self.routing.gates
        options = self.attention.options(attn_mask)
        read = self.operator(query, key, value, gates, **options)
        out = self.attention.to_output(merge_heads(read))
        if return_weights:
            return out, read_weights(softmax_attention, query, key, **options)
        return out

    def __getstate__(self) -> dict:
        """Everything but what the last call decided, so that a trained layer can be copied."""
        return {**self.__dict__, "routing": None}


def with_gated_heads(model: nn.Module) -> nn.Module:
    """A copy of a language model whose attention layers are `GatedHeads` with all gates at one."""
    model = copy.deepcopy(model)
    for block in model.blocks:
        block.attention = GatedHeads(block.attention)
    return model


def routings(model: nn.Module) -> list[Routing]:
    """What was decided in the last call of a model, layer by layer.

    Raises ValueError for a model without routed layers, or one that has not been called yet.
    """
    found = [layer.routing for layer in model.modules() if hasattr(layer, "routing")]
    if not found or None in found:
        raise ValueError("model must have layers that route heads, and must have been called")
    return found


def head_importance(
    model: nn.Module, losses: Callable[[], Float[Tensor, " batch"]]
) -> list[Float[Tensor, " heads"]]:
    r"""How much the loss of an example hangs on each head: E |d loss / d gate|, layer by layer.

    `losses()` calls the model, whose layers are `GatedHeads`, and gives the loss of each example.
    Source: Michel et al. (2019).
    """
    layers = [layer for layer in model.modules() if isinstance(layer, GatedHeads)]
    if not layers:
        raise ValueError("model must have layers of the class GatedHeads, got none")
    with torch.enable_grad():
        for layer in layers:
            layer.gate.requires_grad_()
        total = losses().sum()
        slopes = torch.autograd.grad(total, [layer.routing.gates for layer in layers])
        for layer in layers:
            layer.gate.requires_grad_(False)
    return [slope.sum(dim=1).abs().mean(dim=0) for slope in slopes]


def projected(
    attention: MultiHeadAttention, x: Tensor, context: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of all heads, in their places; (batch, heads, length, D) each."""
    context = x if context is None else context
    query = split_heads(attention.to_query(x), attention.heads)
    key = split_heads(attention.to_key(context), attention.heads)
    value = split_heads(attention.to_value(context), attention.heads)
    if attention.position == "rope":
        query, key = rotated(query), rotated(key)
    return query, key, value


def check_plain(attention: nn.Module) -> None:
    """Check that a layer is multi-head softmax attention that a gate on its heads explains."""
    if not isinstance(attention, MultiHeadAttention):
        raise TypeError(f"attention must be a MultiHeadAttention, got {type(attention).__name__}")
    if attention.key_heads != attention.heads:
        raise ValueError(
            f"attention must have as many key heads as heads ({attention.heads}), "
            f"got {attention.key_heads}"
        )
    if attention.operator is not softmax_attention:
        raise ValueError("attention must have the operator softmax_attention, got another one")
    if attention.position not in ("none", "rope"):
        raise ValueError(f"attention must have position none or rope, got {attention.position!r}")
