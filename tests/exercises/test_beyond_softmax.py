"""The checkers of chapter 2.1 ask for what can be measured, and know their own wrong answers."""

import math

import numpy
import pytest
import torch

from attnlib.exercises import beyond_softmax, beyond_softmax_programs, beyond_softmax_signed
from attnlib.exercises.registry import ExerciseError, _exercises
from attnlib.weight.entmax import entmax15
from attnlib.weight.softmax import softmax
from attnlib.weight.softplus import (
    length_scaled_softmax,
    length_scaled_softplus,
    reweighted_softplus,
)

MODULES = beyond_softmax, beyond_softmax_programs, beyond_softmax_signed
OURS = {number: e for number, e in _exercises.items() if number.startswith("2.1.")}


def test_seven_of_the_eight_exercises_are_checked():
    assert sorted(OURS) == [f"2.1.{number}" for number in range(1, 8)]
    assert len(MODULES) == 3


@pytest.mark.parametrize("number", OURS)
def test_the_solution_is_right_and_every_mutant_is_refused_in_its_own_words(number):
    exercise = OURS[number]
    assert exercise.checker(exercise.solution).endswith(".")
    for mutant in exercise.mutants:
        with pytest.raises(ExerciseError) as refusal:
            exercise.checker(mutant.answer)
        assert mutant.says in str(refusal.value)


def measured(weight, seed):
    generator = torch.Generator().manual_seed(seed)
    lengths, keys_read = [64, 128, 256, 512, 1024, 2048], []
    for n in lengths:
        scores = torch.randn(200, n, generator=generator)
        w = weight(scores, torch.ones_like(scores, dtype=torch.bool))
        keys_read.append(-torch.special.xlogy(w, w).sum(-1).mean().item())
    return numpy.polyfit(numpy.log(lengths), keys_read, 1)[0]


def test_the_slopes_that_are_asked_for_are_those_that_are_measured():
    weights = softmax, length_scaled_softmax, length_scaled_softplus, reweighted_softplus
    for seed in (7, 8):
        slopes = [measured(weight, seed) for weight in weights]
        assert numpy.allclose(slopes, beyond_softmax.SLOPES, atol=0.05)
        assert "under softmax" in OURS["2.1.7"].checker(slopes)


def test_the_numbers_by_hand_are_those_of_the_library():
    scores = torch.tensor([[2.0, 1.6, -1.0]], dtype=torch.float64, requires_grad=True)
    weights = entmax15(scores, torch.ones(1, 3, dtype=torch.bool))
    (slope,) = torch.autograd.grad(weights[0, 0], scores)
    answer = (0.2, *weights[0].tolist(), 0.4, slope[0, 0].item())
    assert OURS["2.1.2"].checker(answer)
    sums = [8 * torch.sigmoid(torch.tensor(b)).item() for b in (0.0, -math.log(8))]
    score = math.log(9) + math.log(8)
    assert OURS["2.1.1"].checker((*sums, -math.log(7), sums[1] / 4, score))
