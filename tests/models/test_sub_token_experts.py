"""Sub-token experts: cutting and merging, what each part reads, the count of parameters."""

import pytest
import torch

from attnlib.models.language import DecoderLM
from attnlib.models.mixtures.sub_token_experts import (
    SubTokenExperts,
    watch_sub_gates,
    with_sub_token_experts,
)
from attnlib.read.sub_tokens import merge_tokens, split_tokens


@pytest.fixture
def x():
    return torch.randn(2, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def layer(parts, **options):
    torch.manual_seed(0)
    return SubTokenExperts(12, 4, parts=parts, hidden=6, **options).double()


def test_the_parts_of_a_token_stand_in_its_place():
    x = torch.arange(12.0).view(1, 2, 6)
    assert split_tokens(x, 3)[0].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]
    for parts in (1, 2, 3, 6):
        assert torch.equal(merge_tokens(split_tokens(x, parts), parts), x)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("active", [1, 2])
def test_each_part_is_read_by_its_own_experts(parts, active, x):
    mixture = layer(parts, active=active)
    cut = split_tokens(mixture.to_heads(x), parts)
    gates = mixture.gates(x)
    assert gates.shape == (2, 5 * parts, 4) and ((gates > 0).sum(-1) == active).all()
    wanted = cut.clone()
    for b in range(2):
        for n in range(5 * parts):
            for e in gates[b, n].nonzero()[:, 0].tolist():
                wanted[b, n] += gates[b, n, e] * mixture.experts[e](cut[b, n])
    wanted = mixture.to_merged(merge_tokens(wanted, parts))
    assert torch.allclose(mixture(x), wanted, atol=1e-12)


def test_parts_of_one_token_may_choose_different_experts(x):
    chosen = layer(3).gates(x).argmax(-1).view(2, 5, 3)
    assert any(len(set(row.tolist())) > 1 for row in chosen.flatten(0, 1))


def test_with_one_part_and_plain_maps_it_is_a_mixture_of_perceptrons(x):
    mixture = layer(1)
    for linear in (mixture.to_heads, mixture.to_merged):
        linear.weight.data = torch.eye(12, dtype=torch.float64)
    gates = mixture.gates(x)
    experts = torch.stack([expert(x) for expert in mixture.experts], dim=-1)
    assert torch.allclose(mixture(x), x + (experts * gates[:, :, None]).sum(-1), atol=1e-12)


@pytest.mark.parametrize("parts", [1, 3])
def test_the_count_of_parameters(parts):
    count = sum(parameter.numel() for parameter in layer(parts).parameters())
    part = 12 // parts
    assert count == 2 * 12**2 + 4 * (2 * 6 * part + 6 + part + part)


def test_a_language_model_with_them_trains_and_is_watched():
    model = with_sub_token_experts(DecoderLM(9, width=12, heads=2), 4, parts=3)
    tokens = torch.randint(9, (2, 7), generator=torch.Generator().manual_seed(0))
    before = model(tokens)
    gates = watch_sub_gates(model, tokens)
    assert len(gates) == 2 and gates[0].shape == (2, 21, 4)
    assert torch.equal(model(tokens), before)
    model(tokens).square().mean().backward()
    for block in model.blocks:
        assert block.perceptron.to_scores.weight.grad.abs().sum() > 0
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 9
    assert torch.allclose(model(changed)[:, :5], before[:, :5], atol=1e-5)


def test_bad_input_is_named(x):
    with pytest.raises(ValueError, match="parts"):
        SubTokenExperts(12, 4, parts=5)
    with pytest.raises(ValueError, match="active"):
        SubTokenExperts(12, 4, parts=3, active=5)
    with pytest.raises(ValueError, match="experts"):
        SubTokenExperts(12, 0, parts=3)
    with pytest.raises(ValueError, match="hidden"):
        SubTokenExperts(12, 4, parts=3, hidden=0)
    with pytest.raises(ValueError, match="parts must divide the width"):
        split_tokens(x, 5)
    with pytest.raises(ValueError, match="number of tokens"):
        merge_tokens(x, 2)
    with pytest.raises(ValueError, match="parts"):
        split_tokens(x, 0)
    with pytest.raises(TypeError, match="DecoderLM"):
        with_sub_token_experts(torch.nn.Linear(2, 2), 4, parts=2)
    with pytest.raises(ValueError, match="SubTokenExperts"):
        watch_sub_gates(DecoderLM(9, width=12, heads=2), torch.zeros(1, 2, dtype=torch.long))
