"""Personal and frozen branches: the frozen one is exact, only the personal one learns."""

from functools import partial

import pytest
import torch

from attnlib.models.mixtures.branches import (
    PersonalBranch,
    branches_of,
    forced,
    personal_loss,
    personalized,
    routed,
)
from attnlib.models.multi_head import MultiHeadAttention
from attnlib.models.scene_denoiser import SceneDenoiser, draw, noisy_scenes, patch_masks
from attnlib.read.branches import background_loss, mixed_branches, overlap
from attnlib.tasks.scenes import MY, TOKEN, Scenes
from attnlib.training import train


def small(**options):
    return SceneDenoiser(width=16, heads=2, layers=2, **options)


@pytest.fixture
def scene():
    return next(noisy_scenes(Scenes(personal=True), 3, 0))


@pytest.fixture
def trained():
    """A denoiser and its personal copy after a few steps, in which all that may move has moved."""
    model = small()
    personal = personalized(model)
    batches = noisy_scenes(Scenes(personal=True), 4, 1)
    objective = partial(personal_loss, weight=1.0)
    train(personal, batches, steps=4, warmup=1, objective=objective, progress=False)
    return model, personal


def test_the_prior_branch_is_the_original_exactly(trained, scene):
    model, personal = trained
    noisy, level, scenes = scene
    with forced(personal, 0):
        assert torch.equal(personal(noisy, level, scenes.words), model(noisy, level, scenes.words))
        assert torch.equal(draw(personal, scenes.words, noisy), draw(model, scenes.words, noisy))
    assert not torch.allclose(
        personal(noisy, level, scenes.words), model(noisy, level, scenes.words), atol=1e-4
    )


def test_only_branches_vectors_and_routers_learn(trained):
    model, personal = trained
    old = dict(model.named_parameters())
    moved = set()
    for name, parameter in personal.named_parameters():
        plain = name.replace("word_attention.frozen", "word_attention")
        if plain in old:
            assert torch.equal(parameter, old[plain]), name
        elif parameter.requires_grad:
            moved.add(name.split("word_attention.")[1].split(".")[0])
            start = old.get(name.replace("word_attention.personal", "word_attention"))
            assert start is None or not torch.equal(parameter, start), name
    assert moved == {"personal", "subject", "to_router"}


def test_both_branches_start_alike(scene):
    model = small()
    noisy, level, scenes = scene
    got = personalized(model)(noisy, level, scenes.words)
    assert torch.allclose(got, model(noisy, level, scenes.words), atol=1e-5)


def test_the_router_mixes_place_by_place():
    torch.manual_seed(0)
    layer = PersonalBranch(MultiHeadAttention(8, 2)).double()
    torch.nn.init.normal_(layer.to_router.weight)
    torch.nn.init.normal_(layer.personal.to_value.weight)
    x, words = torch.randn(2, 5, 8).double(), torch.randn(2, 3, 8).double()
    router = layer.router(x)
    assert torch.allclose(router.sum(-1), torch.ones(2, 5, dtype=torch.float64))
    wanted = router[..., :1] * layer.frozen(x, words) + router[..., 1:] * layer.personal(x, words)
    assert torch.allclose(layer(x, words), wanted, atol=1e-12)
    with forced(layer, 1):
        assert torch.equal(layer(x, words), layer.personal(x, words))


def test_only_the_personal_branch_is_told_of_the_subject():
    torch.manual_seed(0)
    layer = PersonalBranch(MultiHeadAttention(8, 2))
    torch.nn.init.normal_(layer.subject)
    x, words = torch.randn(2, 5, 8), torch.randn(2, 3, 8)
    subject = torch.tensor([[True, False, False], [False, False, False]])
    with forced(layer, 0):
        assert torch.equal(layer(x, words, subject), layer(x, words))
    with forced(layer, 1):
        told = (layer(x, words, subject) - layer(x, words)).abs().amax((1, 2))
    assert told[0] > 1e-3 and told[1] == 0


def test_force_is_gone_after_an_error_and_wrong_force_changes_nothing():
    personal = personalized(small())
    with pytest.raises(RuntimeError, match="halt"), forced(personal, 1):
        raise RuntimeError("halt")
    with pytest.raises(ValueError, match="branch"), forced(personal, 2):
        pass
    assert [layer.forced for layer in branches_of(personal)] == [None, None]


def test_the_loss_of_the_background_by_hand():
    router = torch.tensor([[[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.25, 0.75]]])
    mask = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    assert float(background_loss(router, mask)) == 0.25 / 4
    assert float(background_loss(router, 1 - mask)) == (1 + 0.5625) / 4


def test_overlap_by_hand():
    first, second = torch.tensor([1, 1, 0, 0]).bool(), torch.tensor([0, 1, 1, 0]).bool()
    assert overlap(first, second) == pytest.approx(1 / 3)
    assert overlap(first, first) == 1 and overlap(first, ~first) == 0
    assert overlap(~first & first, ~first & first) == 1


def test_the_error_counts_on_the_subject_alone(scene):
    noisy, level, scenes = scene
    personal = personalized(small())
    other = scenes._replace(
        images=torch.where(scenes.masks[:, :1], scenes.images, scenes.images + 5)
    )
    error = personal_loss(personal, scene, weight=0.0)[1]
    assert torch.allclose(error, personal_loss(personal, (noisy, level, other), weight=0.0)[1])
    total, part = personal_loss(personal, scene, weight=2.0)
    mask = patch_masks(scenes.masks[:, 0])
    wanted = 2 * background_loss(routed(personal).mean(0), mask)
    assert torch.allclose(total - part, wanted, atol=1e-6)
    assert (scenes.words == TOKEN[MY]).any(1).all()


def test_bad_input_is_named():
    with pytest.raises(TypeError, match="frozen"):
        PersonalBranch(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="model"):
        personalized(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="PersonalBranch"):
        branches_of(small())
    with pytest.raises(ValueError, match="called"):
        routed(personalized(small()))
    with pytest.raises(ValueError, match="branches"):
        mixed_branches(torch.ones(2, 3, 4), torch.ones(2, 3, 2))
    with pytest.raises(ValueError, match="router"):
        mixed_branches(torch.ones(2, 2, 3, 4), torch.ones(2, 2, 3))
    with pytest.raises(ValueError, match="router"):
        background_loss(torch.ones(2, 3, 2), torch.ones(2, 4))
    with pytest.raises(ValueError, match="bool"):
        overlap(torch.ones(3), torch.ones(3))
