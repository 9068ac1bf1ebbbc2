"""The scene denoiser: shapes, words, what it draws, what it refuses."""

import pytest
import torch

from attnlib.models.scene_denoiser import (
    SceneDenoiser,
    bound,
    draw,
    noisy_scenes,
    patch_masks,
    scene_loss,
)
from attnlib.models.vision import patches
from attnlib.tasks.scenes import MY, SOME, TOKEN, Scenes
from attnlib.training import evaluate, train


def small():
    return SceneDenoiser(width=16, heads=2, layers=1)


def test_noise_lies_on_the_line_from_the_scene_to_noise():
    noisy, level, scenes = next(noisy_scenes(Scenes(), 64, 0))
    t = level[:, None, None, None]
    noise = (noisy - (1 - t) * scenes.images) / t
    assert abs(float(noise[level > 0.2].mean())) < 0.02
    assert abs(float(noise[level > 0.2].std()) - 1) < 0.02


def test_it_learns_to_denoise():
    model = small()
    batches = noisy_scenes(Scenes(), 64, 9)
    before = evaluate(model, batches, count=1, objective=scene_loss).loss
    train(
        model,
        noisy_scenes(Scenes(), 8, 0),
        steps=60,
        warmup=5,
        objective=scene_loss,
        progress=False,
    )
    after = evaluate(model, noisy_scenes(Scenes(), 64, 9), count=1, objective=scene_loss).loss
    assert after < before / 3


def test_drawing_ends_at_the_models_guess():
    words = Scenes().batch(2, 0).words

    class Knows(torch.nn.Module):
        def forward(self, images, level, words):
            return torch.full_like(images, 0.25)

    noise = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for steps in (1, 5):
        assert torch.allclose(draw(Knows(), words, noise, steps=steps), torch.tensor(0.25))
    with pytest.raises(ValueError, match="steps"):
        draw(Knows(), words, noise, steps=0)


def test_the_words_of_an_object_know_each_other_and_no_others():
    vectors = torch.randn(1, 7, 4, generator=torch.Generator().manual_seed(0))
    changed = vectors.clone()
    changed[:, 1] += 1
    moved = (bound(changed) - bound(vectors)).abs().sum(-1)[0] > 1e-6
    assert moved.tolist() == [False, True, True, True, False, False, False]


def test_the_frozen_model_reads_my_as_some():
    noisy, level, scenes = next(noisy_scenes(Scenes(personal=True), 3, 0))
    vague = scenes.words.masked_fill(scenes.words == TOKEN[MY], TOKEN[SOME])
    model = small()
    assert torch.equal(model(noisy, level, scenes.words), model(noisy, level, vague))
    named = vague.masked_fill(vague == TOKEN[SOME], TOKEN["red"])
    assert not torch.equal(model(noisy, level, scenes.words), model(noisy, level, named))


def test_masks_of_patches_are_in_the_order_of_patches():
    masks = Scenes().batch(4, 0).masks[:, 0]
    wanted = patches(masks[:, None].float(), 2).mean(-1)
    assert torch.equal(patch_masks(masks), wanted) and wanted.shape == (4, 64)
    assert torch.allclose(wanted.sum(1) * 4, masks.sum((1, 2)).float())


def test_bad_input_is_named():
    images, level, words = torch.zeros(2, 3, 16, 16), torch.zeros(2), torch.zeros(2, 7).long()
    with pytest.raises(ValueError, match="images"):
        small()(images[:, :1], level, words)
    with pytest.raises(ValueError, match="level"):
        small()(images, level[:1], words)
    with pytest.raises(ValueError, match="words must have"):
        small()(images, level, words[:, :3])
    with pytest.raises(ValueError, match="words must lie"):
        small()(images, level, words + 99)
