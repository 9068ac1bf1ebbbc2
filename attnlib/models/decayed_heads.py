"""Operators of one attention layer whose state fades: they compute their gates and hold them."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import rms_norm, softplus

from attnlib.memory.additive_recurrence import additive_recurrence
from attnlib.memory.gated_linear import channel_gate, gated_linear_attention
from attnlib.memory.hgrn2 import hgrn2_attention
from attnlib.memory.lightning import lightning_attention
from attnlib.memory.retention import retention
from attnlib.memory.state_space_duality import state_space_duality

Heads = Float[Tensor, "*batch heads N D"]
Values = Float[Tensor, "*batch heads N E"]


class Retained(nn.Module):
    """A fixed decay, and each head's read divided by its root mean square.

    A sum over the past has no fixed size; the norm gives it one. `operator` is `retention` or
    `lightning_attention`. Source: Sun et al. (2023), section 2.2; Qin et al. (2024).
    """

    def __init__(self, head_width: int, operator: Callable[..., Tensor] = retention):
        super().__init__()
        self.operator = operator

    def forward(self, query: Heads, key: Heads, value: Values, *, is_causal: bool = True) -> Values:
        """The normalized read of `operator`."""
        return normalized(self.operator(query, key, value, is_causal=is_causal))


class Lightning(Retained):
    """Lightning attention with the norm of its layer."""

    def __init__(self, head_width: int):
        super().__init__(head_width, lightning_attention)


class GatedLinearAttention(nn.Module):
    r"""Gates from the token: alpha = sigma(W_2 W_1 k + b)^{1/16}, of rank `rank`, then the norm.

    The paper takes the gate from the input of the layer; here it comes from the head's own key, a
    linear map of that input, so that the module fits where any operator fits.
    Source: Yang et al. (2024), section 4.4.
    """

    def __init__(self, head_width: int, rank: int = 16):
        super().__init__()
        rank = min(rank, head_width)
        self.to_gate = nn.Sequential(
            nn.Linear(head_width, rank, bias=False), nn.Linear(rank, head_width)
        )

    def forward(self, query: Heads, key: Heads, value: Values, *, is_causal: bool = True) -> Values:
        """The normalized read of `gated_linear_attention` with gates from the keys."""
        gate = channel_gate(self.to_gate(key))
        return normalized(
            gated_linear_attention(query, key, value, log_decay=gate, is_causal=is_causal)
        )


class StateSpaceDuality(nn.Module):
    r"""Mamba-2's step from the token: \Delta = softplus(w . k + b), a learned rate, then the norm.

    The rate A starts at one and the steps at `first_step`; rate and skip are shared by the heads
    of a layer (in the paper each head has its own). The short convolution before it and the gate
    behind it are left to the layer.
    Source: Dao and Gu (2024), section 7.
    """

    def __init__(self, head_width: int, first_step: float = 0.05):
        super().__init__()
        self.to_step = nn.Linear(head_width, 1)
        nn.init.zeros_(self.to_step.weight)
        nn.init.constant_(self.to_step.bias, torch.tensor(first_step).expm1().log().item())
        self.log_rate = nn.Parameter(torch.zeros(()))
        self.skip = nn.Parameter(torch.ones(()))

    def forward(self, query: Heads, key: Heads, value: Values, *, is_causal: bool = True) -> Values:
        """The normalized read of `state_space_duality` with steps from the keys."""
        step = softplus(self.to_step(key)).squeeze(-1)
        read = state_space_duality(
            query, key, value, step=step, rate=self.log_rate.exp(), is_causal=is_causal
        )
        return normalized(read + self.skip * value)


class HierarchicallyGated(nn.Module):
    """HGRN-2: the key is one minus its forget gate, then the norm.

    Source: Qin et al., "HGRN2" (2024). There the lower bound is learned, one a layer.
    """

    def __init__(self, head_width: int, lower_bound: float = 0.0):
        super().__init__()
        self.lower_bound = lower_bound

    def forward(self, query: Heads, key: Heads, value: Values, *, is_causal: bool = True) -> Values:
        """The normalized read of `hgrn2_attention`, keys as logits of the forget gate."""
        return normalized(
            hgrn2_attention(query, key, value, lower_bound=self.lower_bound, is_causal=is_causal)
        )


class Additive(nn.Module):
    """LightNet: silu(query), a running softmax over keys, then the norm.

    Source: Qin et al., "LightNet" (2024).
    """

    def __init__(self, head_width: int):
        super().__init__()

    def forward(
        self, query: Heads, key: Heads, value: Values, *, is_causal: bool = False
    ) -> Values:
        """The normalized read of `additive_recurrence`."""
        query = torch.nn.functional.silu(query)
        return normalized(additive_recurrence(query, key, value, is_causal=is_causal))


def normalized(read: Values) -> Values:
    """Each head's read divided by its root mean square over the E channels."""
    return rms_norm(read, read.shape[-1:])
