"""Mixtures of all heads but one: the identity, the draw of one expert, the two blocks."""

import math

import pytest
import torch

from attnlib.models.language import DecoderLM
from attnlib.models.mixtures.leave_one_out import (
    MixtureOfAllButOne,
    all_but_one_of,
    expert_use,
    mixtures_of,
    one_drawn,
    running_mean,
    sampled_experts,
    train_in_blocks,
    watch_gates,
)
from attnlib.models.multi_head import MultiHeadAttention
from attnlib.models.replaced import with_attention
from attnlib.read.heads import merge_heads
from attnlib.read.leave_one_out import all_but_one_gates, leave_one_out_experts
from attnlib.tasks import Markov


@pytest.fixture
def x():
    return torch.randn(3, 7, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def attention(**options):
    torch.manual_seed(1)
    return MultiHeadAttention(12, 4, **options).double()


def learnt(layer):
    """The same mixture with a gate that is no longer uniform."""
    torch.manual_seed(2)
    torch.nn.init.normal_(layer.to_gates[-1].weight)
    return layer


def language_model():
    model = DecoderLM(8, width=16, heads=4, layers=2, position="learned")
    return with_attention(model, lambda: MixtureOfAllButOne(16, 4, is_causal=True))


@pytest.mark.parametrize("length", [1, 15, 63])
@pytest.mark.parametrize("position", ["none", "rope", "alibi", "relative"])
def test_uniform_gates_are_multi_head_attention(length, position):
    width = 16
    torch.manual_seed(length)
    whole = MultiHeadAttention(width, 4, position=position, is_causal=True).double()
    x = torch.randn(2, length, width, dtype=torch.float64)
    assert torch.allclose(all_but_one_of(whole)(x), whole(x), atol=1e-12, rtol=0)


def test_a_mixture_is_the_weighted_sum_of_the_experts(x):
    whole = attention()
    mixture = learnt(all_but_one_of(whole))
    blocks = whole.to_output.weight.unflatten(1, (4, 3))
    parts = whole.operator(
        *(
            project(x).unflatten(-1, (4, 3)).transpose(1, 2)
            for project in (whole.to_query, whole.to_key, whole.to_value)
        )
    )
    outputs = torch.einsum("bhne,whe->bhnw", parts, blocks)
    assert torch.allclose(outputs.sum(1), whole(x), atol=1e-12)
    gates = mixture.gates(x)
    wanted = (gates.mT[..., None] * leave_one_out_experts(outputs)).sum(1)
    assert torch.allclose(mixture(x), wanted, atol=1e-12)
    assert not torch.allclose(mixture(x), whole(x), atol=1e-3)
    assert merge_heads(parts).shape == x.shape


def test_an_expert_by_hand():
    outputs = torch.tensor([1.0, 2.0, 6.0]).view(1, 3, 1, 1)
    assert leave_one_out_experts(outputs).flatten().tolist() == [12.0, 10.5, 4.5]
    gates = all_but_one_gates(torch.tensor([[0.5, 0.25, 0.25]]))
    assert torch.allclose(gates, torch.tensor([[0.75, 1.125, 1.125]]))
    assert torch.allclose(all_but_one_gates(torch.full((2, 5), 0.2)), torch.ones(2, 5))


def test_the_gates_of_a_causal_layer_do_not_see_the_future(x):
    layer = learnt(all_but_one_of(attention(is_causal=True)))
    changed = x.clone()
    changed[:, 4:] += 1
    assert torch.equal(layer.gates(x)[:, :4], layer.gates(changed)[:, :4])
    assert not torch.allclose(layer.gates(x)[:, 4], layer.gates(changed)[:, 4])
    assert torch.allclose(layer(x)[:, :4], layer(changed)[:, :4], atol=1e-12)
    assert torch.allclose(running_mean(x)[:, 2], x[:, :3].mean(1))


def test_without_a_causal_mask_all_tokens_trust_alike(x):
    gates = learnt(all_but_one_of(attention())).gates(x)
    assert torch.allclose(gates, gates[:, :1].expand_as(gates))
    assert not torch.allclose(gates[0], gates[1])


def test_one_expert_is_drawn_with_the_chance_of_its_gate():
    torch.manual_seed(0)
    gates = torch.tensor([0.1, 0.0, 0.6, 0.3]).expand(20000, 3, 4)
    drawn = one_drawn(gates)
    assert torch.equal(drawn.sum(-1), torch.ones(20000, 3))
    assert torch.equal(drawn[:, 0], drawn[:, 2])  # tokens that trust alike, in one example
    assert torch.allclose(drawn[:, 0].mean(0), gates[0, 0], atol=0.015)
    assert drawn[..., 1].sum() == 0


def test_a_drawn_expert_leaves_one_head_out(x):
    layer = all_but_one_of(attention())
    torch.manual_seed(0)
    with sampled_experts(layer):
        got = layer(x)
    assert not layer.sampled
    shares = []
    for head in range(4):
        gates = torch.zeros(4, dtype=torch.float64)
        gates[head] = 1
        layer.to_gates[-1].bias.data = 1e3 * gates
        shares.append(layer(x))
    matches = torch.stack([(got - one).abs().amax((1, 2)) < 1e-12 for one in shares])
    assert (matches.sum(0) == 1).all()


def test_the_draw_is_off_again_after_an_error():
    model = language_model()
    with pytest.raises(RuntimeError, match="halt"), sampled_experts(model):
        assert all(layer.sampled for layer in mixtures_of(model))
        raise RuntimeError("halt")
    assert not any(layer.sampled for layer in mixtures_of(model))


def test_each_step_moves_its_own_block_only():
    model, seen, drawn = language_model(), [], []
    names = dict(model.named_parameters())

    def objective(model, batch):
        drawn.append(model.blocks[0].attention.sampled)
        seen.append({name: value.detach().clone() for name, value in names.items()})
        logits = model(batch.tokens)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten()), 0

    task = Markov(length=8, symbols=8)
    history = train_in_blocks(
        model, task.batches(4, 0), steps=7, gate_every=3, warmup=1, objective=objective
    )
    assert len(history.gate) == 2 and len(history.expert) == 5
    assert drawn == [True, True, False, True, True, False, True]
    for step in range(6):
        for name in names:
            moved = not torch.equal(seen[step][name], seen[step + 1][name])
            if moved:
                assert ("to_gates" in name) == (step % 3 == 2), (step, name)
    assert any(not torch.equal(seen[2][name], seen[3][name]) for name in names)


def test_training_in_blocks_lowers_the_loss_and_repeats():
    task, losses = Markov(length=16, symbols=8), []
    for _ in range(2):
        history = train_in_blocks(language_model(), task.batches(16, 0), steps=60, warmup=5)
        losses.append(history.expert)
    assert torch.equal(*losses)
    assert losses[0][-5:].mean() < losses[0][:5].mean() - 0.2


def test_the_use_of_experts_by_hand():
    even, one = torch.full((5, 4), 0.25), torch.eye(4)
    level = expert_use(even)
    assert math.isclose(level.conditional, math.log(4), rel_tol=1e-6)
    assert math.isclose(level.information, 0.0, abs_tol=1e-6) and level.largest == 0.25
    told = expert_use(one)
    assert told.conditional == 0 and math.isclose(told.information, math.log(4), rel_tol=1e-6)
    collapsed = expert_use(one[:1].expand(6, 4))
    assert collapsed.marginal == 0 and collapsed.largest == 1


def test_watching_changes_nothing():
    model = language_model()
    tokens = Markov(length=8, symbols=8).batch(3, 0).tokens
    before = model(tokens)
    gates = watch_gates(model, tokens)
    assert gates.shape == (2, 3, 8, 4) and torch.allclose(gates, torch.full_like(gates, 0.25))
    assert torch.equal(model(tokens), before)
    assert not any(layer._forward_pre_hooks for layer in mixtures_of(model))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="at least 2"):
        MixtureOfAllButOne(8, 1)
    with pytest.raises(ValueError, match="hidden"):
        MixtureOfAllButOne(8, 2, hidden=0)
    with pytest.raises(TypeError, match="attention must be a MultiHeadAttention"):
        all_but_one_of(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="gates"):
        all_but_one_gates(torch.ones(3, 1))
    with pytest.raises(TypeError, match="gates"):
        all_but_one_gates(torch.ones(3, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="outputs"):
        leave_one_out_experts(torch.ones(1, 1, 2, 2))
    with pytest.raises(ValueError, match="rows"):
        expert_use(torch.ones(0, 4))
    plain = DecoderLM(8, width=8, heads=2, layers=1)
    with pytest.raises(ValueError, match="MixtureOfAllButOne"):
        mixtures_of(plain)
    task = Markov(length=4, symbols=8)
    with pytest.raises(ValueError, match="MixtureOfAllButOne"):
        train_in_blocks(plain, task.batches(2, 0), steps=2)
    with pytest.raises(ValueError, match="gate_every"):
        train_in_blocks(language_model(), task.batches(2, 0), steps=2, gate_every=1)
    with pytest.raises(ValueError, match="batches must last"):
        train_in_blocks(language_model(), [task.batch(2, 0)], steps=2)
