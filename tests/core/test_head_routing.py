"""Gates over heads, their losses and what they say of the tokens."""

import math

import pytest
import torch

from attnlib.read.head_routing import (
    balance_loss,
    check_head_names,
    choice_information,
    choice_shares,
    chosen_heads,
    gate_entropy,
    heads_in_use,
    level_two_way_gates,
    load,
    relu_gates,
    renormalized_gates,
    top_k_gates,
    two_way_gates,
    z_loss,
)


def scores(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_top_k_keeps_the_softmax_of_the_largest_and_closes_the_others():
    gates = top_k_gates(torch.tensor([[1.0, 3.0, 2.0, 0.0]]), 2)
    total = sum(math.exp(s) for s in (0, 1, 2, 3))
    wanted = torch.tensor([[0, math.exp(3) / total, math.exp(2) / total, 0]])
    torch.testing.assert_close(gates, wanted)
    assert (gates == 0).tolist() == [[True, False, False, True]]


def test_renormalized_gates_sum_to_one_and_the_sum_has_no_gradient():
    z = scores(5, 6).requires_grad_()
    gates = renormalized_gates(z, 3)
    torch.testing.assert_close(gates.sum(-1), torch.ones(5, dtype=torch.float64))
    total = top_k_gates(z, 3).sum(-1, keepdim=True).detach()
    weight = scores(5, 6, seed=1)
    slope = torch.autograd.grad((weight * gates).sum(), z)[0]
    wanted = torch.autograd.grad((weight * top_k_gates(z, 3) / total).sum(), z)[0]
    torch.testing.assert_close(slope, wanted)
    one = torch.autograd.grad(renormalized_gates(z, 1).sum(), z)[0]
    assert one.abs().max() > 1e-3  # with a gradient through the sum it would be zero


def test_two_way_gates_sum_to_one_where_all_heads_are_on():
    shared, routed, way = scores(4, 3), scores(4, 5, seed=1), scores(4, 2, seed=2)
    gates = two_way_gates(shared, routed, way, 5)
    torch.testing.assert_close(gates.sum(-1), torch.ones(4, dtype=torch.float64))
    alpha = way.softmax(-1)
    torch.testing.assert_close(gates[:, :3].sum(-1), alpha[:, 0])
    torch.testing.assert_close(gates[:, 3:], alpha[:, 1:] * routed.softmax(-1))


def test_level_gates_of_a_router_without_an_opinion_are_all_one():
    gates = level_two_way_gates(torch.zeros(2, 3), torch.zeros(2, 5), torch.zeros(2, 2), 5)
    assert torch.equal(gates, torch.ones(2, 8))
    shared, routed, way = scores(4, 3), scores(4, 5, seed=1), scores(4, 2, seed=2)
    gates, alpha = level_two_way_gates(shared, routed, way, 2), way.softmax(-1)
    torch.testing.assert_close(gates[:, :3].sum(-1), 2 * 3 * alpha[:, 0])
    torch.testing.assert_close(gates[:, 3:].sum(-1), 2 * 2 * alpha[:, 1])
    assert ((gates[:, 3:] != 0).sum(-1) == 2).all()


def test_relu_gates_are_continuous_and_top_k_gates_jump():
    line = torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None]
    path = scores(1, 6) * (1 - line) + scores(1, 6, seed=3) * line
    step = 2 * (path[1:] - path[:-1]).abs().max()
    assert relu_gates(path).diff(dim=0).abs().max() <= step
    assert top_k_gates(path, 2).diff(dim=0).abs().max() > 20 * step


def test_the_balance_loss_is_one_for_a_level_load_and_heads_over_k_for_a_collapsed_one():
    level = 9.0 * torch.eye(6).double()
    assert float(balance_loss(level, top_k_gates(level, 1))) == pytest.approx(1)
    collapsed = torch.tensor([[40.0, 40.0, 0, 0, 0, 0]]).expand(7, -1)
    assert float(balance_loss(collapsed, top_k_gates(collapsed, 2))) == pytest.approx(6 / 2)


def test_the_balance_loss_takes_from_the_busy_heads():
    z = (scores(50, 4) + torch.tensor([1.0, 0, 0, 0])).requires_grad_()
    gates = top_k_gates(z, 1)
    busy = int(load(gates).argmax())
    slope = torch.autograd.grad(balance_loss(z, gates), z)[0].sum(0)
    assert slope[busy] > 0  # going down the slope lowers its score
    assert int(slope.argmax()) == busy


def test_the_z_loss_is_the_mean_square_of_the_log_of_the_sum():
    z = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    assert float(z_loss(z)) == pytest.approx((math.log(2) ** 2 + math.log(4) ** 2) / 2)


def test_load_and_entropy_count_the_heads_in_use():
    gates = torch.tensor([[0.5, 0.5, 0, 0], [0, 0.9, 0.1, 0]])
    assert load(gates).tolist() == [0.25, 0.5, 0.25, 0]
    assert float(heads_in_use(torch.eye(4))) == pytest.approx(4)
    assert float(heads_in_use(torch.tensor([[1.0, 0, 0]] * 5))) == pytest.approx(1)
    assert load(torch.zeros(3, 2)).tolist() == [0, 0]
    assert float(gate_entropy(torch.tensor([[2.0, 2.0, 0], [1.0, 0, 0]]))) == pytest.approx(
        math.log(2) / 2
    )
    assert float(gate_entropy(torch.zeros(1, 3))) == 0


def test_information_is_log_h_for_types_with_their_own_head_and_zero_for_independent_ones():
    types = torch.tensor([0, 1, 2, 0, 1, 2])
    own = torch.nn.functional.one_hot(types, 3).double()
    assert choice_information(types, own, 3) == pytest.approx(math.log(3))
    assert choice_information(types, torch.ones(6, 4), 3) == pytest.approx(0)
    shares = choice_shares(types, own, 4)
    assert shares.shape == (4, 3) and shares.sum().item() == pytest.approx(1)
    torch.testing.assert_close(shares[:3], torch.eye(3, dtype=torch.float64) / 3)


def test_shuffled_types_tell_next_to_nothing():
    generator = torch.Generator().manual_seed(0)
    types = torch.randint(5, (4000,), generator=generator)
    gates = torch.nn.functional.one_hot(types, 5).double()
    shuffled = types[torch.randperm(4000, generator=generator)]
    assert choice_information(shuffled, gates, 5) < 3 * 16 / (2 * 4000)
    assert choice_information(types, gates, 5) > 1.5


@pytest.mark.parametrize("gates", [top_k_gates, renormalized_gates, chosen_heads])
def test_more_active_heads_than_heads_is_a_clear_error(gates):
    with pytest.raises(ValueError, match="active must be at most the number of heads, 4, got 5"):
        gates(torch.zeros(2, 4), 5)
    with pytest.raises(ValueError, match="active must be at least 1, got 0"):
        gates(torch.zeros(2, 4), 0)
    with pytest.raises(TypeError, match="active must be an int"):
        gates(torch.zeros(2, 4), 1.5)


def test_more_active_heads_than_routed_heads_is_a_clear_error():
    for gates in (two_way_gates, level_two_way_gates):
        with pytest.raises(ValueError, match="active must be at most the number of heads, 2"):
            gates(torch.zeros(1, 6), torch.zeros(1, 2), torch.zeros(1, 2), 3)


def test_heads_that_do_not_exist_are_named():
    with pytest.raises(ValueError, match=r"kept must name heads 0 \.\.\. 3, got 4"):
        check_head_names("kept", [0, 4], 4)
    with pytest.raises(ValueError, match="at least 0, got -1"):
        check_head_names("kept", [-1], 4)
    with pytest.raises(ValueError, match="each head once"):
        check_head_names("kept", [1, 1], 4)


def test_other_wrong_input_names_the_argument():
    with pytest.raises(TypeError, match="scores"):
        top_k_gates(torch.zeros(2, 4, dtype=torch.long), 1)
    with pytest.raises(ValueError, match="gates must have the shape of scores"):
        balance_loss(torch.zeros(2, 4), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="gates must not be negative"):
        gate_entropy(torch.tensor([[1.0, -1.0]]))
    with pytest.raises(ValueError, match="types must be integers of shape"):
        choice_information(torch.zeros(3, dtype=torch.long), torch.zeros(2, 4), 2)
    with pytest.raises(ValueError, match=r"types must lie in 0 \.\.\. 1"):
        choice_information(torch.tensor([0, 2]), torch.ones(2, 4), 2)


def test_the_entropy_of_gates_has_a_gradient_where_gates_are_zero():
    gates = torch.tensor([[0.5, 0.3, 0.0]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(gate_entropy(gates), gates)
    shares = torch.tensor([0.5, 0.3], dtype=torch.float64) / 0.8
    value = -(shares * shares.log()).sum()
    torch.testing.assert_close(gradient[0, :2], -(shares.log() + value) / 0.8)
    assert gradient[0, 2].isfinite()


@pytest.mark.parametrize("gates_of", [two_way_gates, level_two_way_gates])
@pytest.mark.parametrize(
    ("routed", "ways", "message"),
    [
        ((1, 3, 2), (1, 3, 1), "way_scores must be two a token, got 1"),
        ((1, 3, 2), (1, 3, 3), "way_scores must be two a token, got 3"),
        ((1, 3, 2), (1, 2, 2), "way_scores must be for the tokens of shared_scores"),
        ((2, 3, 2), (1, 3, 2), "routed_scores must be for the tokens of shared_scores"),
    ],
)
def test_scores_of_two_kinds_of_heads_are_for_the_same_tokens(gates_of, routed, ways, message):
    with pytest.raises(ValueError, match=message):
        gates_of(torch.randn(1, 3, 4), torch.randn(routed), torch.randn(ways), 1)
