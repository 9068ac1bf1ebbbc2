"""Probes read what a model does; interventions change a pass and leave the model as it was."""

import copy
import math

import pytest
import torch
from torch import nn

from attnlib.interventions import (
    hidden_key,
    injected,
    replaced_value,
    streamed,
    without_heads,
    without_perceptron,
)
from attnlib.models import DecoderLM, VisionTransformer
from attnlib.models.small_sink_models import AttentionOnlyLM
from attnlib.probes import (
    cosine,
    effective_rank,
    map_rank,
    mean_weight,
    record,
    residual_norms,
    row_shares,
    singular_shares,
    sink_share,
    times_the_others,
    value_norms,
)


def language_model(**options):
    return DecoderLM(11, width=16, heads=2, layers=2, **options)


def some_tokens(length=9):
    return torch.randint(11, (3, length), generator=torch.Generator().manual_seed(0))


# ---- probes


@pytest.mark.parametrize("position", ["rope", "learned", "none"])
def test_a_recording_is_the_pass_itself(position):
    model, tokens = language_model(position=position), some_tokens()
    logits, weights = model(tokens, return_weights=True)
    got = record(model, tokens)
    assert torch.equal(got.logits, logits)
    assert torch.equal(got.weights, weights)
    for layer in got.layers:
        torch.testing.assert_close(layer.before + layer.attention + layer.perceptron, layer.after)
        scores = (layer.query @ layer.key.mT / math.sqrt(8)).masked_fill(
            torch.ones(9, 9).triu(1).bool(), -torch.inf
        )
        torch.testing.assert_close(scores.softmax(-1), layer.weights)
    assert torch.equal(got.layers[0].after, got.layers[1].before)
    assert value_norms(got).shape == (2, 3, 2, 9)
    assert residual_norms(got).shape == (3, 3, 9)
    torch.testing.assert_close(residual_norms(got)[1], got.layers[0].after.norm(dim=-1))


def test_a_recording_leaves_no_hook_and_no_change():
    model, tokens = language_model(), some_tokens()
    before = copy.deepcopy(model.state_dict())
    record(model, tokens)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert all(torch.equal(before[name], new) for name, new in model.state_dict().items())
    with pytest.raises(ValueError, match="tokens"):
        record(model, tokens + 11)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_a_recording_takes_models_with_other_operators_and_images():
    for operator in ("null-logit-attention", "relu"):
        shares = record(language_model(operator=operator), some_tokens()).weights.sum(-1)
        assert not torch.allclose(shares, torch.ones_like(shares))
    grouped = DecoderLM(11, width=16, heads=4, key_heads=2, layers=1)
    assert record(grouped, some_tokens()).layers[0].value.shape == (3, 4, 9, 4)
    assert (
        record(AttentionOnlyLM(11, width=16), some_tokens()).layers[0].perceptron.count_nonzero()
        == 0
    )
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert record(VisionTransformer(8, 4, 3, width=16), images).weights.shape == (2, 2, 2, 5, 5)


def test_a_model_without_layers_is_refused_by_every_probe_and_intervention():
    plain = nn.Linear(3, 3)
    for use in (
        lambda: record(plain, some_tokens()),
        lambda: injected(plain, 0, 0, torch.zeros(3)).__enter__(),
        lambda: without_heads(plain, {0: 0}).__enter__(),
        lambda: replaced_value(plain, 0, 0).__enter__(),
        lambda: without_perceptron(plain, 0).__enter__(),
        lambda: hidden_key(plain, 0).__enter__(),
        lambda: streamed(plain, sinks=1, window=4).__enter__(),
    ):
        with pytest.raises(TypeError, match=r"model must have a ModuleList `blocks`.*got Linear"):
            use()


def test_the_mean_weight_counts_the_queries_that_see_the_key():
    weights = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5]])
    assert mean_weight(weights, 0) == pytest.approx(1.7 / 3)
    assert mean_weight(weights, 1) == pytest.approx(0.8 / 2)
    assert mean_weight(weights, 2) == pytest.approx(0.5)


def test_the_sink_share_is_the_share_of_maps_above_the_threshold():
    sunk = torch.tensor([[1.0, 0, 0], [0.9, 0.1, 0], [0.8, 0.1, 0.1]])
    spread = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
    maps = torch.stack((sunk, spread, spread, spread))
    assert sink_share(maps) == 1.0  # 1/3 for the diagonal maps: the first row is the key's own
    assert sink_share(maps, threshold=0.5) == 0.25
    assert sink_share(maps, key=1, threshold=0.3) == 0.75
    assert sink_share(maps.mean(0, keepdim=True), threshold=0.5) == 0.0


def test_row_shares_make_rows_comparable():
    weights = torch.tensor([[2.0, -2.0, 0.0], [0.0, 0.0, 0.0], [0.1, 0.1, 0.2]])
    wanted = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 0.0], [0.25, 0.25, 0.5]])
    assert torch.allclose(row_shares(weights), wanted)


def test_times_the_others_and_cosine_by_hand():
    assert times_the_others(torch.tensor([6.0, 1.0, 3.0])) == 3.0
    assert times_the_others(torch.tensor([6.0, 1.0, 3.0]), 1) == pytest.approx(1 / 4.5)
    vectors = torch.tensor([[2.0, 0], [0, 1], [-1, 0], [0, 0]])
    assert cosine(vectors, torch.tensor([3.0, 0])).tolist() == [1.0, 0.0, -1.0, 0.0]


def test_a_causal_map_has_full_rank_and_a_uniform_one_has_one():
    causal = torch.ones(6, 6).tril() / torch.arange(1, 7)[:, None]
    uniform = torch.full((6, 6), 1 / 6)
    assert map_rank(torch.stack((causal, uniform))).tolist() == [6, 1]
    assert effective_rank(uniform) == pytest.approx(1.0, abs=1e-6)
    assert effective_rank(torch.eye(6)) == pytest.approx(6.0)
    assert singular_shares(torch.eye(4)).tolist() == pytest.approx([0.25, 0.5, 0.75, 1.0])


@pytest.mark.parametrize(
    ("use", "kind", "name"),
    [
        (lambda: mean_weight(torch.eye(3), 3), ValueError, "key"),
        (lambda: mean_weight(torch.eye(3), -1), ValueError, "key"),
        (lambda: mean_weight([[1.0]]), TypeError, "weights"),
        (lambda: sink_share(torch.eye(3), threshold=1.5), ValueError, "threshold"),
        (lambda: sink_share(torch.eye(3), threshold="x"), TypeError, "threshold"),
        (lambda: times_the_others(torch.ones(3), 3), ValueError, "place"),
        (lambda: cosine(torch.eye(3), torch.ones(2)), ValueError, "direction"),
        (lambda: cosine(torch.eye(3), torch.zeros(3)), ValueError, "direction"),
        (lambda: map_rank(torch.eye(3), 1.0), ValueError, "tolerance"),
    ],
)
def test_measures_refuse_wrong_input_by_name(use, kind, name):
    with pytest.raises(kind, match=name):
        use()


# ---- interventions


INTERVENTIONS = {
    "injected": lambda model: injected(model, 1, 2, torch.arange(16.0)),
    "without_heads": lambda model: without_heads(model, {0: [1], 1: 0}),
    "replaced_value": lambda model: replaced_value(model, 0, 0),
    "without_perceptron": lambda model: without_perceptron(model, 1, 3),
    "hidden_key": lambda model: hidden_key(model, 0),
    "streamed": lambda model: streamed(model, sinks=1, window=2),
}


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_an_intervention_changes_the_pass_and_nothing_else(name):
    model, tokens = language_model(), some_tokens()
    before, state = model(tokens), copy.deepcopy(model.state_dict())
    with INTERVENTIONS[name](model) as changed:
        assert changed is model
        assert not torch.allclose(model(tokens), before)
    assert torch.equal(model(tokens), before)
    assert all(torch.equal(state[part], new) for part, new in model.state_dict().items())


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_an_intervention_ends_after_an_error_too(name):
    model, tokens = language_model(), some_tokens()
    before = model(tokens)
    with pytest.raises(RuntimeError, match="stop"), INTERVENTIONS[name](model):
        raise RuntimeError("stop")
    assert torch.equal(model(tokens), before)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_an_injection_is_one_vector_at_one_token():
    model, tokens, vector = language_model(), some_tokens(), torch.arange(16.0)
    plain = record(model, tokens)
    with injected(model, 1, 2, vector):
        got = record(model, tokens)
    change = got.layers[1].before - plain.layers[1].before
    torch.testing.assert_close(change[:, 2], vector.expand(3, 16))
    change[:, 2] = 0
    assert not change.any()
    assert torch.equal(got.logits[:, :2], plain.logits[:, :2])


def test_a_head_without_a_voice_is_a_head_whose_output_columns_are_zero():
    model, tokens = language_model(), some_tokens()
    cut = copy.deepcopy(model)
    cut.blocks[1].attention.to_output.weight.data[:, 8:] = 0
    with without_heads(model, {1: 1}):
        assert torch.allclose(model(tokens), cut(tokens), atol=1e-6)


def test_all_heads_that_are_named_are_silent():
    model, tokens = language_model(), some_tokens()
    with without_heads(model, {0: [0, 1]}):
        got = record(model, tokens)
    assert not got.layers[0].attention.any()
    assert got.layers[1].attention.any()


def test_a_replaced_value_is_read_with_the_weights_as_they_were():
    model, tokens = language_model(), some_tokens()
    plain = record(model, tokens)
    with replaced_value(model, 1, 0, torch.arange(16.0)):
        got = record(model, tokens)
    assert torch.equal(got.weights, plain.weights)
    assert torch.equal(got.layers[1].value[0, 1, 0], torch.arange(8.0, 16.0))
    assert torch.equal(got.layers[1].value[..., 1:, :], plain.layers[1].value[..., 1:, :])
    with replaced_value(model, 1, 0, 0.0):
        assert not record(model, tokens).layers[1].value[..., 0, :].any()


def test_a_perceptron_is_silent_where_it_should_be():
    model, tokens = language_model(), some_tokens()
    with without_perceptron(model, 0, 4):
        said = record(model, tokens).layers[0].perceptron
    assert not said[:, 4].any()
    assert said[:, :4].any(-1).all()
    with without_perceptron(model, 0):
        assert not record(model, tokens).layers[0].perceptron.any()


def test_a_hidden_key_has_no_weight_but_from_itself():
    model, tokens = language_model(), some_tokens()
    with hidden_key(model, 0):
        weights = record(model, tokens).weights
    assert not weights[..., 1:, 0].any()
    assert torch.allclose(weights.sum(-1), torch.ones(2, 3, 2, 9))


@pytest.mark.parametrize(
    ("intervention", "kind", "message"),
    [
        (lambda m: injected(m, 2, 0, torch.zeros(16)), ValueError, "layer must be below the 2"),
        (lambda m: injected(m, -1, 0, torch.zeros(16)), ValueError, "layer"),
        (lambda m: injected(m, 0.5, 0, torch.zeros(16)), TypeError, "layer"),
        (lambda m: injected(m, 0, -1, torch.zeros(16)), ValueError, "place"),
        (lambda m: injected(m, 0, 0, torch.zeros(15)), ValueError, "vector must have shape"),
        (lambda m: injected(m, 0, 0, torch.full((16,), torch.inf)), ValueError, "finite"),
        (lambda m: injected(m, 0, 0, 3.0), TypeError, "vector"),
        (lambda m: without_heads(m, {0: 2}), ValueError, "heads of layer 0 must be below its 2"),
        (lambda m: without_heads(m, {0: 0, 5: 0}), ValueError, "layer"),
        (lambda m: without_heads(m, {0: "first"}), TypeError, "heads"),
        (lambda m: without_heads(m, [0]), TypeError, "heads must be a dict"),
        (lambda m: replaced_value(m, 7, 0), ValueError, "layer"),
        (lambda m: replaced_value(m, 0, 0, torch.zeros(3)), ValueError, "value must have shape"),
        (lambda m: replaced_value(m, 0, 0, "zero"), TypeError, "value"),
        (lambda m: without_perceptron(m, 2), ValueError, "layer"),
        (lambda m: hidden_key(m, -1), ValueError, "place"),
        (lambda m: streamed(m, sinks=-1, window=4), ValueError, "sinks"),
        (lambda m: streamed(m, sinks=1, window=0), ValueError, "window"),
    ],
)
def test_wrong_places_are_refused_before_anything_changes(intervention, kind, message):
    model, tokens = language_model(), some_tokens()
    before = model(tokens)
    with pytest.raises(kind, match=message):
        intervention(model).__enter__()
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert torch.equal(model(tokens), before)


@pytest.mark.parametrize("name", ["injected", "replaced_value", "without_perceptron", "hidden_key"])
def test_a_place_behind_the_end_is_refused_at_the_pass(name):
    model, tokens = language_model(), some_tokens()
    before = model(tokens)
    places = {
        "injected": lambda: injected(model, 0, 9, torch.zeros(16)),
        "replaced_value": lambda: replaced_value(model, 0, 9),
        "without_perceptron": lambda: without_perceptron(model, 0, 9),
        "hidden_key": lambda: hidden_key(model, 9),
    }
    with places[name](), pytest.raises(ValueError, match="place must be below the 9 tokens"):
        model(tokens)
    assert torch.equal(model(tokens), before)


def test_a_stream_needs_causal_softmax_and_positions_that_can_be_counted_in_a_cache():
    with pytest.raises(ValueError, match="position must be 'rope' or 'none'"):
        streamed(language_model(position="learned"), sinks=1, window=4).__enter__()
    with pytest.raises(ValueError, match="causal softmax attention"):
        streamed(language_model(operator="relu"), sinks=1, window=4).__enter__()


def test_a_streamed_model_with_room_for_all_is_the_model_itself():
    model, tokens = language_model(), some_tokens()
    with streamed(model, sinks=3, window=6):
        torch.testing.assert_close(model(tokens), language_model()(tokens))
