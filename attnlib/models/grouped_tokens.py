"""Multi-head attention whose tokens meet in groups, and the router that forms them."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from attnlib.checks import check_count
from attnlib.models.multi_head import MultiHeadAttention
from attnlib.read.heads import merge_heads, split_heads
from attnlib.read.mixture_of_groups import group_balance_loss, mixture_of_groups_attention
from attnlib.training import classification

Objective = Callable[[nn.Module, Any], tuple[Tensor, Tensor]]


class MixtureOfGroups(nn.Module):
    r"""Multi-head attention inside groups: one linear router a layer, the same for all heads.

    .. math:: r_i = W_r x_i, \qquad y_i = \sum_h W^O_h\, p_{g_i}\,
              \mathrm{softmax}(q^h_i K^{h\top}_{g_i} / \sqrt{D})\, V^h_{g_i}

    `attention` gives the projections, new or those of a trained layer. No positions. On a CPU
    `operator=dense_mixture_of_groups` reads the same, and faster for short sequences.
    Shapes: x (batch, N, width) -> (batch, N, width). Parameters: the layer's and groups x width.
    Source: Jia et al. (2025), "MoGA".
    """

    def __init__(
        self,
        attention: MultiHeadAttention,
        groups: int,
        *,
        operator: Callable[..., Tensor] = mixture_of_groups_attention,
    ):
        super().__init__()
        check_count("groups", groups, least=1)
        if attention.position != "none":
            raise ValueError(f"attention must have position 'none', got {attention.position!r}")
        self.attention, self.is_causal = attention, attention.is_causal
        self.operator = operator
        self.to_route = nn.Linear(attention.to_query.in_features, groups, bias=False)

    def routes(self, x: Float[Tensor, "batch N width"]) -> Float[Tensor, "batch 1 N G"]:
        """The router's scores of the tokens, with one head axis for all heads."""
        return self.to_route(x)[:, None]

    def forward(
        self,
        x: Float[Tensor, "batch N width"],
        *,
        attn_mask: Bool[Tensor, "..."] | None = None,
        return_weights: bool = False,
    ) -> Float[Tensor, "batch N width"]:
        """The reads inside the groups. Takes no mask and returns no weights."""
        if attn_mask is not None or return_weights:
            raise ValueError("attn_mask and return_weights must be left out: groups take neither")
        layer = self.attention
        query, key, value = (
            split_heads(project(x), layer.heads)
            for project in (layer.to_query, layer.to_key, layer.to_value)
        )
        read = self.operator(query, key, value, routes=self.routes(x), is_causal=self.is_causal)
        return layer.to_output(merge_heads(read))


class BalancedGroups:
    """An objective for `train`: the task's loss and `balance` times every layer's balance loss.

    The layers are watched while the task runs, so their routes are computed a second time.
    """

    def __init__(self, *, balance: float = 0.1, task: Objective = classification):
        if not balance >= 0:
            raise ValueError(f"balance must not be negative, got {balance}")
        self.balance, self.task = balance, task

    def __call__(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """The loss of a batch and the task's accuracy."""
        losses: list[Tensor] = []
        layers = [part for part in model.modules() if isinstance(part, MixtureOfGroups)]
        hooks = [
            layer.register_forward_pre_hook(
                lambda layer, inputs: losses.append(group_balance_loss(layer.routes(inputs[0])))
            )
            for layer in layers
        ]
        try:
            loss, accuracy = self.task(model, batch)
        finally:
            for hook in hooks:
                hook.remove()
        return loss + self.balance * sum(losses), accuracy
