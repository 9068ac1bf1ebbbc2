"""Images under a causal mask, decoders of attention alone, and training that is watched."""

import pytest
import torch

from attnlib.models import DecoderLM
from attnlib.models.causal_vision import CausalVision, soft_mask, soft_masked_attention
from attnlib.models.small_sink_models import AttentionOnlyLM
from attnlib.tasks.bigram_backcopy import BigramBackcopy
from attnlib.watched_training import train_watched
from attnlib.weight.softmax_attention import softmax_attention


def images(count=2):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def slopes_of(model):
    shown = images().requires_grad_()
    (slope,) = torch.autograd.grad(model(shown).sum(), shown)
    return slope


def test_a_class_token_in_front_sees_no_pixel_and_one_behind_sees_all():
    first = CausalVision(8, 4, 3, class_token="first", width=16)
    last = CausalVision(8, 4, 3, class_token="last", width=16)
    assert not slopes_of(first).any()
    assert (slopes_of(last) != 0).all()


def test_while_the_mask_is_soft_the_class_token_in_front_sees_the_image_too():
    model = CausalVision(8, 4, 3, class_token="first", width=16)
    model.soften(0.5)
    assert slopes_of(model).any()
    model.soften(None)
    assert not slopes_of(model).any()


def test_a_mask_after_the_softmax_leaks_through_the_normalizer():
    model = CausalVision(8, 4, 3, class_token="first", width=16)
    model.soften(0.0)
    assert slopes_of(model).any()


def test_the_soft_mask_runs_from_everything_to_the_past():
    assert torch.equal(soft_mask(4, 1.0), torch.ones(4, 4))
    assert torch.equal(soft_mask(4, 0.0), torch.ones(4, 4).tril())
    half = soft_mask(3, 0.5)
    assert half.tolist() == [[1.0, 0.5, 0.5], [1.0, 1.0, 0.5], [1.0, 1.0, 1.0]]


def test_soft_masked_attention_is_softmax_at_share_one_and_scaled_rows_at_zero():
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 5, 4, generator=generator).double()
    whole = soft_masked_attention(query, key, value, share=1.0)
    torch.testing.assert_close(whole, softmax_attention(query, key, value))
    weights = soft_masked_attention(query, key, torch.eye(5).double().expand(2, 5, 5), share=0.0)
    assert not weights.triu(1).any()
    past = weights / weights.sum(-1, keepdim=True)
    torch.testing.assert_close(past @ value, softmax_attention(query, key, value, is_causal=True))


@pytest.mark.parametrize(
    ("use", "kind", "name"),
    [
        (lambda: CausalVision(8, 3, 3), ValueError, "patch"),
        (lambda: CausalVision(8, 4, 3, class_token="middle"), ValueError, "class_token"),
        (lambda: CausalVision(8, 4, 3)(torch.zeros(1, 1, 9, 9)), ValueError, "images"),
        (lambda: CausalVision(8, 4, 3).soften(1.5), ValueError, "share"),
        (lambda: CausalVision(8, 4, 3).soften("half"), TypeError, "share"),
        (lambda: soft_mask(0, 0.5), ValueError, "length"),
    ],
)
def test_wrong_images_masks_and_places_are_refused_by_name(use, kind, name):
    with pytest.raises(kind, match=name):
        use()


def test_the_same_seed_gives_the_same_model_and_leaves_the_global_state():
    state = torch.get_rng_state()
    one, other = (CausalVision(8, 4, 3, seed=3)(images()) for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(state, torch.get_rng_state())


def test_without_perceptrons_a_layer_adds_what_its_heads_read():
    tokens = torch.randint(9, (2, 7), generator=torch.Generator().manual_seed(0))
    model, whole = AttentionOnlyLM(9, width=16, seed=1), DecoderLM(9, width=16, seed=1)
    block = model.blocks[0]
    x = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(block(x), x + block.attention(block.attention_norm(x)))
    assert not torch.allclose(model(tokens), whole(tokens))
    assert torch.equal(model.embedding.weight, whole.embedding.weight)


# ---- watched training

TASK = BigramBackcopy(length=8, symbols=8, triggers=2)


def small(seed=0):
    return AttentionOnlyLM(TASK.vocabulary, width=8, heads=1, layers=1, seed=seed)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_training_is_looked_at_before_on_the_way_and_at_the_end(optimizer):
    model, modes = small(), []

    def watch(model, step):
        modes.append((model.training, torch.is_grad_enabled()))
        return step, float(model.to_logits.weight.detach().square().sum())

    got = train_watched(
        model,
        TASK.batches(16, 0),
        steps=25,
        optimizer=optimizer,
        every=10,
        watch=watch,
        learning_rate=0.05,
    )
    assert got.steps == (0, 10, 20, 25)
    assert [step for step, _ in got.seen] == [0, 10, 20, 25]
    assert len({size for _, size in got.seen}) == 4
    assert set(modes) == {(False, False)}
    assert model.training
    assert len(got.history.loss) == 25
    assert got.history.loss[-5:].mean() < got.history.loss[:5].mean()


def test_looking_changes_nothing():
    ways = []
    for every in (1, 100):
        model = small()
        train_watched(
            model,
            TASK.batches(16, 0),
            steps=6,
            every=every,
            watch=lambda model, step: model(TASK.batch(4, 1).tokens).sum(),
        )
        ways.append(model.to_logits.weight)
    assert torch.equal(*ways)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adagrad"}, "optimizer must be one of adam, sgd"),
        ({"steps": 0}, "steps"),
        ({"every": 0}, "every"),
        ({"steps": 5, "learning_rate": 1e30, "clip": None}, "loss must stay finite"),
    ],
)
def test_wrong_settings_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        train_watched(small(), TASK.batches(4, 0), **{"steps": 3} | options)


def test_too_few_batches_are_an_error():
    with pytest.raises(ValueError, match="batches must last for steps = 3, got 1"):
        train_watched(small(), [TASK.batch(4, 0)], steps=3)
