"""Agent attention: a few agents read the values, and the queries read the agents."""

import torch
from jaxtyping import Float
from torch import Tensor

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.checks import check_attention, check_count, check_dtype, check_scale, check_tensor
from attnlib.score.compare import dot_product
from attnlib.weight.softmax_attention import softmax_attention


def pooled_agents(query: Float[Tensor, "*heads N D"], count: int) -> Float[Tensor, "*heads R D"]:
    """Agents as the means of `count` runs of neighboring queries that cover all of them.

    Run r goes from floor(r N / count) to ceil((r + 1) N / count), so that runs may share a query
    where count does not divide N. Fewer queries than `count` are their own agents.
    Source: Han et al. (2024) pool the map of queries in the same way, in two dimensions.
    """
    check_count("count", count, least=1)
    length = query.shape[-2]
    if length <= count:
        return query
    wide = query.to(torch.promote_types(query.dtype, torch.float32))  # half precision ends at 65504
    sums = torch.cat((torch.zeros_like(wide[..., :1, :]), wide.cumsum(-2)), dim=-2)
    run = torch.arange(count, device=query.device)
    first, end = run * length // count, -((run + 1) * -length // count)
    return ((sums[..., end, :] - sums[..., first, :]) / (end - first)[:, None]).to(query.dtype)


def agent_features(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    agent: Float[Tensor, "*heads R D"],
    *,
    scale: float | None = None,
) -> tuple[Float[Tensor, "*heads N R"], Float[Tensor, "*heads M R"]]:
    r"""The two feature maps that agents are: (phi_q(Q), phi_k(K)).

    .. math:: \phi_q(Q) = \mathrm{softmax}(Q A^\top / \sqrt{D}) \qquad
              \phi_k(K) = \mathrm{softmax}(A K^\top / \sqrt{D})^\top

    Rows of phi_q and columns of phi_k sum to one, so rows of phi_q(Q) phi_k(K)^T do too: this
    linear attention needs no denominator. phi_k is not a function of one key: it is normalized over
    all of them. Source: Han et al. (2024).
    """
    asks = dot_product(query, agent, scale).softmax(-1)
    gathers = dot_product(agent, key, scale).softmax(-1)
    return asks, gathers.mT


def dense_agent_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    value: Float[Tensor, "*heads M E"],
    *,
    agent: Float[Tensor, "*heads R D"] | None = None,
    count: int = 49,
    scale: float | None = None,
) -> Float[Tensor, "*heads N E"]:
    """Agent attention by its N x M weights, phi_q(Q) phi_k(K)^T: the oracle."""
    agent = pooled_agents(query, count) if agent is None else agent
    asks, gathers = agent_features(query, key, agent, scale=scale)
    return (asks @ gathers.mT) @ value


@mechanism(
    key="agent-attention",
    paper="agent-attention",
    chapter="3-linear/feature-maps",
    section="agents",
    step="weight",
    idea="a few agents stand between queries and keys, with a softmax on either side",
    equation=r"\mathrm{softmax}(Q A^\top / \sqrt{D})\,"
    r"\left(\mathrm{softmax}(A K^\top / \sqrt{D})\, V\right)",
    cost="time (N + M) R (D + E), memory (N + M) R",
    oracle=dense_agent_attention,
    promises=Promises(
        causal=False,
        query_equivariant=False,
        grouped_query=False,
        padding=False,
    ),
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def agent_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    value: Float[Tensor, "*heads M E"],
    *,
    agent: Float[Tensor, "*heads R D"] | None = None,
    count: int = 49,
    scale: float | None = None,
) -> Float[Tensor, "*heads N E"]:
    r"""Two softmax attentions in a row: agents read the values, queries read the agents.

    .. math:: O = \mathrm{softmax}(Q A^\top / \sqrt{D})\,
              \left(\mathrm{softmax}(A K^\top / \sqrt{D})\, V\right)

    The agents A are given, or they are `pooled_agents(query, count)`. The weights are the product
    of two stochastic matrices: rows sum to one, and the rank is at most R, the number of agents.
    Pooling runs over neighboring queries, so it depends on their order; given agents do not.

    Shapes as in `attend`, agent (..., heads, R, D). Cost: time (N + M) R (D + E).
    Raises ValueError or TypeError naming the argument that does not fit.
    Source: Han et al. (2024), without their two tables of positions and without the depthwise
    convolution of the values (`attnlib.models.depthwise`). Derived in chapter 3.1.
    """
    check_attention(query, key, value)
    check_scale(scale)
    if agent is None:
        agent = pooled_agents(query, count)
    check_agent(query, agent)
    gathered = softmax_attention(agent, key, value, scale=scale)
    return softmax_attention(query, agent, gathered, scale=scale)


def check_agent(query: Tensor, agent: Tensor) -> None:
    """Check that agents (..., R, D) belong to queries (..., N, D)."""
    check_tensor("agent", agent)
    check_dtype("agent", agent, query)
    wanted = (*query.shape[:-2], "R", query.shape[-1])
    if agent.dim() != query.dim() or agent.shape != (
        *query.shape[:-2],
        agent.shape[-2],
        query.shape[-1],
    ):
        raise ValueError(f"agent must have shape {wanted}, got {tuple(agent.shape)}")
