"""Mixture of attention heads: many query heads, of which each token uses a few."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from attnlib.checks import check_count
from attnlib.choices import check_choice
from attnlib.models.attention_layer import check_pairs, projection, rotated
from attnlib.models.mixtures.summed_heads import Routing
from attnlib.models.multi_head import read_weights
from attnlib.read.head_routing import check_active, renormalized_gates
from attnlib.weight.softmax_attention import softmax_attention


class MixtureOfAttentionHeads(nn.Module):
    r"""A layer of `experts` heads, each with its own way in and out, `active` of them a token.

    .. math:: y_i = \sum_{e \in G_i} g_{ie}\, W^O_e\,
              \mathrm{softmax}\!\left((W^Q_e x_i)^\top K / \sqrt{D}\right) V, \qquad
              K = W^K c,\ V = W^V c

    with g = `renormalized_gates` of the scores W x. All heads read the same keys and values, so a
    further head costs parameters and a score of the router, but no more reads.

    Shapes: x (batch, N, width), context (batch, M, width) -> (batch, N, width).
    Parameters: 2 experts width D + 2 width D + experts width.
    Raises ValueError for more active heads than heads.
    Source: Zhang et al. (2022), "Mixture of Attention Heads". Derived in chapter 5.2.
    """

    def __init__(
        self,
        width: int,
        experts: int,
        active: int,
        *,
        head_width: int,
        position: str = "none",
        is_causal: bool = False,
    ):
        super().__init__()
        check_count("experts", experts, least=1)
        check_active(active, experts)
        check_count("head_width", head_width, least=1)
        check_choice("position", position, ("none", "rope"))
        if position == "rope":
            check_pairs("head_width", head_width)
        self.experts, self.active = experts, active
        self.position, self.is_causal = position, is_causal
        self.to_scores = projection(width, experts)
        self.to_key = projection(width, head_width)
        self.to_value = projection(width, head_width)
        self.query_matrices = nn.Parameter(torch.empty(experts, width, head_width))
        self.output_matrices = nn.Parameter(torch.empty(experts, head_width, width))
        nn.init.normal_(self.query_matrices, std=width**-0.5)
        nn.init.normal_(self.output_matrices, std=head_width**-0.5)
        nn.init.normal_(self.to_scores.weight, std=0.1 * width**-0.5)
        self.routing: Routing | None = None  # what the last call decided

    def scores(self, x: Float[Tensor, "batch N width"]) -> Float[Tensor, "batch N experts"]:
        """The router's scores."""
        return self.to_scores(x)

    def gates(self, x: Float[Tensor, "batch N width"]) -> Float[Tensor, "batch N experts"]:
        """The gates of the tokens: they sum to one, `active` of them are not zero."""
        return renormalized_gates(self.scores(x), self.active)

    def forward(
        self,
        x: Float[Tensor, "batch N width"],
        context: Float[Tensor, "batch M width"] | None = None,
        *,
        attn_mask: Bool[Tensor, "..."] | None = None,
        return_weights: bool = False,
    ) -> Float[Tensor, "batch N width"] | tuple[Tensor, Tensor]:
        """The read of x; with `return_weights` also (batch, active, N, M), the best head first."""
        context = x if context is None else context
        scores = self.scores(x)
        gates = renormalized_gates(scores, self.active)
        self.routing = Routing(gates, scores, gates)
        chosen = scores.topk(self.active, dim=-1).indices  # (batch, N, active): slot s of a token

        slots = x.unsqueeze(2).expand(*chosen.shape, -1)
        query = by_expert(slots, self.query_matrices, chosen).transpose(1, 2)
        key, value = self.to_key(context).unsqueeze(1), self.to_value(context).unsqueeze(1)
        if self.position == "rope":
            query, key = rotated(query), rotated(key)
        key, value = (t.expand(-1, self.active, -1, -1) for t in (key, value))
        options = {"is_causal": True} if self.is_causal else {}
        if attn_mask is not None:
            options["attn_mask"] = attn_mask
        read = softmax_attention(query, key, value, **options).transpose(1, 2)

        outputs = by_expert(read, self.output_matrices, chosen)
        out = (gates.gather(-1, chosen).unsqueeze(-1) * outputs).sum(dim=2)
        if return_weights:
            return out, read_weights(softmax_attention, query, key, **options)
        return out

    def __getstate__(self) -> dict:
        """Everything but what the last call decided, so that a trained layer can be copied."""
        return {**self.__dict__, "routing": None}


def by_expert(
    x: Float[Tensor, "*slots D"],
    matrices: Float[Tensor, "experts D E"],
    expert: Int[Tensor, "*slots"],
) -> Float[Tensor, "*slots E"]:
    """Each row times the matrix of its expert: x_s @ matrices[expert_s].

    The rows are sorted by expert, so that each matrix is used once, and put back in order.
    Cost: slots D E, whatever the number of experts.
    """
    rows, order = x.flatten(0, -2), expert.flatten().argsort(stable=True)
    counts = expert.flatten().bincount(minlength=len(matrices)).tolist()
    groups = rows[order].split(counts)
    products = torch.cat([group @ matrix for group, matrix in zip(groups, matrices, strict=True)])
    return products[order.argsort()].unflatten(0, expert.shape)
