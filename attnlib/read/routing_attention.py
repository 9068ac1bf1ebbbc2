r"""Routing attention: each centroid takes its nearest tokens, and they read one another."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.checks import check_attention, check_count, check_scale
from attnlib.read.heads import weighted_sum
from attnlib.read.spherical_k_means import (
    affinity,
    at_least_single,
    check_centroids,
    check_decay,
    first_centroids,
    moved_centroids,
    on_sphere,
)
from attnlib.score.changes import changed
from attnlib.score.compare import dot_product
from attnlib.support import allowed_keys, index_grid
from attnlib.weight.softmax import softmax


def taken_places(
    tokens: Float[Tensor, "*heads N D"], centroids: Float[Tensor, "*#heads G D"], top_k: int
) -> Int[Tensor, "*heads G T"]:
    """The places of the `top_k` tokens nearest to each centroid, in their order in the sequence.

    A token may be taken by several centroids or by none. Whether token i is taken depends on all
    tokens, later ones too.
    Raises ValueError for more tokens than there are, or none.
    """
    check_count("top_k", top_k, least=1)
    if top_k > tokens.shape[-2]:
        raise ValueError(
            f"top_k must be at most the number of tokens {tokens.shape[-2]}, got {top_k}"
        )
    return affinity(tokens, centroids).mT.topk(top_k, dim=-1).indices.sort(dim=-1).values


def dense_routing_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    value: Float[Tensor, "*heads M E"],
    *,
    centroids: Float[Tensor, "*#heads G D"],
    top_k: int,
    is_causal: bool = False,
    score_mod: Callable[..., Tensor] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "*heads N E"]:
    r"""`routing_attention` by its definition: one dense read for each centroid, and their mean.

    .. math:: o_i = \frac{1}{|\{g : i \in Q_g\}|} \sum_{g : i \in Q_g}
              \mathrm{attend}(q_i, K, V;\; S_i = K_g)

    Cost: time G N M (D + E), memory N M: the oracle of the fast form.
    """
    check_routing(query, key, value, scale)
    check_centroids(query, centroids)
    out_dtype = query.dtype
    query, key, value, centroids = at_least_single(query, key, value, centroids)
    query_taken = taken_table(query, centroids, top_k)
    key_taken = taken_table(key, centroids, top_k)
    total = 0
    for group in range(centroids.shape[-2]):
        pairs = query_taken[..., group, :, None] & key_taken[..., group, None, :]
        total = total + attend(
            on_sphere(query),
            on_sphere(key),
            value,
            attn_mask=pairs,
            is_causal=is_causal,
            score_mod=score_mod,
            scale=scale,
        )
    return (total / query_taken.sum(-2).clamp(min=1)[..., None]).to(out_dtype)


def taken_table(tokens: Tensor, centroids: Tensor, top_k: int) -> Tensor:
    """Which tokens each centroid takes, as a bool table (..., G, N)."""
    places = taken_places(tokens, centroids, top_k)
    table = torch.zeros(*places.shape[:-1], tokens.shape[-2], dtype=torch.bool)
    return table.to(tokens.device).scatter(-1, places, True)


def _some_centroids(query: Tensor, key: Tensor, value: Tensor) -> dict:
    """Two directions and their opposites, each of which takes half of the tokens."""
    generator = torch.Generator().manual_seed(query.shape[-1])
    drawn = torch.randn(2, query.shape[-1], generator=generator, dtype=torch.float64)
    directions = on_sphere(drawn).to(query)
    fewest = min(query.shape[-2], key.shape[-2])
    return {"centroids": torch.cat((directions, -directions)), "top_k": (fewest + 1) // 2}


@mechanism(
    key="routing-transformer",
    paper="routing-transformer",
    chapter="6-sparse/content-routing",
    section="clusters-of-keys",
    step="support",
    idea="online k-means of queries and keys; each centroid takes its nearest tokens",
    equation=r"o_i = \mathrm{mean}_{g \ni i}\, \mathrm{softmax}(q_i K_g^\top / \sqrt{D})\, V_g",
    cost="time 2 N G D + G T^2 (D + E), with T = N / G and G = sqrt(N) it is N^1.5",
    oracle=dense_routing_attention,
    # A centroid takes its tokens from the whole sequence, so later tokens decide who is taken.
    # A token that no centroid takes reads zero.
    promises=Promises(
        causal=False,
        grouped_query=False,
        padding=False,
        normalized=False,
        shortest=1,
        arguments=_some_centroids,
    ),
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def routing_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    value: Float[Tensor, "*heads M E"],
    *,
    centroids: Float[Tensor, "*#heads G D"],
    top_k: int,
    is_causal: bool = False,
    score_mod: Callable[..., Tensor] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "*heads N E"]:
    r"""Softmax attention inside clusters: centroid g takes T queries and T keys, and these meet.

    .. math:: Q_g = \mathrm{top}_T(\mu_g \cdot \mathrm{norm}(q_i)), \quad
              K_g = \mathrm{top}_T(\mu_g \cdot \mathrm{norm}(k_j)), \quad
              o_i = \mathrm{mean}_{g : i \in Q_g} \sum_{j \in K_g} w_{ij} v_j

    with w the softmax of norm(q_i) . norm(k_j) `scale` over K_g. A query in several clusters reads
    the mean of its reads, one in no cluster reads zero. `centroids` (G, D) serve all heads,
    (heads, G, D) each head its own; they are given, see `moved_centroids`, and no gradient reaches
    them. For a causal model the paper gives the queries as keys too (key=query), so that Q_g = K_g
    and a token that is taken always sees itself.

    With `is_causal` a query sees the taken keys j <= i alone. This is not causal in the strict
    sense: which tokens are taken depends on the whole sequence.
    Shapes: query (..., N, D), key (..., M, D), value (..., M, E) -> (..., N, E).
    Cost: 2 (N + M) G D operations to choose and 2 G T^2 (D + E) to read, memory G T^2.
    Raises ValueError for top_k above N or M and for centroids that do not fit.
    Source: Roy et al. (2021), section 4.1 and algorithm 1.
    """
    check_routing(query, key, value, scale)
    check_centroids(query, centroids)
    out_dtype = query.dtype
    query, key, value, centroids = at_least_single(query, key, value, centroids)
    query_places = taken_places(query, centroids, top_k)
    key_places = taken_places(key, centroids, top_k)

    scores = dot_product(
        rows_at(on_sphere(query), query_places), rows_at(on_sphere(key), key_places), scale=scale
    )
    b, h, _, _ = index_grid(query, 0)
    where = (b[..., None], h[..., None], query_places[..., :, None], key_places[..., None, :])
    if score_mod is not None:
        scores = changed(score_mod, scores, where)
    allowed = allowed_keys(where, None, None, is_causal)
    weights = softmax(scores, torch.broadcast_to(allowed, scores.shape))
    reads = weighted_sum(weights, rows_at(value, key_places))
    return mean_at(reads, query_places, query.shape[-2]).to(out_dtype)


def rows_at(
    x: Float[Tensor, "*heads N D"], places: Int[Tensor, "*heads G T"]
) -> Float[Tensor, "*heads G T D"]:
    """The rows of x at the places of each group."""
    rows = places.flatten(-2)[..., None].expand(*places.shape[:-2], -1, x.shape[-1])
    return x.gather(-2, rows).unflatten(-2, places.shape[-2:])


def mean_at(
    rows: Float[Tensor, "*heads G T E"], places: Int[Tensor, "*heads G T"], length: int
) -> Float[Tensor, "*heads N E"]:
    """Each row back at its place; the mean where there are several, zero where there is none."""
    flat = places.flatten(-2)[..., None]
    total = rows.new_zeros(*rows.shape[:-3], length, rows.shape[-1])
    count = rows.new_zeros(*rows.shape[:-3], length, 1)
    total = total.scatter_add(
        -2, flat.expand(*flat.shape[:-1], rows.shape[-1]), rows.flatten(-3, -2)
    )
    count = count.scatter_add(-2, flat, torch.ones_like(flat, dtype=rows.dtype))
    return total / count.clamp(min=1)


class RoutingAttention(nn.Module):
    r"""Routing attention that learns its centroids while it trains, as an operator of a model.

    Queries serve as keys, as in the paper's causal models: the key that it is given is not used.
    The centroids (heads, groups, head_width) are a buffer, drawn from `seed`; in training mode
    each call moves them by `moved_centroids` with `decay` after it has read with them. A call that
    is computed again for its gradients (activation checkpointing) would read with moved ones: do
    not checkpoint this layer.
    Give an object, `operator=RoutingAttention(16, heads=4, groups=8, top_k=16)`; each layer gets
    its own copy.
    Source: Roy et al. (2021), algorithm 1.
    """

    def __init__(
        self,
        head_width: int,
        *,
        heads: int,
        groups: int,
        top_k: int,
        decay: float = 0.999,
        seed: int = 0,
    ):
        super().__init__()
        for name, size in (("heads", heads), ("groups", groups), ("top_k", top_k)):
            check_count(name, size, least=1)
        check_decay(decay)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(heads, groups, head_width, generator=generator)
        self.register_buffer("centroids", on_sphere(drawn))
        self.top_k, self.decay = top_k, decay

    def forward(
        self,
        query: Float[Tensor, "batch heads N D"],
        key: Float[Tensor, "batch heads N D"],
        value: Float[Tensor, "batch heads N E"],
        *,
        is_causal: bool = False,
        score_mod: Callable[..., Tensor] | None = None,
    ) -> Float[Tensor, "batch heads N E"]:
        """The read of `routing_attention(query, query, value)` with this layer's centroids."""
        read = routing_attention(
            query,
            query,
            value,
            centroids=self.centroids,
            top_k=self.top_k,
            is_causal=is_causal,
            score_mod=score_mod,
        )
        if self.training:
            self.centroids = moved_centroids(self.centroids, query, decay=self.decay)
        return read

    def start_at(self, query: Float[Tensor, "batch heads N D"]) -> None:
        """Put the centroids at tokens of the first sequence that lie far apart."""
        heads, groups, width = self.centroids.shape
        fits = query.dim() == 4 and len(query) and query.shape[1::2] == (heads, width)
        if not fits or query.dtype != self.centroids.dtype:
            raise ValueError(
                f"query must have shape (batch, {heads}, N, {width}) with at least one sequence "
                f"and dtype {self.centroids.dtype}, got {tuple(query.shape)} {query.dtype}"
            )
        self.centroids = first_centroids(query[0], groups).detach()


def check_routing(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> None:
    """Check what every routed read asks of query, key and value."""
    check_attention(query, key, value)
    check_scale(scale)
    if key.shape[-1] != query.shape[-1]:
        raise ValueError(f"key must have the width of query {query.shape[-1]}, got {key.shape[-1]}")
