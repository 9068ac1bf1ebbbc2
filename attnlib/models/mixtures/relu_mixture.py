"""Heads that a ReLU opens: as many as a token asks for, steered by a penalty."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from attnlib.checks import check_count, check_tensor
from attnlib.models.attention_layer import projection
from attnlib.models.mixtures.mixture_of_heads import router
from attnlib.models.mixtures.summed_heads import GatedHeads, Routing
from attnlib.models.multi_head import MultiHeadAttention
from attnlib.read.head_routing import relu_gates
from attnlib.read.skipped_heads import gated_heads_attention

SHARPNESS = 10.0
"""How steeply the soft count of open gates rises at zero."""


class ReluMixtureOfHeads(GatedHeads):
    r"""Multi-head attention with shared heads, and heads that relu(W_r x) opens.

    .. math:: y_i = \sum_h g_{ih}\, W^O_h o_{ih}, \qquad
              g_i = [\,\alpha_1, \ldots, \alpha_1;\; \alpha_2 \,\mathrm{relu}(W_r x_i)\,], \qquad
              [\alpha_1, \alpha_2] = \mathrm{softmax}(W_a x_i)

    The output is continuous in x: a head that opens begins at zero. The first `shared` heads are
    always on; about half of the others are on before training.
    Shapes as in `GatedHeads`. Parameters: those of `MultiHeadAttention` and (heads - shared + 2)
    width. Raises ValueError where `shared` is not in 1 ... heads - 1.
    Source: Shi et al. (2025), "PVChat", ReLU-routed mixture of heads; it takes the shared heads and
    the two coefficients from Jin et al. (2024). Derived in chapter 5.2.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        shared: int,
        position: str = "none",
        is_causal: bool = False,
        operator: Callable[..., Tensor] = gated_heads_attention,
    ):
        attention = MultiHeadAttention(width, heads, position=position, is_causal=is_causal)
        super().__init__(attention, operator=operator)
        check_count("shared", shared, least=1)
        if shared >= heads:
            raise ValueError(f"shared must be less than the number of heads, {heads}, got {shared}")
        self.shared = shared
        self.to_routed = projection(width, heads - shared)
        self.to_way = router(width, 2)

    def route(self, x: Float[Tensor, "batch N width"], query: Float[Tensor, "..."]) -> Routing:
        """The gates of the tokens x."""
        scores = self.to_routed(x)
        way = self.to_way(x).softmax(dim=-1)
        always = way[..., :1].expand(*scores.shape[:-1], self.shared)
        opened = way[..., 1:] * relu_gates(scores)
        return Routing(torch.cat((always, opened), dim=-1), scores, opened)


def sparsity(scores: Float[Tensor, "*tokens routed"]) -> Float[Tensor, ""]:
    r"""The share of ReLU gates that are zero, with a gradient that a count does not have.

    Its value is the count; its gradient that of the soft count 1 - mean(sigmoid(10 scores)), which
    closed heads feel too. The paper prints the count alone, through which nothing could be learned.
    """
    check_tensor("scores", scores)
    soft = 1 - torch.sigmoid(SHARPNESS * scores).mean()
    return (scores <= 0).to(scores).mean() + soft - soft.detach()


def sparsity_penalty(
    scores: Float[Tensor, "*tokens routed"], coefficient: float
) -> Float[Tensor, ""]:
    """`coefficient` times the mean of relu(scores), whose gradient closes gates.

    Raises ValueError for a coefficient that is negative or not finite.
    Source: Shi et al. (2025), smooth proximity regularization.
    """
    check_strength("coefficient", coefficient)
    return coefficient * relu_gates(scores).mean()


def next_coefficient(
    coefficient: float, share: float, target: float, *, rate: float = 0.1, largest: float = 10.0
) -> float:
    r"""The coefficient of the penalty for the next step: b exp(rate (target - share)).

    `share` is the share of gates that were zero and `target` the share wanted. Too few zeros, and
    the coefficient grows; too many, and it shrinks.
    Raises ValueError for shares outside 0 ... 1 and for a coefficient that is not positive.
    Source: Shi et al. (2025), smooth proximity regularization; rate and bound from their program.
    """
    check_strength("coefficient", coefficient)
    if coefficient == 0:
        raise ValueError("coefficient must be positive to grow, got 0")
    check_share("share", share)
    check_share("target", target)
    return min(coefficient * math.exp(rate * (target - share)), largest)


def activation_enhancement(share: Float[Tensor, ""], target: float) -> Float[Tensor, ""]:
    """exp(2 (share - target)) - 1 where more gates are zero than wanted, else 0.

    `share` is `sparsity(scores)`, and through its gradient this opens gates again.
    Raises ValueError for a target outside 0 ... 1.
    Source: Shi et al. (2025), head activation enhancement.
    """
    check_share("target", target)
    return torch.expm1(2 * (share - target)).clamp(min=0)


def check_share(name: str, share: float) -> None:
    """Check that a share lies in 0 ... 1."""
    if not 0 <= share <= 1:
        raise ValueError(f"{name} must lie in 0 ... 1, got {share}")


def check_strength(name: str, strength: float) -> None:
    """Check that the strength of a loss is a finite number of at least 0."""
    if not (math.isfinite(strength) and strength >= 0):
        raise ValueError(f"{name} must be a finite number of at least 0, got {strength}")
