"""The language and the vision model: no leak, all positions, one seed one model."""

import pytest
import torch

from attnlib.models import POSITIONS, AdditiveAttention, DecoderLM, VisionTransformer, sample
from attnlib.models.vision import patches

each_position = pytest.mark.parametrize("position", POSITIONS)
SMALL = {"width": 16, "heads": 2, "layers": 2}


@each_position
def test_no_position_scheme_lets_the_future_leak(position):
    model = DecoderLM(11, position=position, **SMALL)
    tokens = torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(0))
    before = model(tokens)
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 11
    after = model(changed)
    torch.testing.assert_close(after[:, :5], before[:, :5])
    assert not torch.allclose(after[:, 5:], before[:, 5:])
    torch.testing.assert_close(model(tokens[:, :5]), before[:, :5])


@each_position
def test_every_position_scheme_but_none_tells_orders_apart(position):
    """One layer without positions reads the tokens before the last as a bag."""
    model = DecoderLM(11, position=position, width=16, heads=2, layers=1).double()
    tokens = torch.tensor([[1, 2, 3, 4, 5]])
    swapped = torch.tensor([[3, 1, 2, 4, 5]])
    with torch.no_grad():
        if position == "relative":
            model.blocks[0].attention.distance_bias.normal_()
        gap = (model(tokens)[:, -1] - model(swapped)[:, -1]).abs().max()
    assert gap < 1e-12 if position == "none" else gap > 1e-4


@each_position
def test_a_vision_model_takes_every_position_scheme(position):
    model = VisionTransformer(8, 2, 10, position=position, **SMALL)
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    logits, weights = model(images, return_weights=True)
    assert logits.shape == (3, 10)
    assert weights.shape == (2, 3, 2, 17, 17)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 2, 17))
    torch.testing.assert_close(model(images), logits)


def test_mean_pooling_without_positions_ignores_the_order_of_patches():
    model = VisionTransformer(8, 4, 3, position="none", pooling="mean", **SMALL).double()
    images = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(
        model(images), model(images.flip(-2).roll(4, -1).flip(-2).roll(4, -2))
    )


def test_patches_are_cut_row_by_row():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    expected = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert patches(image, 2)[0].tolist() == expected


def test_weights_come_for_every_layer_and_rows_sum_to_one():
    model = DecoderLM(7, **SMALL)
    tokens = torch.tensor([[1, 2, 3, 4]])
    logits, weights = model(tokens, return_weights=True)
    assert weights.shape == (2, 1, 2, 4, 4)
    assert weights.triu(1).abs().max() == 0
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 1, 2, 4))
    torch.testing.assert_close(model(tokens), logits)


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: DecoderLM(
            7, position="learned", operator=AdditiveAttention, seed=seed, **SMALL
        ),
        lambda seed: VisionTransformer(4, 2, 3, seed=seed, **SMALL),
    ],
)
def test_one_seed_is_one_model_and_the_global_random_state_is_left_alone(make):
    torch.manual_seed(5)
    untouched = torch.rand(3)
    torch.manual_seed(5)
    one = make(1)
    assert torch.equal(torch.rand(3), untouched)
    same, other = make(1), make(2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.to_logits.weight, other.to_logits.weight)


def test_a_new_language_model_is_close_to_undecided():
    tokens = torch.randint(40, (8, 32), generator=torch.Generator().manual_seed(0))
    for position in POSITIONS:
        logits = DecoderLM(40, position=position)(tokens)
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].mT, tokens[:, 1:])
        assert abs(loss - torch.tensor(40.0).log()) < 0.5


def test_samples_continue_the_prompt_and_are_fixed_by_the_generator():
    model = DecoderLM(9, **SMALL)
    prompt = torch.tensor([[1, 2], [3, 4]])

    def draw(seed):
        return sample(model, prompt, 6, generator=torch.Generator().manual_seed(seed))

    assert draw(0).shape == (2, 8)
    assert torch.equal(draw(0)[:, :2], prompt)
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    cold = sample(model, prompt, 1, generator=torch.Generator(), temperature=1e-4)
    assert torch.equal(cold[:, -1], model(prompt)[:, -1].argmax(-1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DecoderLM(9, position="sinus"), "Did you mean 'sinusoidal'"),
        (lambda: VisionTransformer(8, 2, 3, position="learnt"), "Did you mean 'learned'"),
        (lambda: VisionTransformer(8, 2, 3, pooling="max"), "pooling must be one of class, mean"),
        (lambda: VisionTransformer(8, 3, 3), "patch must divide size 8, got 3"),
        (lambda: VisionTransformer(8, 2, 3)(torch.rand(1, 3, 8, 8)), "images must have shape"),
        (lambda: DecoderLM(9)(torch.tensor([[9]])), r"tokens must lie in 0 \.\.\. 8, got 9"),
        (lambda: DecoderLM(9)(torch.tensor([1, 2])), "tokens must be integers of shape"),
        (lambda: DecoderLM(9)(torch.rand(1, 2)), "got torch.float32"),
        (
            lambda: DecoderLM(9, position="learned", max_length=2)(torch.zeros(1, 3).long()),
            "at most max_length = 2 long, got 3",
        ),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
