"""The study beside chapter 8.1: its columns differ in what they are said to differ in."""

import inspect

import pytest
import torch
from page import ROOT

from attnlib.models.vision import patches
from attnlib.study import load_code

STUDY = load_code(ROOT / "chapters" / "8-vision" / "windows-and-neighbourhoods.study.py")


def test_every_cell_is_new_and_its_experiment_takes_it():
    assert len({str(cell) for cell in STUDY.CELLS}) == len(STUDY.CELLS)
    here = {
        "few images": STUDY.few_images,
        "rate": STUDY.learning_rate,
        "borders": STUDY.borders,
        "teacher": STUDY.teacher_trained_on,
    }
    runs = here | STUDY.ELSEWHERE
    for cell in STUDY.CELLS:
        options = {name: value for name, value in cell.items() if name != "experiment"}
        inspect.signature(runs[cell["experiment"]]).bind(**options, seed=0)


@pytest.mark.parametrize("layer", ["plain", "gated", "windows", "neighborhood"])
def test_models_of_a_seed_begin_alike_outside_their_attention(layer):
    plain, other = (STUDY.classifier("shapes", name, 0) for name in ("plain", layer))
    for name, parameter in plain.named_parameters():
        if "attention." not in name:
            assert torch.equal(parameter, other.get_parameter(name))
    shared = "blocks.0.attention.to_query.weight"
    assert torch.equal(plain.get_parameter(shared), other.get_parameter(shared))


def test_a_random_start_is_the_only_difference_of_the_ablation():
    started, random = (
        STUDY.classifier("shapes", name, 0) for name in ("gated", "gated, random start")
    )
    first, second = started.blocks[0].attention, random.blocks[0].attention
    assert torch.equal(first.gate, second.gate)
    assert torch.equal(first.to_value.weight, second.to_value.weight)
    assert not torch.equal(first.embedding, second.embedding)


@pytest.mark.parametrize("data", ["digits", "shapes"])
def test_shuffling_moves_the_same_tokens_in_every_image(data):
    images, _ = STUDY.test_images(data)
    shuffled, _ = STUDY.shuffle_tokens((images[:3], None), data)
    patch = 1 if data == "digits" else 2
    before, after = patches(images[:3], patch), patches(shuffled, patch)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(after, before[:, order]) and not torch.equal(after, before)


def test_no_image_is_both_trained_on_and_chosen_by_or_tested_on():
    for data in ("digits", "shapes"):
        (trained_on, _), (kept, _) = STUDY.training_images(data, 300, 0)
        tested_on, _ = STUDY.test_images(data)
        flat = [images.flatten(1) for images in (trained_on, kept, tested_on)]
        assert len(flat[0]) == len(flat[1]) == 300
        for first, second in ((0, 1), (0, 2)):
            same = torch.cdist(flat[first], flat[second]).amin(-1) < 1e-4
            assert same.sum() == 0


def test_fewer_images_are_the_first_of_more():
    (few, _), _ = STUDY.training_images("digits", 100, 1)
    (more, labels), _ = STUDY.training_images("digits", 1437, 1)
    assert torch.equal(few, more[:100]) and len(labels) == 1437
