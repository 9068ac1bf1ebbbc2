"""Models of the experiments of chapter 8.1: what their variants share, and what learns."""

import pytest
import torch

from attnlib.models.disc_student import (
    STUDENTS,
    GridDenoiser,
    denoising,
    distance,
    distillation,
    noisy_shapes,
    scattered,
    student_of,
)
from attnlib.models.dual_attention import LAYERS, DualAttention
from attnlib.models.pose_decoder import GROUPS, PoseDecoder, joint_error, learn_poses, supports_of
from attnlib.models.shape_experiments import WINDOWS, WindowDenoiser, row_entropy
from attnlib.patterns.grid import disc
from attnlib.read.grid_offsets import disc_offsets
from attnlib.support import dense
from attnlib.tasks.stick_figures import PARTS, StickFigures
from attnlib.training import train


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_variants_of_an_experiment_have_the_same_parameters():
    assert len({count(PoseDecoder(groups)) for groups in GROUPS}) == 1
    assert len({count(DualAttention(layers)) for layers in LAYERS}) == 1
    assert len({count(WindowDenoiser(16, window)) for window in WINDOWS.values()}) == 1
    assert {height * width for height, width in WINDOWS.values()} == {16}


def test_only_the_attention_of_a_student_learns_and_its_loss_falls():
    teacher = GridDenoiser(seed=1).requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student = student_of(teacher, "disc")
    batches, objective = noisy_shapes(16, 4, 0), distillation(teacher)
    loss = train(student, batches, steps=30, objective=objective, progress=False, warmup=5).loss
    assert loss[-5:].mean() < 0.8 * loss[:5].mean()
    changed = {
        name
        for name, tensor in student.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert changed and all(name.startswith("attentions.") for name in changed)
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_student_with_the_read_of_its_teacher_is_at_distance_zero():
    teacher = GridDenoiser(seed=1).requires_grad_(False)
    assert distance(teacher, teacher, 16, 0) == 0
    assert all(distance(student_of(teacher, name), teacher, 16, 0) > 0 for name in STUDENTS)


@pytest.mark.parametrize("student", list(STUDENTS))
def test_a_student_runs_unchanged_at_twice_the_size(student):
    model = student_of(GridDenoiser(), student)
    for size in (16, 32):
        batch = next(noisy_shapes(size, 2, 0))
        assert model(batch.images, batch.level)[0].shape == (2, 3, size, size)
        assert torch.isfinite(denoising(model, batch)[0])


def test_a_disc_of_the_student_does_not_see_further_than_its_radius():
    model = student_of(GridDenoiser(layers=1), "disc")
    batch = next(noisy_shapes(16, 1, 0))
    images = batch.images.requires_grad_()
    guess = model(images, batch.level)[0]
    slope = torch.autograd.grad(guess[0, :, 0, 0].sum(), images)[0][0].abs().sum(0)
    reached = (slope.unfold(0, 2, 2).unfold(1, 2, 2).sum((-1, -2)) > 0).flatten()
    assert torch.equal(reached, dense(disc((8, 8), 2.5), 64, 64)[0, 0, 0])


def test_scattered_keys_are_as_many_as_those_of_the_disc_and_lie_elsewhere():
    grid = (8, 8)
    near = dense(disc(grid, 2.5), 64, 64)[0, 0]
    table = scattered(grid)
    assert torch.equal(table.sum(-1), near.sum(-1)) and table.sum(-1).max() == len(
        disc_offsets(2.5, grid)
    )
    assert table.diagonal().all() and (table & near).sum() < 0.6 * near.sum()


def test_shuffled_groups_are_as_large_as_the_true_ones_and_others():
    tokens = 4 * PARTS
    for true, shuffled in zip(supports_of("grouped", 4), supports_of("shuffled", 4), strict=True):
        true, shuffled = (dense(one, tokens, tokens)[0, 0] for one in (true, shuffled))
        assert torch.equal(true.sum(-1), shuffled.sum(-1))
        assert (true & shuffled).sum() < true.sum() / 2 and torch.equal(shuffled, shuffled.mT)


def test_a_decoder_learns_and_says_how_far_it_came():
    values = learn_poses("grouped", 0, steps=100)
    assert set(values) == {"error_100", "error", "parameters"}
    fresh = joint_error(PoseDecoder("grouped"), StickFigures().batch(64, 5))[0].item()
    assert values["error"] < 0.7 * fresh


def test_rows_of_one_length_have_one_entropy_whatever_the_scale():
    both = {scale: row_entropy(scale, 64, 0)["entropy"] for scale in ("log n", "fixed")}
    assert both["log n"] == pytest.approx(both["fixed"], rel=1e-5)
    assert row_entropy("fixed", 512, 0)["entropy"] > row_entropy("log n", 512, 0)["entropy"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: student_of(GridDenoiser(), "cubic"), "attention must be one of"),
        (lambda: GridDenoiser(width=36, heads=2), "heads times 4 must divide"),
        (lambda: next(noisy_shapes(4, 1, 0)), "size must be at least 8"),
        (lambda: GridDenoiser()(torch.zeros(1, 3, 15, 15), torch.zeros(1)), "images must have"),
        (lambda: PoseDecoder("pairs"), "groups"),
        (lambda: PoseDecoder("full")(torch.zeros(1, 2, PARTS, 3)), "seen must have shape"),
        (lambda: DualAttention("neither"), "layers"),
        (lambda: row_entropy("n", 4, 0), "scale"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
