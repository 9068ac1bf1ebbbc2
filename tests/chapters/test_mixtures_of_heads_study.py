"""The study beside chapter 5.2: its models differ in what they are said to differ in."""

import inspect
from functools import partial

import pytest
import torch
from page import ROOT

from attnlib.models.mixtures.summed_heads import routings
from attnlib.study import load_code

STUDY = load_code(ROOT / "chapters" / "5-heads" / "mixtures-of-heads.study.py")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(STUDY, "STEPS", 2)
    monkeypatch.setattr(STUDY, "TUNING", {"steps": 1, "learning_rate": 1e-3, "warmup": 1})
    monkeypatch.setattr(STUDY, "test_batches", lambda text: [STUDY.TEXTS[text].batch(4, 10_000)])
    yield
    STUDY.all_heads.cache_clear()
    STUDY.training_batches.cache_clear()


def test_every_cell_is_new_and_its_experiment_takes_it():
    assert len({str(cell) for cell in STUDY.CELLS}) == len(STUDY.CELLS)
    runs = {
        "share": STUDY.share,
        "balance": STUDY.balance,
        "experts": STUDY.experts,
        "convert": STUDY.convert,
        "relu": STUDY.relu,
        "leave one out": STUDY.run_leave_one_out,
        "upcycle": STUDY.run_upcycle,
        "branches": STUDY.run_branches,
        "sub tokens": STUDY.run_sub_tokens,
    }
    for cell in STUDY.CELLS:
        options = {name: value for name, value in cell.items() if name != "experiment"}
        inspect.signature(runs[cell["experiment"]]).bind(**options, seed=0)


@pytest.mark.parametrize("active", [6, 4, 2])
@pytest.mark.parametrize("form", ["fewer", "pruned", "moa", "moh"])
def test_so_many_heads_are_on_in_every_form(form, active):
    values = STUDY.share(form=form, active=active, seed=0)
    assert values["active"] == active
    assert values["information_shuffled"] <= values["information"] + 0.05


def test_a_frozen_router_stays_as_it_began_and_another_does_not():
    for frozen in (True, False):
        make = partial(STUDY.mixture, 4)
        before = STUDY.untrained(make, 0).blocks[0].attention.to_routed.weight
        model = STUDY.trained(make, seed=0, frozen_router=frozen)
        after = model.blocks[0].attention.to_routed.weight
        assert torch.equal(before, after) == frozen


def test_pruning_keeps_the_heads_on_which_the_loss_hangs():
    model = STUDY.trained(STUDY.plain, seed=0)
    attention = model.blocks[0].attention.attention
    with torch.no_grad():
        attention.to_output.weight[:, 4 * STUDY.HEAD_WIDTH :] = 0  # heads 4 to 7 add nothing
    STUDY.prune(model, 4, 0)
    assert model.blocks[0].attention.gate.tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert model.blocks[1].attention.gate.sum() == 4


def test_the_original_is_converted_as_it_is_and_stays_as_it_was():
    original = STUDY.convert(way="original", seed=0)
    assert STUDY.convert(way="converted", seed=0)["active"] == 6
    assert STUDY.convert(way="converted, tuned", seed=0)["active"] == 6
    assert STUDY.convert(way="original", seed=0) == original


def test_dead_heads_and_zeros_are_counted_over_the_routed_heads():
    values = STUDY.relu(enhancement=0.0, seed=0, coefficient=0.0)
    assert values["zeros"] == pytest.approx(1 - (values["active"] - 2) / 6)
    assert 0 <= values["dead"] <= values["zeros"]


def test_all_models_of_a_seed_see_the_same_windows_and_tests_are_others():
    batches = STUDY.training_batches("grammar", 1, 2)
    assert batches is STUDY.training_batches("grammar", 1, 2)
    fresh = next(STUDY.TEXTS["grammar"].batches(STUDY.BATCH, 1))
    assert torch.equal(batches[0].tokens, fresh.tokens)
    model = STUDY.untrained(STUDY.plain, 0)
    STUDY.measured(model)
    tested = STUDY.test_batches("grammar")[0].tokens
    assert routings(model)[0].gates.shape[:2] == tested.shape
    assert not torch.equal(tested, fresh.tokens[: len(tested)])
