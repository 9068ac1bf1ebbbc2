"""Training with routers: their losses beside that of the task, and what a token costs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attnlib.checks import check_count
from attnlib.models.mixtures.attention_experts import MixtureOfAttentionHeads
from attnlib.models.mixtures.relu_mixture import (
    activation_enhancement,
    check_share,
    check_strength,
    next_coefficient,
    sparsity,
    sparsity_penalty,
)
from attnlib.models.mixtures.summed_heads import GatedHeads, routings
from attnlib.read.head_routing import balance_loss, z_loss
from attnlib.training import classification

Objective = Callable[[nn.Module, Any], tuple[Tensor, Tensor]]


def balanced(
    *, balance: float = 0.01, z: float = 0.0, task: Objective = classification
) -> Objective:
    """The task's loss, and `balance` times the balance loss and `z` times the z loss of each layer.

    Raises ValueError for a strength that is negative or not finite.
    Jin et al. (2024) have the weight 0.01, before a smaller sum (see `balance_loss`).
    """
    check_strength("balance", balance)
    check_strength("z", z)

    def objective(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        loss, accuracy = task(model, batch)
        for routing in routings(model):
            loss = loss + balance * balance_loss(routing.scores, routing.chosen)
            loss = loss + z * z_loss(routing.scores)
        return loss, accuracy

    return objective


class SteeredSparsity:
    """The task's loss and a penalty that is steered to a share `target` of zero gates.

    An objective for `train` that keeps a state: one coefficient, which `next_coefficient` changes
    at each call. With rate=0 it stays where it begins. `enhancement` is the weight of
    `activation_enhancement`, 0.5 in the paper's program.
    """

    def __init__(
        self,
        target: float,
        *,
        coefficient: float = 0.1,
        rate: float = 0.1,
        enhancement: float = 0.5,
        task: Objective = classification,
    ):
        check_share("target", target)
        check_strength("coefficient", coefficient)
        check_strength("rate", rate)
        check_strength("enhancement", enhancement)
        self.target, self.coefficient, self.rate = target, coefficient, rate
        self.enhancement, self.task = enhancement, task

    def __call__(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """The loss of a batch and the task's accuracy."""
        loss, accuracy = self.task(model, batch)
        shares = []
        for routing in routings(model):
            share = sparsity(routing.scores)
            loss = loss + sparsity_penalty(routing.scores, self.coefficient)
            loss = loss + self.enhancement * activation_enhancement(share, self.target)
            shares.append(float(share.detach()))
        if self.rate:
            mean = sum(shares) / len(shares)
            self.coefficient = next_coefficient(self.coefficient, mean, self.target, rate=self.rate)
        return loss, accuracy


def token_operations(layer: nn.Module, keys: int, active: float) -> float:
    """Multiplications and additions of an attention layer for one token with `keys` keys.

    `active` is the mean number of heads that are on. Counted are the projections (queries and
    outputs of the heads that are on; all keys and values that the layer has), the scores and reads,
    and the router; not the softmax. Raises TypeError for a layer of another kind.
    """
    check_count("keys", keys)
    if isinstance(layer, MixtureOfAttentionHeads):
        _, width, head_width = layer.query_matrices.shape
        key_heads = 1
    elif isinstance(layer, GatedHeads):
        width = layer.attention.to_query.in_features
        key_heads, head_width = layer.heads, width // layer.heads
    else:
        raise TypeError(
            f"layer must be a MixtureOfAttentionHeads or a GatedHeads, got {type(layer).__name__}"
        )
    routers = ("to_scores", "to_routed", "to_shared", "to_way")
    scored = sum(getattr(layer, name).out_features for name in routers if hasattr(layer, name))
    products = 2 * width * head_width * (active + key_heads) + 2 * keys * head_width * active
    return 2.0 * (products + width * scored)


@torch.no_grad()
def active_heads(model: nn.Module) -> float:
    """The mean number of heads on, over tokens and layers, in the model's last call."""
    counts = [(routing.gates != 0).sum(dim=-1).double().mean() for routing in routings(model)]
    return float(torch.stack(counts).mean())
