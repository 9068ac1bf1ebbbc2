"""Flow attention conserves what passes through every query and every key."""

import pytest
import torch

from attnlib.read.flow_attention import (
    causal_flow_weights,
    causal_flows,
    dense_flow_attention,
    flow_attention,
    flow_attention_step,
    flow_weights,
    flows,
)


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def draw(queries, keys):
    return (
        2 * normal(2, 3, queries, 4),
        2 * normal(2, 3, keys, 4, seed=1),
        normal(2, 3, keys, 5, seed=2),
    )


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (15, 63), (100, 7)])
def test_after_conservation_every_query_receives_one_and_every_key_sends_one(queries, keys):
    query, key, _ = draw(queries, keys)
    flow = flows(query, key)
    capacity = query.sigmoid() @ key.sigmoid().mT
    per_sink = capacity / flow.incoming[..., None]
    per_source = capacity / flow.outgoing[..., None, :]
    close(per_sink.sum(-1), torch.ones_like(flow.incoming))
    close(per_source.sum(-2), torch.ones_like(flow.outgoing))
    close(flow.conserved_outgoing, per_sink.sum(-2))
    close(flow.conserved_incoming, per_source.sum(-1))


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (15, 63), (100, 7)])
def test_the_whole_network_loses_nothing(queries, keys):
    flow = flows(*draw(queries, keys)[:2])
    close(flow.conserved_outgoing.sum(-1), torch.full((2, 3), queries).double())
    close(flow.conserved_incoming.sum(-1), torch.full((2, 3), keys).double())


def test_a_causal_query_still_receives_one_but_a_causal_key_does_not_send_one():
    query, key, _ = draw(9, 9)
    flow = causal_flows(query, key)
    capacity = query.sigmoid() @ key.sigmoid().mT
    numbers = torch.arange(1.0, 10.0, dtype=torch.float64)
    received = capacity.tril().sum(-1) / (flow.incoming * numbers)
    sent = (capacity.tril() / (flow.outgoing * numbers)[..., None, :]).sum(-2)
    close(received, torch.ones_like(received))
    assert (sent - 1).abs().max() > 0.1


def test_the_weights_of_a_row_are_a_gate_times_something_and_do_not_sum_to_one():
    query, key, _ = draw(6, 8)
    weights = flow_weights(query, key)
    assert (weights > 0).all()
    assert (weights.sum(-1) - 1).abs().max() > 0.1
    assert torch.linalg.matrix_rank(flow_weights(*draw(30, 40)[:2])).max() <= 4


@pytest.mark.parametrize("length", [1, 15, 63, 100, 257])
def test_linear_dense_and_step_by_step_agree(length):
    inputs = [x.requires_grad_() for x in draw(length, length)]
    wanted = dense_flow_attention(*inputs, is_causal=True)
    mine = flow_attention(*inputs, is_causal=True, chunk=16)
    state, reads = None, []
    for t in range(length):
        read, state = flow_attention_step(state, *(x[..., t : t + 1, :] for x in inputs))
        reads.append(read)
    slope = normal(*wanted.shape, seed=3)
    targets = torch.autograd.grad(wanted, inputs, slope, retain_graph=True)
    for other in (mine, torch.cat(reads, dim=-2)):
        close(other, wanted)
        for a, b in zip(torch.autograd.grad(other, inputs, slope), targets, strict=True):
            close(a, b)


def test_equal_keys_leave_the_mean_value_times_a_gate():
    query, _, value = draw(5, 8)
    key = normal(2, 3, 1, 4).expand(2, 3, 8, 4)
    read = flow_attention(query, key, value)
    mean = value.mean(-2, keepdim=True)
    share = flows(query, key).conserved_incoming * 5 / 8
    close(read, torch.sigmoid(share)[..., None] * mean)


def test_rows_of_the_causal_weights_are_zero_above_the_diagonal():
    weights = causal_flow_weights(*draw(6, 6)[:2])
    assert not weights.triu(1).count_nonzero()


def test_wrong_input_names_the_argument():
    query, key, value = draw(4, 4)
    with pytest.raises(ValueError, match=r"key must have the width of query \(4\), got 3"):
        flow_attention(query, key[..., :3], value)
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        flow_attention(query, key, value, chunk=0)
    with pytest.raises(TypeError, match="query"):
        flow_attention(query.long(), key, value)
