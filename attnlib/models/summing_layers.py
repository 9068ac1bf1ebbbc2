"""Layers whose memory adds what comes: for ever, or with old writes fading.

They are for short sequences: each reads its memory in the dense form, one table of N x N scores,
which equals the chunked operator of the same name (tested) and is faster up to some hundred tokens.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import elu, logsigmoid, softplus

from attnlib.memory.decay import decay_between, scores_by_channel
from attnlib.models.attention_layer import projection
from attnlib.models.state_layer import StateLayer, gate
from attnlib.read.heads import split_heads


class LinearLayer(StateLayer):
    """Linear attention with elu + 1, divided by its sum. State: H D (E + 1) numbers."""

    def read(self, query, key, value, x):
        """A mean of the values, weighted by phi(q) . phi(k)."""
        return mean_of_values((1 + elu(query)) @ (1 + elu(key)).mT, value)

    def state_numbers(self, length: int) -> int:
        """A matrix and a sum for each head."""
        return self.heads * self.key_width * (self.value_width + 1)


class TaylorLayer(StateLayer):
    """Linear attention with the second-order Taylor features of Based: weights 1 + s + s^2 / 2.

    s = q . k / sqrt(D). The features are 1, D products of one channel and D (D + 1) / 2 of two.
    """

    def read(self, query, key, value, x):
        """A mean of the values, weighted by the first three terms of exp(s)."""
        scores = query @ key.mT * self.key_width**-0.5
        return mean_of_values(1 + scores + scores**2 / 2, value)

    def state_numbers(self, length: int) -> int:
        """A matrix and a sum for each head, of so many rows as there are features."""
        features = (self.key_width + 1) * (self.key_width + 2) // 2
        return self.heads * features * (self.value_width + 1)


class SumLayer(StateLayer):
    """Linear attention without features and without division: S = S + k v^T. State: H D E."""

    def read(self, query, key, value, x):
        """The sum of all writes, read by the query."""
        return (query @ key.mT).tril() @ value * self.key_width**-0.5

    def state_numbers(self, length: int) -> int:
        """A matrix for each head."""
        return self.heads * self.key_width * self.value_width


class RetentionLayer(SumLayer):
    """Retention: every head fades at a rate of its own, 1 - 2^(-5 - h), the same for all tokens."""

    def read(self, query, key, value, x):
        """The sum of the writes, faded by their age."""
        rates = torch.log1p(-(2.0 ** (-5 - torch.arange(self.heads))))
        log_decay = rates[:, None].expand(*query.shape[:-1])
        return faded_sum(query, key, value, log_decay)


class GatedLinearLayer(SumLayer):
    """Gated linear attention: each key channel fades as the token says, a = sigmoid(W x)^(1/16).

    The exponent is that of Yang et al. (2024), section 4.4; W is a full matrix here, there it has
    rank 16.
    """

    def __init__(self, width: int, heads: int, **sizes):
        super().__init__(width, heads, **sizes)
        self.to_decay = projection(width, heads * self.key_width)

    def read(self, query, key, value, x):
        """The sum of the writes, each channel faded by its gates."""
        log_decay = logsigmoid(split_heads(self.to_decay(x), self.heads)) / 16
        return scores_by_channel(query, key, log_decay) @ value * self.key_width**-0.5


class TiedGateLayer(SumLayer):
    """HGRN-2: a key channel is written as much as it forgets; no gate is below `lower_bound`."""

    def __init__(self, width: int, heads: int, *, lower_bound: float = 0.9, **sizes):
        super().__init__(width, heads, **sizes)
        if not 0 <= lower_bound < 1:
            raise ValueError(f"lower_bound must lie in [0, 1), got {lower_bound}")
        self.lower_bound = lower_bound

    def read(self, query, key, value, x):
        """Running means of the values, one for each channel."""
        forget = self.lower_bound + (1 - self.lower_bound) * key.sigmoid()
        scores = scores_by_channel(query, 1 - forget, forget.clamp(min=1e-6).log())
        return scores @ value * self.key_width**-0.5


class StateSpaceLayer(SumLayer):
    """State-space duality (Mamba-2): one decay and one write strength a head, both from the token.

    step = softplus(w . x + b), rate = exp(A); starts with half-lives from about 10 to 700 tokens.
    """

    def __init__(self, width: int, heads: int, **sizes):
        super().__init__(width, heads, **sizes)
        self.to_step = gate(width, heads, 0.0)
        self.log_rate = nn.Parameter(torch.linspace(-2.3, -6.6, heads))

    def read(self, query, key, value, x):
        """The state of a system that moves by its steps."""
        step = softplus(self.to_step(x))
        log_decay = -(step * self.log_rate.exp()).mT
        return faded_sum(query, key, step.mT[..., None] * value, log_decay)


def mean_of_values(
    weights: Float[Tensor, "*heads N N"], value: Float[Tensor, "*heads N E"]
) -> Float[Tensor, "*heads N E"]:
    """The mean of the values so far with these weights, which must be positive."""
    weights = weights.tril()
    return weights @ value / weights.sum(-1, keepdim=True)


def faded_sum(
    query: Tensor, key: Tensor, value: Tensor, log_decay: Float[Tensor, "*heads N"]
) -> Float[Tensor, "*heads N E"]:
    """The sum of the writes so far, each faded by all decays after it."""
    scores = (query @ key.mT) * decay_between(log_decay[..., None])
    return scores @ value * query.shape[-1] ** -0.5
