r"""Mixture-of-groups attention: a router gives each token a group, and groups read inside."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.checks import check_attention, check_dtype, check_scale, check_tensor, fits
from attnlib.read.packed_softmax import packed_softmax_attention

Routes = Float[Tensor, "*#heads N G"]


def groups_of(routes: Float[Tensor, "*tokens G"]) -> Int[Tensor, "*tokens"]:
    """The group of each token: the one with the largest route."""
    return routes.argmax(-1)


def gates_of(routes: Float[Tensor, "*tokens G"]) -> Float[Tensor, "*tokens"]:
    r"""How sure the router is of the group that it chose: max_g softmax(routes)_g."""
    return routes.softmax(-1).amax(-1)


def group_balance_loss(routes: Float[Tensor, "*tokens G"]) -> Float[Tensor, ""]:
    r"""G times the product of the share of tokens in a group and its mean probability, summed.

    .. math:: L = G \sum_{g=1}^G F_g P_g, \qquad F_g = \tfrac{1}{N} |\{i : g_i = g\}|,
              \quad P_g = \tfrac{1}{N} \sum_i \mathrm{softmax}(r_i)_g

    1 where all groups are equally large, near G where one group holds all tokens. The gradient
    goes through P alone. The paper adds it to the loss with the factor 0.1.
    Source: Jia et al. (2025), "MoGA", group balancing loss.
    """
    check_tensor("routes", routes)
    tokens = routes.flatten(0, -2)
    share = one_hot(groups_of(tokens), routes.shape[-1]).to(routes.dtype).mean(0)
    return routes.shape[-1] * (share * tokens.softmax(-1).mean(0)).sum()


def dense_mixture_of_groups(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    routes: Routes,
    is_causal: bool = False,
    scale: float | None = None,
) -> Float[Tensor, "*heads N E"]:
    r"""`mixture_of_groups_attention` as dense attention with the mask "same group".

    .. math:: o_i = p_i\, \mathrm{attend}(q_i, K, V;\; S_i = \{j : g_j = g_i\})
    """
    check_groups(query, key, value, routes, scale)
    group = groups_of(routes)
    same = group[..., :, None] == group[..., None, :]
    read = attend(query, key, value, attn_mask=same, is_causal=is_causal, scale=scale)
    return gates_of(routes)[..., None] * read


def _routes_of_queries(query: Tensor, key: Tensor, value: Tensor) -> dict:
    """A router with three groups that looks at the query, as one of a model looks at the token."""
    angles = torch.arange(3 * query.shape[-1], dtype=query.dtype).view(query.shape[-1], 3)
    return {"routes": query.detach() @ (1 + 2 * angles).sin()}


@mechanism(
    key="moga-groups",
    paper="moga-groups",
    chapter="6-sparse/content-routing",
    section="a-router-instead",
    step="support",
    idea="a linear router sends each token to one group; full attention inside the groups",
    equation=r"p_{g_i}(x_i)\, \mathrm{softmax}(q_i K_{g_i}^\top / \sqrt{D})\, V_{g_i}",
    cost="time N G width for the router and N^2 / G (D + E) if the groups are equally large",
    oracle=dense_mixture_of_groups,
    # Groups belong to places, so queries and keys stand at the same places, in the same order; the
    # gate scales the whole row.
    promises=Promises(
        cross=False,
        query_equivariant=False,
        key_invariant=False,
        grouped_query=False,
        padding=False,
        normalized=False,
        arguments=_routes_of_queries,
    ),
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def mixture_of_groups_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    routes: Routes,
    is_causal: bool = False,
    scale: float | None = None,
    backend: str = "auto",
) -> Float[Tensor, "*heads N E"]:
    r"""Softmax attention among the tokens of one group, times the router's probability of it.

    .. math:: g_i = \arg\max_g r_{ig}, \qquad
              o_i = \mathrm{softmax}(r_i)_{g_i} \sum_{j : g_j = g_i} w_{ij} v_j

    `routes` (..., N, G) are the router's scores, a linear map of the tokens; a head axis of 1, or
    no axes before N, serve all heads, as in the paper. The probability lets the router learn:
    through the choice itself no gradient goes. Each token chooses for itself, so with `is_causal`
    no later token matters. A group may be empty.

    Fast form: the tokens are sorted by group, keeping their order inside, and the groups lie end to
    end as packed sequences; `backend="triton"` runs the kernel for those.
    Cost: sum_g N_g^2 (D + E) operations; N^2 / G (D + E) where groups are equally large, and
    N^2 (D + E) where one group holds all tokens. No table N x N where there are several.
    Raises ValueError for routes that do not fit.
    Source: Jia et al. (2025), "MoGA".
    """
    check_groups(query, key, value, routes, scale)
    group = groups_of(routes).expand(query.shape[:-1])
    order = group.argsort(dim=-1, stable=True)
    sizes = one_hot(group, routes.shape[-1]).sum(-2).flatten()
    read = packed_softmax_attention(
        *(rows_in(order, x).flatten(0, -2) for x in (query, key, value)),
        starts=torch.cat((sizes.new_zeros(1), sizes.cumsum(0))),
        is_causal=is_causal,
        scale=scale,
        backend=backend,
    )
    read = rows_in(order.argsort(-1), read.view(value.shape))
    return gates_of(routes)[..., None] * read


def rows_in(order: Int[Tensor, "*heads N"], x: Float[Tensor, "*heads N D"]) -> Tensor:
    """The rows of x in this order."""
    return x.gather(-2, order[..., None].expand(*order.shape, x.shape[-1]))


def check_groups(
    query: Tensor, key: Tensor, value: Tensor, routes: Tensor, scale: float | None
) -> None:
    """Check query, key and value, and that routes have one row for each of their places."""
    check_attention(query, key, value)
    check_scale(scale)
    if key.shape != query.shape:
        raise ValueError(
            f"key must have the shape of query {tuple(query.shape)}: a group holds places, got "
            f"{tuple(key.shape)}"
        )
    check_tensor("routes", routes)
    check_dtype("routes", routes, query)
    if routes.dim() < 2 or not routes.shape[-1] or not fits(routes.shape[:-1], query.shape[:-1]):
        raise ValueError(
            f"routes must have shape (..., {query.shape[-2]}, groups) that broadcasts to the "
            f"query's {tuple(query.shape[:-1])}, got {tuple(routes.shape)}"
        )
    if routes.shape[-2] != query.shape[-2]:
        raise ValueError(
            f"routes must have one row for each of the {query.shape[-2]} tokens, "
            f"got {routes.shape[-2]}"
        )
