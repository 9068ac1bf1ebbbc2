"""The influence of a weight, the search over spans, and a layer that decides when to look far."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from attnlib.attend import attend
from attnlib.models.all_or_here import (
    AllOrHere,
    decisions,
    straight_through,
    with_usage_penalty,
)
from attnlib.models.language import DecoderLM
from attnlib.models.multi_head import MultiHeadAttention
from attnlib.models.replaced import with_attention
from attnlib.models.span_experiments import run_all_or_here, run_spans
from attnlib.models.span_search import (
    Candidate,
    least_costly_spans,
    profile,
    removal_influence,
    span_cost,
    span_costs,
    span_rules,
    with_operators,
)
from attnlib.read.head_spans import head_spans_attention
from attnlib.tasks.needle import NeedleRetrieval


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def test_influence_is_the_slope_of_the_loss_along_the_removal_of_a_key():
    weights, slopes = normal(2, 5, 7).softmax(-1), normal(2, 5, 7, seed=1)
    influence = removal_influence(weights, slopes)
    for j in range(7):
        without = weights.clone()
        without[..., j] = 0
        without = without / without.sum(-1, keepdim=True)
        wanted = (slopes * (without - weights)).sum(-1)
        torch.testing.assert_close(influence[..., j], wanted, rtol=0, atol=1e-12)


def test_the_only_key_of_a_row_costs_its_whole_read():
    weights = torch.tensor([[1.0, 0.0], [0.4, 0.6]]).double()
    slopes = torch.tensor([[3.0, -1.0], [2.0, 5.0]]).double()
    influence = removal_influence(weights, slopes)
    assert influence[0].tolist() == [-3.0, 0.0]
    assert influence[1].tolist() == pytest.approx([3 * 0.4, -3 * 0.6])
    assert influence.isfinite().all()


def test_influence_is_exact_where_the_loss_is_linear_in_the_read():
    """One hidden pair in each row: the rise of a linear loss is the summed influence."""
    query, key, value, slope = normal(4, 1, 6, 3).unbind(0)
    read, weights = attend(query, key, value, is_causal=True, return_weights=True)
    influence = removal_influence(weights, slope @ value.mT)
    hidden = torch.zeros(1, 6, 6, dtype=torch.bool)
    hidden[0, range(2, 6), [0, 1, 1, 4]] = True
    without = attend(query, key, value, is_causal=True, attn_mask=~hidden)
    rise = (slope * (without - read)).sum()
    torch.testing.assert_close(influence[hidden].sum(), rise, rtol=0, atol=1e-12)


def small_model(position="rope"):
    task = NeedleRetrieval(length=12, needles=2, questions=2, keys=3, values=2, filler=3)
    model = DecoderLM(task.vocabulary, width=16, heads=2, layers=2, position=position)
    return task, model


def test_a_profile_agrees_with_hiding_one_pair_a_little():
    task, model = small_model()
    model = model.double()
    batch = task.batch(3, 0)
    influence = profile(model, batch)
    assert influence.shape == (2, 2, 12, 12)

    def loss_with(share):
        """Hides a share of key 2 from query 11 in head 1 of layer 0, in every text."""

        def partly(query, key, value, **options):
            _, weights = attend(query, key, value, return_weights=True, **options)
            without = weights[:, 1, 11].clone()
            without[:, 2] = 0
            without = without / without.sum(-1, keepdim=True)
            weights = weights.clone()
            weights[:, 1, 11] += share * (without - weights[:, 1, 11])
            return weights @ value

        changed = with_operators(copy.deepcopy(model), [partly, attend])
        logits = changed(batch.tokens)
        asked = batch.targets >= 0
        return nn.functional.cross_entropy(logits[asked], batch.targets[asked])

    step = 1e-4
    slope = (loss_with(step) - loss_with(-step)) / (2 * step)
    assert math.isclose(slope.item(), float(influence[0, 1, 11, 2]), rel_tol=1e-5)
    assert all(not isinstance(block.attention.operator, nn.Module) for block in model.blocks)


def test_the_cost_of_a_span_counts_what_it_hides():
    influence = torch.ones(2, 5, 5).tril()
    assert span_cost(influence, 5).tolist() == [0, 0]
    assert span_cost(influence, 2).tolist() == [3 + 2 + 1] * 2
    assert span_cost(influence, 2, sinks=1).tolist() == [2 + 1] * 2
    costs = span_costs(
        {5: influence[None], 4: influence[None, :, :4, :4]}, [Candidate(2, 0), Candidate(0, 1)]
    )
    assert costs.tolist() == [[6 + 3, 0]] * 2


def test_the_search_finds_what_trying_everything_finds():
    candidates = [Candidate(2, 0), Candidate(0, 0.5), Candidate(4, 0.25), Candidate(0, 1)]
    costs, budgets = normal(4, 4), {8: 4.5, 16: 9.0}
    found = least_costly_spans(costs, candidates, budgets)

    def fits(plan):
        return all(sum(candidates[c].span(n) for c in plan) <= b * 4 for n, b in budgets.items())

    plans = [plan for plan in itertools.product(range(4), repeat=4) if fits(plan)]
    best = min(plans, key=lambda plan: sum(costs[h, c] for h, c in enumerate(plan)))
    assert found == [candidates[c] for c in best]


def test_a_head_that_needs_its_far_keys_gets_the_long_span():
    influence = torch.zeros(2, 2, 16, 16)
    influence[1, 0, 15, 0] = 1.0
    candidates = [Candidate(2, 0), Candidate(0, 1)]
    costs = span_costs({16: influence}, candidates)
    chosen = least_costly_spans(costs, candidates, {16: 6})
    assert [c.beta for c in chosen] == [0, 0, 1, 0]
    first, second = span_rules(chosen, 2, sinks=1)
    assert first.spans(32) == [2, 2] and second.spans(32) == [32, 2] and second.sinks == 1


def test_spans_put_into_a_model_are_read_by_it():
    task, model = small_model()
    tokens = task.batch(2, 0).tokens
    rules = span_rules([Candidate(3, 0)] * 4, 2)
    spanned = with_operators(copy.deepcopy(model), rules)
    direct = with_operators(
        copy.deepcopy(model),
        [lambda q, k, v, **o: head_spans_attention(q, k, v, [3, 3], **o)] * 2,
    )
    assert torch.equal(spanned(tokens), direct(tokens))
    assert not torch.allclose(spanned(tokens), model(tokens))


def test_the_hard_decision_has_the_slope_of_a_sigmoid():
    score = torch.tensor([-2.0, -1e-9, 0.0, 1e-9, 3.0], dtype=torch.float64, requires_grad=True)
    gate = straight_through(score)
    assert gate.tolist() == [0, 0, 0, 1, 1]
    gate.sum().backward()
    soft = score.detach().sigmoid()
    torch.testing.assert_close(score.grad, soft * (1 - soft))


def layer_and_input(**options):
    torch.manual_seed(0)
    layer = AllOrHere(12, 3, window=3, **options).double()
    nn.init.normal_(layer.router.weight)
    nn.init.zeros_(layer.router.bias)
    return layer, normal(2, 20, 12)


@pytest.mark.parametrize("position", ["none", "rope"])
def test_the_layer_reads_where_needed_and_gives_the_same(position):
    layer, x = layer_and_input(position=position)
    read = layer(x)
    assert set(layer.gates.unique().tolist()) == {0, 1}
    torch.testing.assert_close(layer.read_where_needed(x), read, rtol=0, atol=1e-12)
    out, weights = layer(x, return_weights=True)
    assert torch.equal(out, read)
    seen = (weights > 0).sum(-1).transpose(1, 2)
    everywhere = layer.everywhere(x)
    place = torch.arange(1, 21)[:, None]
    assert torch.equal(seen, torch.where(everywhere, place, place.clamp(max=3)))


def test_with_gates_of_one_it_is_full_attention_and_of_zero_a_window():
    x = normal(2, 20, 12)
    torch.manual_seed(0)
    plain = MultiHeadAttention(12, 3, is_causal=True, position="rope").double()
    for start, options in ((1.0, {}), (0.0, {"operator": _window_of_three})):
        torch.manual_seed(0)
        layer = AllOrHere(12, 3, window=3, position="rope", router=False, start=start).double()
        layer.load_state_dict(plain.state_dict(), strict=False)
        other = MultiHeadAttention(12, 3, is_causal=True, position="rope", **options).double()
        other.load_state_dict(plain.state_dict())
        torch.testing.assert_close(layer(x), other(x), rtol=0, atol=1e-12)
        assert not layer.router.weight.requires_grad


def _window_of_three(query, key, value, *, is_causal=True):
    return head_spans_attention(query, key, value, [3] * 3, is_causal=is_causal)


def test_the_penalty_is_the_share_of_gates_and_reaches_the_router():
    task, model = small_model(position="none")
    model = with_attention(model, lambda: AllOrHere(16, 2, window=3, position="rope"))
    batch = task.batch(4, 0)
    loss, _ = with_usage_penalty(0.5)(model, batch)
    plain, _ = with_usage_penalty(0.0)(model, batch)
    assert math.isclose(loss.item(), plain.item() + 0.5 * decisions(model).mean().item())
    loss.backward()
    assert all(block.attention.router.bias.grad.abs().min() > 0 for block in model.blocks)


def test_the_runs_of_the_study_give_every_value(monkeypatch):
    monkeypatch.setattr("attnlib.models.span_experiments.JUDGED", 8)
    values = run_spans(spans="uniform", seed=0, steps=2)
    assert values["keys_64"] == 16 and values["long_heads"] == 0
    full = run_spans(spans="full", seed=0, steps=2)
    assert full["keys_128"] == 128 and set(full) == set(values)
    for spans in ("mixed", "mixed by margin"):
        mixed = run_spans(spans=spans, seed=0, steps=2)
        assert mixed["keys_64"] <= 16 and mixed["keys_32"] <= 8


@pytest.mark.parametrize("form", ["everywhere", "here"])
def test_gates_that_stand_still_are_measured_as_such(form, monkeypatch):
    monkeypatch.setattr("attnlib.models.span_experiments.TUNING_STEPS", 2)
    monkeypatch.setattr("attnlib.models.span_experiments.JUDGED", 16)
    values = run_all_or_here(form=form, window=8, seed=0, steps=2)
    wanted = 1.0 if form == "everywhere" else 0.0
    assert values["usage"] == values["tokens"] == values["recall"] == wanted
    assert values["base_rate"] == 2 / 64


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: removal_influence(torch.ones(2, 2), torch.ones(2, 3)), "slopes must have the sh"),
        (lambda: least_costly_spans(torch.ones(2, 3), [Candidate(2, 0)], {8: 4}), "costs must"),
        (lambda: least_costly_spans(torch.ones(2, 1), [Candidate(2, 0)], {8: 1}), "budgets must"),
        (lambda: span_rules([Candidate(2, 0)] * 3, 2), "chosen must have as many heads"),
        (lambda: with_operators(small_model()[1], [attend]), "operators must be one for each"),
        (lambda: AllOrHere(12, 3, window=0), "window must be at least 1"),
        (lambda: AllOrHere(12, 5, window=2), "heads must divide"),
        (lambda: AllOrHere(12, 3, window=2, position="alibi"), "position must be one of"),
        (lambda: decisions(small_model()[1]), "model must have AllOrHere layers"),
        (lambda: with_usage_penalty(-1.0), "weight must not be negative"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
