"""Training: it learns, it repeats itself, it is silent in a static build."""

import math

import pytest
import torch
from torch import nn

from attnlib.models import DecoderLM, VisionTransformer
from attnlib.tasks import ColoredShapes, Copy, MultiQueryRecall, TokenBatch
from attnlib.training import (
    classification,
    evaluate,
    learning_rate_factor,
    seeds_of,
    train,
)

COPY = Copy(count=4, symbols=6)


def trained(seed=0, steps=40, **options):
    model = DecoderLM(COPY.vocabulary, width=32, seed=seed)
    history = train(model, COPY.batches(32, seed), steps=steps, progress=False, **options)
    return model, history


def test_a_tiny_run_learns_to_copy():
    model, history = trained(steps=100)
    assert history.loss.shape == history.accuracy.shape == (100,)
    assert history.loss[-10:].mean() < 0.5 * history.loss[:10].mean()
    measured = evaluate(model, COPY.batches(100, seed=99), count=2)
    assert measured.accuracy > 0.8 > COPY.chance
    assert measured.loss < 1


def test_a_vision_model_learns_shapes():
    task = ColoredShapes()
    model = VisionTransformer(16, 4, task.classes, channels=3, width=32, layers=1)
    history = train(model, task.batches(32, 0), steps=60, progress=False)
    assert history.loss[-10:].mean() < 0.9 * history.loss[:10].mean()


def test_the_same_seed_trains_the_same_model():
    one, same, other = trained(0, 5), trained(0, 5), trained(1, 5)
    assert torch.equal(one[1].loss, same[1].loss)
    assert torch.equal(one[0].to_logits.weight, same[0].to_logits.weight)
    assert not torch.equal(one[1].loss, other[1].loss)


def test_the_seed_rules_what_the_model_draws_and_nothing_outside():
    def losses(seed):
        model = nn.Sequential(nn.Embedding(7, 8), nn.Dropout(0.5), nn.Linear(8, 7))
        model.load_state_dict(start)
        return train(model, COPY.batches(8, 0), steps=3, seed=seed, progress=False).loss

    start = nn.Sequential(nn.Embedding(7, 8), nn.Dropout(0.5), nn.Linear(8, 7)).state_dict()
    state = torch.get_rng_state()
    first = losses(0)
    torch.set_rng_state(state)
    assert torch.equal(first, losses(0))
    assert not torch.equal(first, losses(1))


def test_positions_that_are_not_asked_for_do_not_count():
    tokens = torch.tensor([[1, 2, 3]])
    model = DecoderLM(5, width=16)
    loss, accuracy = classification(model, TokenBatch(tokens, torch.tensor([[-100, 4, -100]])))
    logits = model(tokens)[0, 1]
    assert loss.item() == pytest.approx(-logits.log_softmax(-1)[4].item())
    assert float(accuracy) == float(logits.argmax() == 4)


def test_the_learning_rate_rises_and_then_falls_as_a_cosine():
    factors = [learning_rate_factor(step, 110, 10) for step in range(110)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[10] == 1
    assert factors[60] == pytest.approx(0.5)
    assert factors[109] < 0.001
    assert factors[85] == pytest.approx((1 + math.cos(0.75 * math.pi)) / 2)


def test_gradients_are_clipped():
    weight = nn.Parameter(torch.zeros(3))
    model = nn.Module()
    model.weight = weight

    def steep(model, batch):
        return 1e6 * model.weight.sum(), torch.tensor(0.0)

    train(model, [0], steps=1, warmup=0, clip=0.5, objective=steep, progress=False)
    assert weight.grad.norm() == pytest.approx(0.5, rel=1e-4)


def test_evaluation_takes_the_mean_and_leaves_the_model_as_it_was():
    model = nn.Linear(1, 1)
    results = {0: (1.0, 0.0), 1: (3.0, 1.0)}

    def objective(model, batch):
        assert not model.training
        return tuple(torch.tensor(part) for part in results[batch])

    assert evaluate(model, [0, 1, 7], count=2, objective=objective) == (2.0, 0.5)
    assert model.training


def test_an_experiment_runs_once_for_each_seed_in_order():
    assert seeds_of(lambda seed: 10 * seed, (3, 1, 2), progress=False) == [30, 10, 20]


@pytest.mark.parametrize("static", [True, False])
def test_the_bar_is_silent_in_a_static_build_only(static, monkeypatch, capsys):
    monkeypatch.setenv("ATTN_STATIC", "1" if static else "0")
    model = DecoderLM(COPY.vocabulary, width=16, layers=1)
    train(model, COPY.batches(4, 0), steps=2)
    seeds_of(lambda seed: seed)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert (printed.err == "") == static


def test_what_goes_wrong_is_named():
    model = DecoderLM(COPY.vocabulary, width=16, layers=1)
    batch = COPY.batch(2, 0)
    with pytest.raises(ValueError, match="batches must last for steps = 3, got 1"):
        train(model, [batch], steps=3, progress=False)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        train(model, [batch], steps=0, progress=False)
    with pytest.raises(ValueError, match="batches must hold at least one batch"):
        evaluate(model, [])

    def broken(model, batch):
        return torch.tensor(float("nan")), torch.tensor(0.0)

    with pytest.raises(ValueError, match="the loss must stay finite, got nan at step 0"):
        train(model, [batch], steps=1, objective=broken, progress=False)


def test_two_layers_recall_and_one_stays_at_an_unbound_guess():
    """The experiment of chapter 1.1 in small."""
    task = MultiQueryRecall(pairs=3, keys=4, values=4, length=9, power=1.0)

    def measured(layers):
        model = DecoderLM(task.vocabulary, layers=layers, width=32)
        batches = task.batches(64, 0)
        train(model, batches, steps=100, learning_rate=5e-3, warmup=20, progress=False)
        return evaluate(model, task.batches(200, 99), count=2).accuracy

    assert measured(2) > 0.9
    assert abs(measured(1) - task.unbound) < 0.1
