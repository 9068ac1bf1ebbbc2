"""Layers over a memory that corrects itself."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus

from attnlib.memory.delta_rule import delta_rule_chunked
from attnlib.models.state_layer import StateLayer, gate


class DeltaLayer(StateLayer):
    r"""The delta rule with a step size made of the token: beta = `largest_beta` sigmoid(w . x).

    `largest_beta` = 1 moves the memory's answer to a key towards its new value; 2 lets it overshoot
    so far that a key's direction changes its sign, which counting needs (eigenvalues in (-1, 1)).
    The largest beta 2 is reached for an infinite score only.
    Arguments and shapes as in `StateLayer`. The state is H D E numbers.
    Source: Yang et al. (2024), section 3.4; the range to 2, Grazzi et al. (2024).
    """

    def __init__(self, width: int, heads: int, *, largest_beta: float = 1.0, **sizes):
        super().__init__(width, heads, **sizes)
        if not 0 < largest_beta <= 2:
            raise ValueError(f"largest_beta must lie above 0 and at most at 2, got {largest_beta}")
        self.largest_beta = largest_beta
        self.to_beta = gate(width, heads, 0.0)

    def beta(self, x: Float[Tensor, "batch N width"]) -> Float[Tensor, "batch H N"]:
        """The step size of each head at each token."""
        return self.largest_beta * self.to_beta(x).sigmoid().mT

    def read(self, query, key, value, x):
        """The delta rule with unit queries and keys."""
        return unit_delta_rule(query, key, value, beta=self.beta(x))

    def state_numbers(self, length: int) -> int:
        """A matrix for each head."""
        return self.heads * self.key_width * self.value_width


class GatedDeltaLayer(DeltaLayer):
    r"""The delta rule on a state that fades by alpha = exp(-exp(A) softplus(w . x + b)).

    A is one number a head. Starts with half-lives between about 10 and 700 tokens, spread over the
    heads. Source: Yang et al. (2025), section 3; the form of the gate, Dao and Gu (2024).
    """

    def __init__(self, width: int, heads: int, **sizes):
        super().__init__(width, heads, **sizes)
        self.to_decay = gate(width, heads, 0.0)
        self.log_rate = nn.Parameter(torch.linspace(-2.3, -6.6, heads))

    def log_decay(self, x: Float[Tensor, "batch N width"]) -> Float[Tensor, "batch H N"]:
        """The logarithm of what is left of the state after each token."""
        return -(self.log_rate.exp() * softplus(self.to_decay(x))).mT

    def read(self, query, key, value, x):
        """The delta rule on the faded state."""
        return unit_delta_rule(query, key, value, beta=self.beta(x), log_decay=self.log_decay(x))


def unit_delta_rule(
    query: Tensor, key: Tensor, value: Tensor, **gates: Tensor
) -> Float[Tensor, "batch H N E"]:
    """`attnlib.gated_delta_rule_attention` with scale 1 and its PyTorch form, which trains here."""
    query, key = normalize(query, dim=-1), normalize(key, dim=-1)
    return delta_rule_chunked(query, key, value, scale=1.0, **gates)[0]
