"""Attention pooling: side features may move the weights, and nothing but the weights."""

import pytest
import torch

from attnlib.models.pooling import CONDITIONS, ConditionedFeatures, PooledClassifier

WORDS, WIDTH = 30, 8


def classifier(condition):
    torch.manual_seed(0)
    model = PooledClassifier(WORDS, classes=3, side=2, width=WIDTH, condition=condition)
    return model.double()


def draw(batch=4, length=9):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(WORDS, (batch, length), generator=generator)
    sides = torch.randn(2, batch, length, 2, generator=generator, dtype=torch.float64)
    return tokens, *sides


every = pytest.mark.parametrize("condition", CONDITIONS)


def test_an_unknown_condition_is_refused_by_name():
    with pytest.raises(ValueError, match=r"condition must be one of .*got 'mix'"):
        PooledClassifier(WORDS, classes=3, side=2, condition="mix")


@every
@pytest.mark.parametrize("length", [1, 9, 33])
def test_a_text_of_any_length_has_one_read_and_one_row_of_logits(condition, length):
    model, (tokens, side, _) = classifier(condition), draw(length=length)
    read, weights = model.pool(tokens, side)
    assert read.shape == (4, 1, WIDTH) and weights.shape == (4, 1, length)
    assert model(tokens, side).shape == (4, 3)


@every
def test_the_weights_sum_to_one_and_read_the_states_of_the_encoder(condition):
    model, (tokens, *sides) = classifier(condition), draw()
    h, _ = model.encode(model.embed(tokens))
    for side in sides:
        read, weights = model.pool(tokens, side)
        assert weights.min() > 0
        torch.testing.assert_close(weights.sum(-1), torch.ones(4, 1).double())
        torch.testing.assert_close(read, weights @ h)


@every
def test_the_weights_are_a_softmax_over_the_features_without_a_scale(condition):
    model, (tokens, side, _) = classifier(condition), draw()
    h, _ = model.encode(model.embed(tokens))
    scores = model.features(h, side) @ model.query[0]
    torch.testing.assert_close(model.pool(tokens, side)[1][:, 0], scores.softmax(-1))


@every
def test_other_side_features_move_the_weights_unless_there_is_no_condition(condition):
    model, (tokens, one, other) = classifier(condition), draw()
    first, second = (model.pool(tokens, side)[1] for side in (one, other))
    if condition == "none":
        assert torch.equal(first, second)
    else:
        assert ((first - second).abs().amax(-1) > 1e-3).all()


def with_weights(condition, **parameters):
    """Features of width 1 with one side feature and the given parameters."""
    features = ConditionedFeatures(condition, 1, 1)
    state = {name.replace("_", ".", 1): torch.tensor(x) for name, x in parameters.items()}
    features.load_state_dict(state)
    return features(torch.tensor([[[2.0]]]), torch.tensor([[[3.0]]])).item()


def test_each_condition_equals_its_formula_at_h_two_and_c_three():
    tanh, sigmoid = (lambda x: torch.tensor(x).tanh()), (lambda x: torch.tensor(x).sigmoid())
    assert with_weights("none") == 2
    concat = with_weights("concat", mix_weight=[[0.1, 0.2]], mix_bias=[-0.3])
    assert concat == pytest.approx(float(tanh(0.1 * 2 + 0.2 * 3 - 0.3)))
    gate = with_weights("gate", mix_weight=[[0.5]], mix_bias=[-1.0])
    assert gate == pytest.approx(float(sigmoid(0.5 * 3 - 1.0)) * 2)
    affine = with_weights(
        "affine",
        gamma_weight=[[0.5]],
        gamma_bias=[1.0],
        beta_weight=[[-2.0]],
        beta_bias=[0.25],
    )
    assert affine == pytest.approx((0.5 * 3 + 1) * 2 - 2 * 3 + 0.25)


@every
def test_each_text_is_read_alone(condition):
    model, (tokens, side, _) = classifier(condition), draw()
    together = model(tokens, side)
    for row in range(4):
        alone = model(tokens[row : row + 1], side[row : row + 1])
        torch.testing.assert_close(alone[0], together[row])


@every
def test_every_parameter_learns(condition):
    model, (tokens, side, _) = classifier(condition), draw()
    model(tokens, side).square().sum().backward()
    for name, parameter in model.named_parameters():
        if name != "features.beta.bias":  # the same for every token: no softmax sees it
            assert parameter.grad.abs().max() > 1e-9, name
