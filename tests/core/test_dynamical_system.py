"""One linear system whose matrices change from token to token: attention, gates, state spaces."""

import pytest
import torch

from attnlib import attend
from attnlib.memory.decayed_state import decayed_attention
from attnlib.memory.dynamical_system import (
    System,
    decayed_attention_system,
    dynamical_system,
    gated_rnn_system,
    linear_attention_system,
    selective_system,
    softmax_attention_system,
)
from attnlib.memory.state_space_duality import state_space_duality


def draw(length=9, lead=(2, 2), width=4, value_width=3):
    generator = torch.Generator().manual_seed(length)
    return [
        torch.randn(*lead, length, w, generator=generator).double()
        for w in (width, width, value_width)
    ]


def assert_same(got, wanted):
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max().item() <= 1e-12 * max(1.0, wanted.abs().max().item())


@pytest.mark.parametrize("length", [1, 7, 15])
def test_softmax_attention_is_a_system_whose_state_grows(length):
    query, key, value = draw(length)
    system = softmax_attention_system(query, key, value)
    assert_same(dynamical_system(system, value), attend(query, key, value, is_causal=True))
    assert system.state_sizes == [3 * (i + 1) for i in range(length)]


@pytest.mark.parametrize("length", [1, 7, 15])
def test_normalized_linear_attention_has_its_normalizer_in_the_transition(length):
    query, key, value = draw(length)
    query, key = query.exp(), key.exp()
    system = linear_attention_system(query, key, value)
    weights = (query @ key.mT).tril()
    wanted = weights @ value / weights.sum(-1, keepdim=True)
    assert_same(dynamical_system(system, value), wanted)
    assert set(system.state_sizes) == {4 * 3}


@pytest.mark.parametrize("kind", ["none", "head", "token", "channel"])
def test_decayed_attention_is_a_system_of_constant_size(kind):
    query, key, value = draw()
    decay = {
        "none": None,
        "head": torch.tensor([[-0.1], [-0.7]]).double(),
        "token": -query[..., 0].exp(),
        "channel": -key.exp(),
    }[kind]
    system = decayed_attention_system(query, key, value, log_decay=decay)
    wanted = decayed_attention(query, key, value, log_decay=decay)
    assert_same(dynamical_system(system, value), wanted)
    assert set(system.state_sizes) == {4 * 3}


def test_a_selective_state_space_is_a_system():
    query, key, value = draw()
    step = query[..., 0].exp()
    system = selective_system(query, key, value, step=step, rate=0.7)
    wanted = state_space_duality(query, key, value, step=step, rate=0.7)
    assert_same(dynamical_system(system, value), wanted)


def test_a_gated_recurrent_network_keeps_one_number_a_channel():
    u, f, g = (x[..., :3] for x in draw())
    decay, gate = f.sigmoid(), g.sigmoid()
    got = dynamical_system(gated_rnn_system(decay, 1 - decay, gate), u)
    state = torch.zeros_like(u[..., 0, :])
    for t in range(9):
        state = decay[..., t, :] * state + (1 - decay[..., t, :]) * u[..., t, :]
        assert_same(got[..., t, :], gate[..., t, :] * state)


def test_the_skip_adds_the_input_itself():
    u, f, _ = (x[..., :3] for x in draw())
    plain = gated_rnn_system(f.sigmoid(), f.sigmoid())
    skip = [2 * torch.eye(3).double()] * 9
    with_skip = System(*plain[:3], skip)
    assert_same(dynamical_system(with_skip, u), dynamical_system(plain, u) + 2 * u)


def test_the_right_steps_turn_a_selective_state_space_into_normalized_linear_attention():
    query, key, value = draw()
    query, key = query.exp(), key.exp()
    total = (query * key.cumsum(-2)).sum(-1)
    before = torch.cat((total[..., :1], total[..., :-1]), -1)
    shrinking = before <= total  # a step cannot be negative
    assert shrinking.any()
    assert not shrinking.all()
    same = query[..., :1, :].expand_as(query)  # with one query for all, the sum only grows
    total = (same * key.cumsum(-2)).sum(-1)
    before = torch.cat((total[..., :1] / 2, total[..., :-1]), -1)
    step = (total / before).log()
    selective = state_space_duality(
        same, key / (total * step)[..., None], value, step=step, rate=1.0, scale=1.0
    )
    weights = (same @ key.mT).tril()
    assert_same(selective, weights @ value / weights.sum(-1, keepdim=True))


def test_wrong_systems_are_refused_by_name():
    query, key, value = draw()
    system = decayed_attention_system(query, key, value)
    with pytest.raises(ValueError, match=r"system.transition must have one matrix for each of 8"):
        dynamical_system(system, value[..., :8, :])
    broken = System([m[..., :5] for m in system.transition], system.write, system.read)
    with pytest.raises(ValueError, match=r"system.transition\[1\] must take a state of 12"):
        dynamical_system(broken, value)
    with pytest.raises(ValueError, match="query and key must be features"):
        linear_attention_system(query, -key.abs(), value)
    with pytest.raises(ValueError, match="log_decay"):
        decayed_attention_system(query, key, value, log_decay=0.5)
    assert dynamical_system(System([], [], []), value[..., :0, :]).shape == (2, 2, 0, 3)
