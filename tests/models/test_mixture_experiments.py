"""The runs of chapter 5.2's study: cells that exist, numbers that mean what they say."""

import math

import pytest
import torch

from attnlib.models.language import DecoderLM
from attnlib.models.mixtures.mixture_experiments import (
    dense_seeds,
    excess,
    held_out_loss,
    highest,
    parameters,
    run_branches,
    run_leave_one_out,
    run_sub_tokens,
    run_upcycle,
    scene_prior,
)
from attnlib.tasks import Markov


def test_all_but_one_and_plain_heads_start_alike():
    start = [
        run_leave_one_out(training=training, text="markov", seed=0, steps=1)
        for training in ("plain", "joint")
    ]
    assert math.isclose(start[0]["excess"], start[1]["excess"], abs_tol=2e-3)
    assert start[1]["parameters"] > start[0]["parameters"]
    blocks = run_leave_one_out(training="block", text="markov", seed=0, steps=6)
    assert math.isclose(blocks["spread"], math.log(8), abs_tol=0.01)
    assert math.isclose(blocks["information"], blocks["spread"] - blocks["entropy"], abs_tol=1e-6)


def test_upcycled_runs_start_from_their_dense_models():
    every = run_upcycle(what="all", seeds="identical", seed=0, steps=2)
    assert math.isclose(every["start"], every["dense"], abs_tol=1e-4)
    perceptrons = run_upcycle(what="perceptrons", seeds="identical", seed=0, steps=2)
    assert math.isclose(perceptrons["start"], every["start"], abs_tol=1e-4)
    assert perceptrons["parameters"] < every["parameters"]
    task, dense = dense_seeds("tables", 0, 2)
    assert task.distances == (1, 1, 1) and len({id(model) for model in dense}) == 3


def test_branches_that_learnt_nothing_change_nothing():
    values = run_branches(training="none", seed=0, prior_steps=2, steps=1)
    assert values["background"] < 1e-4 and values["subject"] < 1e-4
    assert values["error"] == pytest.approx(values["error_prior"], abs=1e-4)
    learnt = run_branches(training="penalty 10", seed=0, prior_steps=2, steps=8)
    assert learnt["subject"] > values["subject"]
    assert scene_prior(0, 2) is scene_prior(0, 2)


def test_parts_cost_alike_and_experts_in_use_are_counted():
    values = [run_sub_tokens(parts=parts, seed=0, steps=1) for parts in (1, 4)]
    assert values[0]["operations"] == values[1]["operations"]
    assert all(1 <= one["in_use"] <= 8 and one["largest"] >= 1 / 8 for one in values)


def test_the_highest_places_of_each_row():
    values = torch.tensor([[0.1, 0.9, 0.5, 0.2], [4.0, 3.0, 2.0, 1.0]])
    assert highest(values, torch.tensor([2, 1])).tolist() == [
        [False, True, True, False],
        [True, False, False, False],
    ]


def test_excess_is_over_the_reader_who_knows():
    class Knows(torch.nn.Module):
        def forward(self, tokens):
            return task.table[tokens].log()

    task = Markov(length=12, symbols=6)
    assert abs(excess(Knows(), task)) < 1e-5
    assert held_out_loss(Knows(), task) > 0.1
    model = DecoderLM(6, width=8, heads=2, layers=1)
    assert excess(model, task) > 0.1 and parameters(model) > 0


def test_unknown_cells_are_named():
    with pytest.raises(ValueError, match="training"):
        run_leave_one_out(training="both", text="grammar", seed=0)
    with pytest.raises(ValueError, match="text"):
        run_leave_one_out(training="plain", text="novel", seed=0)
    with pytest.raises(ValueError, match="what"):
        run_upcycle(what="none", seeds="domains", seed=0)
    with pytest.raises(ValueError, match="seeds"):
        run_upcycle(what="all", seeds="many", seed=0)
    with pytest.raises(ValueError, match="training"):
        run_branches(training="router", seed=0)
    with pytest.raises(ValueError, match="parts"):
        run_sub_tokens(parts=5, seed=0, steps=1)
