"""Mixture-of-groups attention is dense attention with the mask "same group", times the gate."""

import os

import pytest
import torch

from attnlib import attend
from attnlib.models import DecoderLM, MultiHeadAttention
from attnlib.models.grouped_tokens import BalancedGroups, MixtureOfGroups
from attnlib.models.replaced import with_attention
from attnlib.read.mixture_of_groups import (
    dense_mixture_of_groups,
    gates_of,
    group_balance_loss,
    groups_of,
    mixture_of_groups_attention,
)
from attnlib.read.packed_softmax import packed_softmax_attention
from attnlib.training import train

LENGTHS = [1, 15, 63, 100, 257]


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("lead", [(1,), (2,)], ids=["one router", "a router a head"])
def test_the_packed_read_equals_the_dense_one(length, lead):
    inputs = [draw(2, 2, length, 4, seed=s).requires_grad_() for s in range(3)]
    routes = draw(2, *lead, length, 5, seed=3).requires_grad_()
    for is_causal in (False, True):
        ours, dense = (
            form(*inputs, routes=routes, is_causal=is_causal)
            for form in (mixture_of_groups_attention, dense_mixture_of_groups)
        )
        assert torch.allclose(ours, dense, rtol=0, atol=1e-12)
        probe = torch.linspace(-1, 1, dense.numel(), dtype=dense.dtype).view_as(dense)
        slopes = [
            torch.autograd.grad((read * probe).sum(), (*inputs, routes)) for read in (ours, dense)
        ]
        for mine, wanted in zip(*slopes, strict=True):
            assert torch.allclose(mine, wanted, rtol=0, atol=1e-12)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs the interpreter")
@pytest.mark.parametrize("length", [15, 40])
def test_the_kernel_for_packed_sequences_gives_the_same_read(length):
    inputs = [draw(1, 2, length, 8, seed=s).requires_grad_() for s in range(3)]
    routes = draw(1, 1, length, 3, seed=3)
    ours, torch_form = (
        mixture_of_groups_attention(*inputs, routes=routes, is_causal=True, backend=backend)
        for backend in ("triton", "torch")
    )
    assert torch.allclose(ours, torch_form, atol=1e-12)
    slopes = [torch.autograd.grad(read.square().sum(), inputs) for read in (ours, torch_form)]
    for mine, wanted in zip(*slopes, strict=True):
        assert torch.allclose(mine, wanted, atol=1e-12)


def test_one_group_is_full_attention_and_a_sure_router_leaves_the_read_as_it_is():
    query, key, value = (draw(2, 12, 4, seed=s) for s in range(3))
    full = attend(query, key, value)
    assert torch.allclose(
        mixture_of_groups_attention(query, key, value, routes=torch.zeros(12, 1).double()), full
    )
    sure = torch.zeros(12, 3).double()
    sure[:, 1] = 50.0
    assert torch.allclose(mixture_of_groups_attention(query, key, value, routes=sure), full)


def test_the_balance_loss_is_one_for_equal_groups_and_nears_their_number_for_one_group():
    equal = 50 * torch.eye(4).double().repeat(3, 1)
    assert torch.allclose(group_balance_loss(equal), torch.tensor(1.0).double())
    one = torch.zeros(12, 4).double()
    one[:, 2] = 50
    assert torch.allclose(group_balance_loss(one), torch.tensor(4.0).double())


def test_lowering_the_balance_loss_evens_out_the_groups():
    routes = draw(200, 4) + torch.tensor([2.0, 0, 0, 0])
    before = groups_of(routes).bincount(minlength=4)
    for _ in range(100):
        leaf = routes.clone().requires_grad_()
        (slope,) = torch.autograd.grad(group_balance_loss(leaf), leaf)
        routes = routes - 20 * slope
    after = groups_of(routes).bincount(minlength=4)
    assert before.max() > 120 and after.max() < 80


def test_a_gate_is_the_probability_of_the_chosen_group():
    routes = draw(5, 3)
    assert torch.equal(
        gates_of(routes), routes.softmax(-1).gather(-1, groups_of(routes)[:, None])[:, 0]
    )


def test_the_layer_learns_its_router_through_the_gate_and_the_balance():
    model = with_attention(
        DecoderLM(8, width=16, heads=2, layers=2, position="none"),
        lambda: MixtureOfGroups(MultiHeadAttention(16, 2, is_causal=True), groups=3),
    )
    before = [block.attention.to_route.weight.clone() for block in model.blocks]
    tokens = torch.randint(8, (4, 12), generator=torch.Generator().manual_seed(0))
    objective = BalancedGroups(balance=0.1)
    plain = BalancedGroups(balance=0.0)
    loss, _ = objective(model, (tokens, tokens))
    assert loss > plain(model, (tokens, tokens))[0]
    train(model, [(tokens, tokens)] * 3, steps=3, objective=objective, progress=False)
    for block, old in zip(model.blocks, before, strict=True):
        assert not torch.equal(block.attention.to_route.weight, old)


def test_a_later_token_changes_no_earlier_read():
    layer = MixtureOfGroups(MultiHeadAttention(8, 2, is_causal=True), groups=3).double()
    x = draw(1, 20, 8)
    changed = torch.cat((x[:, :12], draw(1, 8, 8, seed=1)), dim=1)
    assert torch.allclose(layer(x)[:, :12], layer(changed)[:, :12], atol=1e-12)


@pytest.mark.parametrize(
    "routes",
    [
        torch.zeros(11, 3).double(),
        torch.zeros(1, 3).double(),
        torch.zeros(12, 0).double(),
        torch.zeros(3, 12, 3).double(),
        torch.zeros(12, 3),
        torch.zeros(12, 3).long(),
        None,
    ],
)
def test_routes_that_do_not_fit_are_refused(routes):
    x = draw(2, 12, 4)
    with pytest.raises((ValueError, TypeError), match="routes"):
        mixture_of_groups_attention(x, x, x, routes=routes)


@pytest.mark.parametrize("starts", [[0, 5], [1, 12], [0, 7, 3, 12], []])
def test_starts_must_ascend_from_zero_to_the_number_of_rows(starts):
    x = draw(12, 4)
    with pytest.raises(ValueError, match="starts"):
        packed_softmax_attention(x, x, x, starts=torch.tensor(starts, dtype=torch.long))


def test_a_layer_with_positions_or_a_mask_is_refused():
    with pytest.raises(ValueError, match="position"):
        MixtureOfGroups(MultiHeadAttention(8, 2, position="rope"), groups=2)
    with pytest.raises(ValueError, match="attn_mask"):
        MixtureOfGroups(MultiHeadAttention(8, 2), groups=2)(
            torch.zeros(1, 4, 8), attn_mask=torch.ones(4, 4, dtype=torch.bool)
        )
