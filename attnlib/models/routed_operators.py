"""Supports chosen by a router or by centroids, as modules that need the width of a head alone."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnlib.checks import check_count
from attnlib.read.mixture_of_groups import mixture_of_groups_attention
from attnlib.read.routing_attention import routing_attention
from attnlib.read.spherical_k_means import check_decay, moved_centroids, on_sphere


class RoutedShares(nn.Module):
    r"""Routing attention whose `groups` centroids take N / groups tokens each, rounded up.

    The centroids (groups, head_width) serve all heads; in training mode queries, then keys move
    them. Queries and keys are routed each for themselves, as in the paper's models that are not
    causal. With heads that have their own centroids and shared keys: `RoutingAttention`.
    Source: Roy et al. (2021), algorithm 1.
    """

    def __init__(self, head_width: int, *, groups: int = 2, decay: float = 0.999, seed: int = 0):
        super().__init__()
        check_count("groups", groups, least=1)
        check_decay(decay)
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer(
            "centroids", on_sphere(torch.randn(groups, head_width, generator=generator))
        )
        self.decay = decay

    def forward(
        self,
        query: Float[Tensor, "*batch heads N D"],
        key: Float[Tensor, "*batch heads M D"],
        value: Float[Tensor, "*batch heads M E"],
        *,
        is_causal: bool = False,
    ) -> Float[Tensor, "*batch heads N E"]:
        """The read of `routing_attention` with these centroids."""
        fewest = min(query.shape[-2], key.shape[-2])
        read = routing_attention(
            query,
            key,
            value,
            centroids=self.centroids,
            top_k=-(-fewest // self.centroids.shape[-2]),
            is_causal=is_causal,
        )
        if self.training:
            for tokens in (query, key):
                self.centroids = moved_centroids(self.centroids, tokens, decay=self.decay)
        return read


class GroupedQueries(nn.Module):
    r"""Mixture-of-groups attention whose router looks at the query, r_i = W_r q_i.

    An operator is not given the token itself; all heads share the router (groups, head_width). A
    layer whose router looks at the token, as in the paper: `MixtureOfGroups`.
    Source: Jia et al. (2025), "MoGA".
    """

    def __init__(self, head_width: int, *, groups: int = 2):
        super().__init__()
        check_count("groups", groups, least=1)
        self.to_route = nn.Linear(head_width, groups, bias=False)

    def forward(
        self,
        query: Float[Tensor, "*batch heads N D"],
        key: Float[Tensor, "*batch heads N D"],
        value: Float[Tensor, "*batch heads N E"],
        *,
        is_causal: bool = False,
    ) -> Float[Tensor, "*batch heads N E"]:
        """The read of `mixture_of_groups_attention` with the routes of the queries."""
        return mixture_of_groups_attention(
            query, key, value, routes=self.to_route(query), is_causal=is_causal
        )
