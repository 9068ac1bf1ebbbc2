"""MoH: some heads always on, some chosen by each token, and a trained layer turned into one."""

import copy
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnlib.checks import check_count
from attnlib.models.mixtures.summed_heads import GatedHeads, Routing
from attnlib.models.multi_head import MultiHeadAttention
from attnlib.read.head_routing import check_active, chosen_heads, level_two_way_gates
from attnlib.read.skipped_heads import gated_heads_attention

ROUTER_SCALE = 0.02
"""Standard deviation of a router's first parameters: it begins almost without an opinion."""


class MixtureOfHeads(GatedHeads):
    r"""Multi-head attention in which each token takes all shared heads and picks `active` others.

    .. math:: y_i = \sum_h g_{ih}\, W^O_h o_{ih}, \qquad
              g_i = \mathrm{level\_two\_way\_gates}(W_s x_i, W_r x_i, W_a x_i, k)

    The first `shared` heads are always on; of the others, `active` = k are chosen by each token.
    Shapes as in `GatedHeads`. Parameters: those of `MultiHeadAttention` and (heads + 2) width.
    With active=1 the routed gate is constant, and only a balance loss reaches that router.
    Raises ValueError where `shared` + `active` is more than `heads`, or either is zero.
    Source: Jin et al. (2024), "MoH", section 3.2, with the factors of their program. Derived in
    chapter 5.2.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        shared: int,
        active: int,
        position: str = "none",
        is_causal: bool = False,
        operator: Callable[..., Tensor] = gated_heads_attention,
    ):
        attention = MultiHeadAttention(width, heads, position=position, is_causal=is_causal)
        super().__init__(attention, operator=operator)
        check_split(heads, shared, active)
        self.shared, self.active = shared, active
        self.to_shared = router(width, shared)
        self.to_routed = router(width, heads - shared)
        self.to_way = router(width, 2)

    def route(self, x: Float[Tensor, "batch N width"], query: Float[Tensor, "..."]) -> Routing:
        """The gates of the tokens x."""
        scores = self.to_routed(x)
        gates = level_two_way_gates(self.to_shared(x), scores, self.to_way(x), self.active)
        return Routing(gates, scores, gates[..., self.shared :])

    @staticmethod
    def from_multi_head(
        attention: MultiHeadAttention, *, shared: int, active: int
    ) -> "ConvertedHeads":
        """A trained layer as a mixture of heads: `ConvertedHeads` around a copy of it."""
        return ConvertedHeads(copy.deepcopy(attention), shared=shared, active=active)


class ConvertedHeads(GatedHeads):
    r"""A trained multi-head layer that reads with fewer heads; no new parameters.

    .. math:: g_{ih} = 1 \text{ for shared and chosen heads, else } 0, \qquad
              \mathrm{scores}_{ih} = \lVert q_{ih} \rVert / \mathrm{std}_h \lVert q_{ih} \rVert

    The first `shared` heads are always on. Of the others a token picks the `active` with the
    longest queries: a router of parameters that nobody has trained would only disturb. Gates are
    exactly one, so that with all heads on this is the layer it was made from, exactly; their
    gradient is that of softmax(scores), straight through the rounding.

    Shapes as in `GatedHeads`. It takes over the projections of `attention`, which are tuned further
    with the model. Raises ValueError where `shared` + `active` is more than the number of heads.
    Source: Jin et al. (2024), "MoH", the conversion of LLaMA3-8B. Derived in chapter 5.2.
    """

    def __init__(
        self,
        attention: MultiHeadAttention,
        *,
        shared: int,
        active: int,
        operator: Callable[..., Tensor] = gated_heads_attention,
    ):
        super().__init__(attention, operator=operator)
        check_split(self.heads, shared, active)
        self.shared, self.active = shared, active

    def route(
        self, x: Float[Tensor, "batch N width"], query: Float[Tensor, "batch heads N D"]
    ) -> Routing:
        """The gates of the tokens x, from the lengths of their queries."""
        lengths = query[:, self.shared :].norm(dim=-1).mT
        scores = lengths
        if lengths.shape[-1] > 1:  # in half precision, lengths of one token may well be equal
            least = torch.finfo(lengths.dtype).eps
            scores = lengths / lengths.std(dim=-1, keepdim=True).clamp(min=least)
        chance = scores.softmax(dim=-1)
        chosen = chosen_heads(scores, self.active) * (1 + (chance - chance.detach()))
        always = chosen.new_ones(*chosen.shape[:-1], self.shared)
        return Routing(torch.cat((always, chosen), dim=-1), scores, chosen)


def router(width: int, heads: int) -> nn.Linear:
    """A matrix of scores that begin near zero."""
    layer = nn.Linear(width, heads, bias=False)
    nn.init.normal_(layer.weight, std=ROUTER_SCALE)
    return layer


def check_split(heads: int, shared: int, active: int) -> None:
    """Check that `shared` heads and `active` of the others are among `heads` heads."""
    check_count("shared", shared, least=1)
    if shared >= heads:
        raise ValueError(f"shared must be less than the number of heads, {heads}, got {shared}")
    check_active(active, heads - shared)
