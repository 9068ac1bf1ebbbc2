"""A layer that learns when a token must read everything, by a hard decision with a soft slope."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attnlib.checks import check_count
from attnlib.models.attention_layer import check_divides, check_pairs, projection, rotated
from attnlib.models.multi_head import read_weights
from attnlib.read.all_or_here import all_or_here_attention
from attnlib.read.heads import merge_heads, split_heads
from attnlib.read.skipped_heads import gates_by_head
from attnlib.support import window as last_keys
from attnlib.training import Objective, classification
from attnlib.weight.softmax_attention import softmax_attention


def straight_through(score: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    r"""1 where the score is positive, else 0; its slope is that of a sigmoid.

    .. math:: g = 1[s > 0], \qquad \partial g / \partial s := \sigma(s) (1 - \sigma(s))

    The true slope is zero everywhere, so nothing could be learnt by it.
    Source: Bengio et al. (2013), the straight-through estimator.
    """
    soft = score.sigmoid()
    return (score > 0).to(score.dtype) + (soft - soft.detach())


class AllOrHere(nn.Module):
    r"""Causal attention whose heads read the whole past for some tokens, the window for the others.

    .. math:: o_i = g_i\, \mathrm{full}_i + (1 - g_i)\, \mathrm{near}_i, \qquad
              g_i = 1[w \cdot x_i + b > 0]

    with w and b of each head. The decision is hard in training too and learns by
    `straight_through`, so both reads are computed there; `read_where_needed` gives the same with
    the full read for the chosen queries alone. A usage penalty (`with_usage_penalty`) makes the
    decision costly. It starts with g = 1 everywhere: the layer is full attention until it learns to
    save. With `router=False` the gates are `start` for good: 1 is full attention, 0 the window.

    Shapes: x (batch, N, width) -> (batch, N, width). After a call `gates` holds (batch, N, heads).
    Parameters beside those of attention: heads (width + 1).
    Source: Luo, Zhang and Yan (2025). Derived in chapter 6.1.
    """

    is_causal = True

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        window: int,
        position: str = "none",
        router: bool = True,
        start: float = 1.0,
    ):
        super().__init__()
        check_divides("heads", heads, "width", width)
        check_count("window", window, least=1)
        if position not in ("none", "rope"):
            raise ValueError(f"position must be one of ('none', 'rope'), got {position!r}")
        if position == "rope":
            check_pairs("width / heads", width // heads)
        self.heads, self.window, self.position = heads, window, position
        self.to_query, self.to_key, self.to_value, self.to_output = (
            projection(width, width) for _ in range(4)
        )
        self.router = nn.Linear(width, heads)
        nn.init.normal_(self.router.weight, std=0.1 * width**-0.5)
        nn.init.constant_(self.router.bias, start if router else start - 0.5)
        if not router:
            nn.init.zeros_(self.router.weight)
            self.router.requires_grad_(False)
        self.gates: Tensor | None = None  # what the last call decided

    def projected(self, x: Float[Tensor, "batch N width"]) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value (batch, heads, N, D), with their positions."""
        parts = (self.to_query(x), self.to_key(x), self.to_value(x))
        query, key, value = (split_heads(part, self.heads) for part in parts)
        if self.position == "rope":
            query, key = rotated(query), rotated(key)
        return query, key, value

    def everywhere(self, x: Float[Tensor, "batch N width"]) -> Bool[Tensor, "batch N heads"]:
        """Who reads everything."""
        return self.router(x) > 0

    def forward(
        self,
        x: Float[Tensor, "batch N width"],
        *,
        attn_mask: Bool[Tensor, "..."] | None = None,
        return_weights: bool = False,
    ) -> Float[Tensor, "batch N width"] | tuple[Tensor, Tensor]:
        """The read of each token; with `return_weights` also (batch, heads, N, N)."""
        query, key, value = self.projected(x)
        decided = straight_through(self.router(x))
        options = {"is_causal": True}
        if attn_mask is not None:
            options["attn_mask"] = attn_mask
        full = softmax_attention(query, key, value, **options)
        near = softmax_attention(query, key, value, support=last_keys(self.window), **options)
        gates = gates_by_head(decided, query).unsqueeze(-1)
        out = self.to_output(merge_heads(gates * full + (1 - gates) * near))
        self.gates = decided
        if return_weights:
            everywhere = {"everywhere": self.everywhere(x), "window": self.window}
            return out, read_weights(all_or_here_attention, query, key, **everywhere, **options)
        return out

    @torch.no_grad()
    def read_where_needed(self, x: Float[Tensor, "batch N width"]) -> Float[Tensor, "..."]:
        """The same, with the full read for the chosen queries alone; without gradients."""
        read = all_or_here_attention(
            *self.projected(x), self.everywhere(x), window=self.window, is_causal=True
        )
        return self.to_output(merge_heads(read))

    def __getstate__(self) -> dict:
        """Everything but what the last call decided, so that a trained layer can be copied."""
        return {**self.__dict__, "gates": None}


def decisions(model: nn.Module) -> Float[Tensor, "layers batch N heads"]:
    """The gates of the last call of every `AllOrHere` layer of a model."""
    gates = [layer.gates for layer in model.modules() if isinstance(layer, AllOrHere)]
    if not gates or any(gate is None for gate in gates):
        raise ValueError("model must have AllOrHere layers and have been called, got none")
    return torch.stack(gates)


def with_usage_penalty(weight: float, objective: Objective = classification) -> Objective:
    """The objective plus `weight` times the share of gates that are on."""
    if not weight >= 0:
        raise ValueError(f"weight must not be negative, got {weight}")

    def penalized(model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        loss, accuracy = objective(model, batch)
        return loss + weight * decisions(model).mean(), accuracy

    return penalized
