"""Upcycling: identical seeds give the seed, different ones a mixture; what is shared is shared."""

import pytest
import torch

from attnlib.models.language import DecoderLM
from attnlib.models.mixtures.branch_attend_mix import (
    AttentionExperts,
    PerceptronExperts,
    SharedKeyExperts,
    mean_of,
    upcycle_all,
    upcycle_perceptrons,
    upcycle_shared_keys,
    with_parallel_blocks,
)
from attnlib.models.multi_head import MultiHeadAttention
from attnlib.read.attention_experts import soft_attention_experts

WAYS = [upcycle_perceptrons, upcycle_shared_keys, upcycle_all]


def seed_model(seed=0, **options):
    sizes = {"width": 16, "heads": 2, "layers": 2} | options
    return DecoderLM(10, seed=seed, **sizes).double()


@pytest.fixture
def tokens():
    return torch.randint(10, (3, 9), generator=torch.Generator().manual_seed(0))


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("position", ["rope", "learned", "none"])
def test_identical_seeds_give_that_seed(way, position, tokens):
    model = seed_model(position=position)
    mixture = way([model] * 3)
    for module in mixture.modules():
        if hasattr(module, "router"):
            torch.nn.init.normal_(module.router.weight)  # whatever the routers say
    assert torch.allclose(mixture(tokens), model(tokens), atol=1e-12, rtol=0)


@pytest.mark.parametrize("way", WAYS)
def test_so_do_identical_seeds_with_parallel_blocks(way, tokens):
    model = with_parallel_blocks(seed_model())
    assert torch.allclose(way([model] * 2)(tokens), model(tokens), atol=1e-12, rtol=0)
    assert not torch.allclose(model(tokens), seed_model()(tokens), atol=1e-3)


def test_a_parallel_block_reads_the_same_in_both_parts():
    block = with_parallel_blocks(seed_model()).blocks[0]
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    normed = block.attention_norm(x)
    assert torch.allclose(block(x), x + block.attention(normed) + block.perceptron(normed))
    _, weights = block(x, return_weights=True)
    assert weights.shape == (2, 2, 5, 5)


@pytest.mark.parametrize("way", WAYS)
def test_different_seeds_are_left_as_they_were(way, tokens):
    models = [seed_model(0), seed_model(1)]
    before = [model(tokens) for model in models]
    mixture = way(models)
    for parameter in mixture.parameters():
        parameter.data += 1
    for model, wanted in zip(models, before, strict=True):
        assert torch.equal(model(tokens), wanted)


def test_what_is_an_expert_and_what_is_a_mean():
    models = [seed_model(0), seed_model(1)]
    first, second = (model.blocks[0].attention for model in models)
    mean = (first.to_key.weight + second.to_key.weight) / 2
    plain = upcycle_perceptrons(models).blocks[0]
    assert torch.equal(plain.attention.to_key.weight, mean)
    shared = upcycle_shared_keys(models).blocks[0].attention
    assert torch.equal(shared.shared.to_key.weight, mean)
    assert torch.equal(shared.experts[1].to_query.weight, second.to_query.weight)
    every = upcycle_all(models).blocks[0].attention
    assert torch.equal(every.experts[1].to_key.weight, second.to_key.weight)
    assert torch.equal(
        plain.perceptron.experts[1][0].weight, models[1].blocks[0].perceptron[0].weight
    )


def test_shared_keys_and_values_have_the_parameters_of_one_layer():
    models, matrix = [seed_model(i) for i in range(3)], 16 * 16
    perceptrons, shared, every = (parameters(way(models)) for way in WAYS)
    layers, router = 2, 3 * 16
    assert shared - perceptrons == layers * (2 * 2 * matrix + router)  # two more queries, outputs
    assert every - shared == layers * 2 * 2 * matrix  # two more keys, values


def test_a_mixture_is_the_gated_sum_of_its_layers():
    torch.manual_seed(0)
    layers = [MultiHeadAttention(12, 3, position="none", is_causal=True).double() for _ in range(3)]
    mixture = AttentionExperts(layers).double()
    torch.nn.init.normal_(mixture.router.weight)
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    gates = mixture.gates(x)
    wanted = sum(gates[..., e : e + 1] * layer(x) for e, layer in enumerate(layers))
    assert torch.allclose(mixture(x), wanted, atol=1e-12)
    assert not torch.allclose(SharedKeyExperts(layers).double()(x), wanted, atol=1e-3)
    changed = x.clone()
    changed[:, 4:] = 0
    assert torch.allclose(mixture(changed)[:, :4], mixture(x)[:, :4], atol=1e-12)


def test_each_token_takes_the_perceptrons_that_it_likes_best():
    torch.manual_seed(0)
    experts = PerceptronExperts([torch.nn.Linear(4, 4) for _ in range(3)], 4, active=2)
    torch.nn.init.normal_(experts.router.weight)
    x = torch.randn(2, 6, 4)
    gates = experts.gates(x)
    assert ((gates > 0).sum(-1) == 2).all() and torch.allclose(gates.sum(-1), torch.ones(2, 6))
    assert torch.equal(gates.argmax(-1), experts.router(x).argmax(-1))
    wanted = sum(gates[..., e : e + 1] * expert(x) for e, expert in enumerate(experts.experts))
    assert torch.allclose(experts(x), wanted, atol=1e-6)


def test_the_mean_of_models():
    models = [seed_model(0), seed_model(1)]
    mean = mean_of(models)
    theirs = [model.to_logits.weight for model in models]
    assert torch.allclose(mean.to_logits.weight, (theirs[0] + theirs[1]) / 2)


def test_bad_input_is_named(tokens):
    with pytest.raises(ValueError, match="seeds must hold"):
        upcycle_all([])
    with pytest.raises(ValueError, match="same parameters"):
        upcycle_all([seed_model(), seed_model(width=32)])
    with pytest.raises(ValueError, match="softmax"):
        upcycle_all([seed_model(position="relative")] * 2)
    with pytest.raises(ValueError, match="key head"):
        upcycle_all([seed_model(key_heads=1)] * 2)
    with pytest.raises(TypeError, match="MultiHeadAttention"):
        AttentionExperts([torch.nn.Linear(3, 3)])
    with pytest.raises(ValueError, match="active"):
        upcycle_all([seed_model()] * 2, active=3)
    with pytest.raises(ValueError, match="return_weights"):
        upcycle_all([seed_model()] * 2)(tokens, return_weights=True)
    query = torch.ones(1, 3, 2, 4, 5)
    good = {"outputs": torch.ones(3, 6, 10), "gates": torch.ones(1, 4, 3)}
    with pytest.raises(ValueError, match="key must"):
        soft_attention_experts(query, query[:, :2], query[:, :2], **good)
    with pytest.raises(ValueError, match="gates"):
        soft_attention_experts(query, query, query, **good | {"gates": torch.ones(1, 4, 2)})
    with pytest.raises(ValueError, match="outputs"):
        soft_attention_experts(query, query, query, **good | {"outputs": torch.ones(3, 6, 9)})
