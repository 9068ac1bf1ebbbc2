"""Agent attention is two softmax reads in a row, and a linear attention with two feature maps."""

import pytest
import torch

from attnlib import softmax_attention
from attnlib.read.agent_attention import agent_attention, agent_features, pooled_agents


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def draw(queries, keys, agents):
    return (
        normal(2, 3, queries, 4),
        normal(2, 3, keys, 4, seed=1),
        normal(2, 3, keys, 5, seed=2),
        normal(2, 3, agents, 4, seed=3),
    )


def test_it_is_linear_attention_with_agents_as_feature_maps():
    query, key, value, agent = draw(15, 63, 7)
    asks, gathers = agent_features(query, key, agent)
    assert asks.shape == (2, 3, 15, 7)
    assert gathers.shape == (2, 3, 63, 7)
    close(agent_attention(query, key, value, agent=agent), asks @ (gathers.mT @ value))


@pytest.mark.parametrize("agents", [1, 3, 7])
def test_rows_sum_to_one_and_the_rank_is_the_number_of_agents(agents):
    query, key, _, agent = draw(30, 40, agents)
    weights = agent_attention(query, key, torch.eye(40).double().expand(2, 3, 40, 40), agent=agent)
    close(weights.sum(-1), torch.ones(2, 3, 30).double())
    assert (torch.linalg.matrix_rank(weights) == min(agents, 7)).all()


def test_one_agent_gives_every_query_the_same_read():
    query, key, value, agent = draw(6, 8, 1)
    read = agent_attention(query, key, value, agent=agent)
    close(read, softmax_attention(agent, key, value).expand_as(read))


def test_agents_are_means_of_runs_that_cover_all_queries():
    query = torch.arange(10.0, dtype=torch.float64)[:, None].expand(10, 4)
    close(pooled_agents(query, 5)[:, 0], torch.tensor([0.5, 2.5, 4.5, 6.5, 8.5]).double())
    close(pooled_agents(query, 3)[:, 0], torch.tensor([1.5, 4.5, 7.5]).double())
    assert pooled_agents(query, 12) is query


@pytest.mark.parametrize("count", [1, 3, 4, 7, 16])
def test_pooling_is_the_adaptive_pooling_of_pytorch(count):
    query = normal(2, 3, 17, 4)
    wanted = torch.nn.functional.adaptive_avg_pool1d(query.flatten(0, 1).mT, count).mT
    close(pooled_agents(query, count).flatten(0, 1), wanted)


def test_given_agents_do_not_care_for_the_order_of_queries():
    query, key, value, agent = draw(9, 9, 4)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    close(
        agent_attention(query[..., order, :], key, value, agent=agent),
        agent_attention(query, key, value, agent=agent)[..., order, :],
    )


def test_wrong_input_names_the_argument():
    query, key, value, agent = draw(4, 4, 2)
    with pytest.raises(ValueError, match="agent must have shape"):
        agent_attention(query, key, value, agent=agent[..., :3])
    with pytest.raises(TypeError, match="agent must have the dtype of query"):
        agent_attention(query, key, value, agent=agent.float())
    with pytest.raises(ValueError, match="count must be at least 1"):
        agent_attention(query, key, value, count=0)


def test_pooling_many_queries_in_half_precision_does_not_overflow():
    query = torch.full((1, 2000, 4), 100.0, dtype=torch.float16)
    agents = pooled_agents(query, 5)
    assert agents.dtype == torch.float16 and (agents == 100).all()
