"""Multi-head attention as a sum over heads, and layers in which a token picks its heads."""

import copy
from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from attnlib import atlas, skipped_heads_attention, softmax_attention
from attnlib.models import DecoderLM, MultiHeadAttention, with_attention
from attnlib.models.mixtures.attention_experts import MixtureOfAttentionHeads, by_expert
from attnlib.models.mixtures.mixture_of_heads import ConvertedHeads, MixtureOfHeads
from attnlib.models.mixtures.relu_mixture import (
    ReluMixtureOfHeads,
    activation_enhancement,
    next_coefficient,
    sparsity,
    sparsity_penalty,
)
from attnlib.models.mixtures.routed_training import (
    SteeredSparsity,
    active_heads,
    balanced,
    token_operations,
)
from attnlib.models.mixtures.summed_heads import (
    GatedHeads,
    head_importance,
    head_outputs,
    mix_heads,
    routings,
    with_gated_heads,
)
from attnlib.read.head_routing import (
    level_two_way_gates,
    load,
    relu_gates,
    renormalized_gates,
)
from attnlib.tasks import Copy
from attnlib.tasks.grammar import WORDS, encode
from attnlib.tasks.word_classes import CLASSES, word_classes
from attnlib.training import train

WIDTH, HEADS, LENGTH = 24, 4, 15
PLACE = {"position": "rope", "is_causal": True}
LAYERS = {
    "gated": lambda **p: GatedHeads(MultiHeadAttention(WIDTH, HEADS, **p)),
    "moa": lambda **p: MixtureOfAttentionHeads(WIDTH, 5, 2, head_width=6, **p),
    "moh": lambda **p: MixtureOfHeads(WIDTH, HEADS, shared=1, active=2, **p),
    "converted": lambda **p: ConvertedHeads(
        MultiHeadAttention(WIDTH, HEADS, **p), shared=1, active=2
    ),
    "relu": lambda **p: ReluMixtureOfHeads(WIDTH, HEADS, shared=1, **p),
}


def tokens(length=LENGTH, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, WIDTH, generator=generator, dtype=torch.float64)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def plain(**place):
    return MultiHeadAttention(WIDTH, HEADS, **place).double()


@pytest.mark.parametrize("place", [{}, {"position": "rope"}, PLACE])
def test_heads_side_by_side_and_projected_are_the_sum_of_their_outputs(place):
    attention, x, context = plain(**place), tokens(), tokens(9, seed=1)
    torch.testing.assert_close(head_outputs(attention, x).sum(1), attention(x), atol=1e-12, rtol=0)
    mask = torch.rand(2, 1, LENGTH, 9, generator=torch.Generator().manual_seed(0)) < 0.6
    wanted = attention(x, context, attn_mask=mask)
    got = head_outputs(attention, x, context, attn_mask=mask).sum(1)
    torch.testing.assert_close(got, wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("operator", ["dense", "skipped"])
def test_gated_heads_are_the_mixture_of_head_outputs(operator):
    attention, x = plain(**PLACE), tokens()
    options = {"operator": skipped_heads_attention} if operator == "skipped" else {}
    layer = GatedHeads(attention, **options)
    torch.testing.assert_close(layer(x), attention(x), atol=1e-12, rtol=0)
    gates = torch.rand(2, LENGTH, HEADS, dtype=torch.float64).sub(0.4).relu()
    wanted = mix_heads(head_outputs(attention, x), gates)
    torch.testing.assert_close(layer(x, gates), wanted, atol=1e-12, rtol=0)


def test_pruned_heads_add_nothing_and_a_wrong_name_changes_nothing():
    attention, x = plain(**PLACE), tokens()
    layer = GatedHeads(attention).keep_heads([0, 2])
    wanted = head_outputs(attention, x)[:, [0, 2]].sum(1)
    torch.testing.assert_close(layer(x), wanted, atol=1e-12, rtol=0)
    with pytest.raises(ValueError, match=r"kept must name heads 0 \.\.\. 3, got 7"):
        layer.keep_heads([1, 7])
    assert layer.gate.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("name", LAYERS)
def test_every_mixture_is_causal_trains_is_copied_and_tells_what_it_decided(name):
    model = DecoderLM(9, width=WIDTH, heads=HEADS, position="none")
    with_attention(model, partial(LAYERS[name], **PLACE))
    task = Copy(count=3, symbols=6)
    history = train(model, task.batches(16, 0), steps=30, progress=False)
    assert history.loss[-5:].mean() < history.loss[:5].mean()

    words = task.batch(2, 1).tokens
    changed = words.clone()
    changed[:, 4:] = 0
    torch.testing.assert_close(model(words)[:, :4], model(changed)[:, :4])
    logits, weights = model(words, return_weights=True)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    torch.testing.assert_close(copy.deepcopy(model)(words), logits)

    decided = routings(model)
    assert len(decided) == 2
    for layer, routing in zip(model.blocks, decided, strict=True):
        heads = routing.gates.shape[-1]
        assert routing.gates.shape == (*words.shape, heads)
        assert torch.equal(routing.gates[..., -routing.chosen.shape[-1] :], routing.chosen)
        assert layer.attention.gates(torch.zeros(1, 2, WIDTH)).shape == (1, 2, heads)


@pytest.mark.parametrize("name", ["gated", "moh", "converted", "relu"])
def test_the_form_that_skips_heads_gives_the_same_reads_and_gradients(name):
    dense = LAYERS[name](**PLACE).double()
    skipping = copy.deepcopy(dense)
    skipping.operator = skipped_heads_attention
    x, upstream = tokens(40), tokens(40, seed=2)
    slopes = []
    for layer in (dense, skipping):
        (layer(x) * upstream).sum().backward()
        slopes.append({n: p.grad for n, p in layer.named_parameters() if p.grad is not None})
    torch.testing.assert_close(dense(x), skipping(x), atol=1e-12, rtol=0)
    assert slopes[0].keys() == slopes[1].keys()
    for part, slope in slopes[0].items():
        torch.testing.assert_close(slopes[1][part], slope, atol=1e-11, rtol=1e-11)


def test_a_mixture_without_an_opinion_and_with_all_heads_on_is_multi_head_attention():
    layer = MixtureOfHeads(WIDTH, HEADS, shared=1, active=3, **PLACE).double()
    for part in (layer.to_shared, layer.to_routed, layer.to_way):
        torch.nn.init.zeros_(part.weight)
    x = tokens()
    torch.testing.assert_close(layer(x), layer.attention(x), atol=1e-12, rtol=0)


def test_a_converted_layer_with_all_heads_on_is_the_original_exactly():
    attention, x = plain(**PLACE), tokens()
    layer = MixtureOfHeads.from_multi_head(attention, shared=1, active=3)
    assert torch.equal(layer(x), attention(x))
    before = attention.to_query.weight.clone()
    layer.attention.to_query.weight.data.zero_()
    assert torch.equal(attention.to_query.weight, before)


def test_a_converted_layer_keeps_the_heads_with_the_longest_queries():
    attention, x = plain(**PLACE), tokens()
    layer = MixtureOfHeads.from_multi_head(attention, shared=1, active=1)
    query = attention.to_query(x).unflatten(-1, (HEADS, -1))
    longest = query[..., 1:, :].norm(dim=-1).argmax(-1)
    gates = layer.gates(x)
    assert set(gates.unique().tolist()) <= {0.0, 1.0} and (gates[..., 0] == 1).all()
    assert torch.equal(gates[..., 1:].argmax(-1), longest)
    # Straight through the rounding: the choice has a gradient to the queries.
    outputs = head_outputs(attention, x).detach()
    layer.attention.to_query.weight.grad = None
    mix_heads(outputs, layer.gates(x)).square().sum().backward()
    assert layer.attention.to_query.weight.grad.abs().max() > 1e-6


def test_attention_experts_are_the_gated_sum_of_single_heads_with_shared_keys():
    layer, x = LAYERS["moa"](is_causal=True).double(), tokens()
    key, value, wanted = layer.to_key(x), layer.to_value(x), 0
    for expert, gate in enumerate(layer.gates(x).unbind(-1)):
        query = x @ layer.query_matrices[expert]
        read = softmax_attention(query[:, None], key[:, None], value[:, None], is_causal=True)
        wanted = wanted + gate[..., None] * (read[:, 0] @ layer.output_matrices[expert])
    torch.testing.assert_close(layer(x), wanted, atol=1e-12, rtol=0)


def test_each_row_is_multiplied_with_the_matrix_of_its_expert():
    rows, matrices = torch.randn(3, 4, 5), torch.randn(6, 5, 2)
    expert = torch.tensor([[5, 0, 0, 2], [2, 2, 5, 5], [0, 5, 2, 0]])
    wanted = torch.einsum("abd,abde->abe", rows, matrices[expert])
    torch.testing.assert_close(by_expert(rows, matrices, expert), wanted)


def test_more_attention_experts_cost_the_router_alone():
    def counted(experts):
        layer = MixtureOfAttentionHeads(WIDTH, experts, 2, head_width=6)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            layer(tokens().float())
        rest = counter.get_total_flops() - 2 * 2 * LENGTH * WIDTH * experts
        per_token = token_operations(layer, LENGTH, 2)
        assert counter.get_total_flops() == 2 * LENGTH * per_token
        return rest

    assert counted(4) == counted(8) == counted(32)


def test_operations_of_gated_heads_are_those_counted_when_all_are_on():
    layer = LAYERS["moh"]()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(tokens().float())
    assert counter.get_total_flops() == 2 * LENGTH * token_operations(layer, LENGTH, HEADS)
    # Of 6 (heads) + 6 (keys, values) parts, one head less takes its query, output, score and read.
    saved = token_operations(layer, LENGTH, HEADS) - token_operations(layer, LENGTH, HEADS - 1)
    assert saved == 2 * (2 * WIDTH * 6 + 2 * LENGTH * 6)


def test_importance_is_the_mean_size_of_the_slope_of_each_example_in_the_gate():
    model = with_gated_heads(DecoderLM(9, width=WIDTH, heads=HEADS, layers=2).double())
    words = torch.randint(9, (8, 8), generator=torch.Generator().manual_seed(0))

    def losses():
        return cross_entropy(model(words[:, :-1]).mT, words[:, 1:], reduction="none").mean(-1)

    importance = head_importance(model, losses)[1]
    gate = model.blocks[1].attention.gate
    assert not gate.requires_grad and torch.equal(gate, torch.ones(HEADS).double())
    slopes = torch.zeros(HEADS, 8).double()
    with torch.no_grad():
        for head in range(HEADS):
            for sign in (1, -1):
                gate[head] = 1 + sign * 1e-6
                slopes[head] += sign * losses() / 2e-6
            gate[head] = 1
    assert (slopes.sign().sum(-1).abs() < 8).any()  # some example gains what another loses
    torch.testing.assert_close(importance, slopes.abs().mean(-1), rtol=1e-6, atol=1e-8)


def test_gated_heads_of_a_model_leave_it_as_it_was():
    model = DecoderLM(9, width=WIDTH, heads=HEADS)
    gated = with_gated_heads(model)
    words = torch.randint(9, (2, 8))
    torch.testing.assert_close(gated(words), model(words))
    assert type(model.blocks[0].attention) is MultiHeadAttention


def test_the_balance_objective_levels_a_load_that_would_stay_uneven():
    def largest(balance):
        torch.manual_seed(0)
        model = DecoderLM(9, width=WIDTH, heads=HEADS, layers=1, position="none")
        with_attention(model, partial(LAYERS["moa"], **PLACE))
        with torch.no_grad():
            model.blocks[0].attention.to_scores.weight.mul_(10)
        task = Copy(count=3, symbols=6)
        objective = balanced(balance=balance)
        train(model, task.batches(16, 0), steps=60, objective=objective, progress=False)
        model(task.batch(64, 1).tokens)
        return float(load(routings(model)[0].chosen).max())

    assert largest(1.0) < 0.25 < 0.28 < largest(0.0)


def test_the_steered_penalty_reaches_its_share_of_closed_gates():
    def active(target):
        torch.manual_seed(0)
        model = DecoderLM(9, width=WIDTH, heads=HEADS, layers=1, position="none")
        with_attention(model, partial(LAYERS["relu"], **PLACE))
        task = Copy(count=3, symbols=6)
        objective = SteeredSparsity(target, coefficient=0.5, rate=0.5)
        train(model, task.batches(16, 0), steps=120, objective=objective, progress=False)
        model(task.batch(64, 1).tokens)
        return active_heads(model)

    assert active(0.9) < 1.9 < active(0.3)  # one shared head and 3 routed ones


def test_the_share_of_zeros_is_a_count_with_the_gradient_of_a_soft_one():
    scores = torch.tensor([-1.0, -0.05, 0.1, 1.0], requires_grad=True)
    share = sparsity(scores)
    assert share.item() == pytest.approx(0.5)
    share.backward()
    assert (scores.grad < 0).all() and scores.grad[1] < 100 * scores.grad[0]
    assert float(activation_enhancement(torch.tensor(0.8), 0.5)) == pytest.approx(
        torch.tensor(0.6).expm1().item()
    )
    assert float(activation_enhancement(torch.tensor(0.4), 0.5)) == 0


def test_the_coefficient_grows_while_too_few_gates_are_closed():
    assert next_coefficient(0.1, 0.2, 0.7) > 0.1 > next_coefficient(0.1, 0.9, 0.7)
    assert next_coefficient(9.99, 0.0, 1.0) == 10
    scores = torch.tensor([[-1.0, 2.0]])
    assert float(sparsity_penalty(scores, 0.5)) == 0.5


def test_every_mixture_is_in_the_atlas_by_its_gates():
    for key, made in {
        "moa-attention-heads": renormalized_gates,
        "moh-mixture-of-heads": level_two_way_gates,
        "pvchat-remoh": relu_gates,
        "skipped-heads": skipped_heads_attention,
    }.items():
        assert atlas.get(key).function is made


def test_word_classes_hold_every_word_once():
    assert sorted(word for words in CLASSES.values() for word in words) == sorted(WORDS)
    names = list(CLASSES)
    classes = word_classes(encode(["the", "fox", "foxes", "is", "old", "near", "(", ".", "end"]))
    assert [names[c] for c in classes] == [
        "article",
        "singular noun",
        "plural noun",
        "verb",
        "adjective",
        "preposition",
        "bracket",
        "full stop",
        "frame",
    ]
    with pytest.raises(ValueError, match="tokens must lie in"):
        word_classes(torch.tensor([len(WORDS)]))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: MixtureOfAttentionHeads(8, 3, 4, head_width=2), ValueError, "active must be at m"),
        (lambda: MixtureOfAttentionHeads(8, 3, 0, head_width=2), ValueError, "active must be at l"),
        (lambda: MixtureOfHeads(8, 4, shared=2, active=3), ValueError, "number of heads, 2, got 3"),
        (lambda: MixtureOfHeads(8, 4, shared=4, active=1), ValueError, "shared must be less than"),
        (lambda: MixtureOfHeads(8, 4, shared=0, active=1), ValueError, "shared must be at least 1"),
        (lambda: MixtureOfHeads(8, 3, shared=1, active=1), ValueError, "heads must divide width"),
        (lambda: ReluMixtureOfHeads(8, 4, shared=4), ValueError, "shared must be less than"),
        (lambda: GatedHeads(torch.nn.Linear(2, 2)), TypeError, "must be a MultiHeadAttention"),
        (lambda: GatedHeads(MultiHeadAttention(8, 4, key_heads=2)), ValueError, "as many key head"),
        (
            lambda: GatedHeads(MultiHeadAttention(8, 4, position="alibi")),
            ValueError,
            "position none or rope, got 'alibi'",
        ),
        (
            lambda: GatedHeads(MultiHeadAttention(8, 4, operator="sigmoid-attention")),
            ValueError,
            "operator softmax_attention",
        ),
        (
            lambda: MixtureOfHeads.from_multi_head(MultiHeadAttention(8, 4), shared=2, active=3),
            ValueError,
            "active must be at most",
        ),
        (lambda: balanced(balance=-1.0), ValueError, "balance must be a finite number of at lea"),
        (lambda: balanced(z=float("inf")), ValueError, "z must be a finite number"),
        (lambda: SteeredSparsity(1.5), ValueError, "target must lie in 0 ... 1, got 1.5"),
        (lambda: SteeredSparsity(0.5, enhancement=-1), ValueError, "enhancement must be a finite"),
        (lambda: sparsity_penalty(torch.zeros(2), -0.1), ValueError, "coefficient must be a fini"),
        (lambda: next_coefficient(0.0, 0.5, 0.5), ValueError, "coefficient must be positive"),
        (lambda: next_coefficient(0.1, 1.5, 0.5), ValueError, "share must lie in"),
        (lambda: activation_enhancement(torch.tensor(0.5), -1), ValueError, "target must lie in"),
        (lambda: routings(torch.nn.Linear(2, 2)), ValueError, "model must have layers that rout"),
        (lambda: routings(MixtureOfHeads(8, 4, shared=1, active=1)), ValueError, "been called"),
        (lambda: head_importance(torch.nn.Linear(2, 2), list), ValueError, "class GatedHeads"),
        (lambda: token_operations(torch.nn.Linear(2, 2), 3, 1), TypeError, "layer must be a"),
    ],
)
def test_wrong_input_is_named(make, error, words):
    with pytest.raises(error, match=words):
        make()
