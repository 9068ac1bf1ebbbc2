"""The study beside chapter 6.1: its columns read as many keys as they say and differ in no more."""

import copy
import inspect

import pytest
import torch
from page import ROOT

from attnlib.models import content_routing_experiments as experiments
from attnlib.models.content_routing_experiments import causal_pairs, size_for
from attnlib.study import load_code

STUDY = load_code(ROOT / "chapters" / "6-sparse" / "content-routing.study.py")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    made, train_once = {}, STUDY.trained.__wrapped__

    def barely_trained(form, seed):
        key = form, seed
        if key not in made:
            made[key] = train_once(form, seed, steps=1)
        return made[key]

    monkeypatch.setattr(STUDY, "trained", barely_trained)
    monkeypatch.setattr(STUDY, "tested", lambda model, times: STUDY.evaluate(model, batches(times)))
    monkeypatch.setattr(STUDY, "TIMES", (1, 2))


def batches(times):
    return [STUDY.TASK.at(64 * times).batch(4, 0)]


def test_every_cell_is_new_and_its_experiment_takes_it():
    assert len({str(cell) for cell in STUDY.CELLS}) == len(STUDY.CELLS)
    for cell in STUDY.CELLS:
        options = {name: given for name, given in cell.items() if name != "experiment"}
        if cell["experiment"] in STUDY.OTHERS:
            inspect.signature(STUDY.OTHERS[cell["experiment"]]).bind(**options, seed=0)


@pytest.mark.parametrize("form", ["window", "moba", "landmark"])
def test_a_question_reads_as_few_keys_at_any_length(form):
    values = STUDY.run({"experiment": "needle", "form": form}, 0)
    keys = 24 if form == "window" else 22.5  # the own block is not full yet
    assert values["keys_1"] == values["keys_2"] == keys


def test_full_attention_and_all_blocks_read_everything():
    for form in ("full", "landmark, all"):
        values = STUDY.run({"experiment": "needle", "form": form}, 0)
        assert (values["keys_1"], values["keys_2"]) == (62.5, 126.5)
    values = STUDY.run({"experiment": "taken", "top_k": "all"}, 0)
    assert values["keys"] == 254.5
    again = STUDY.run({"experiment": "taken", "top_k": 2}, 0)
    assert again["keys"] == 14.5


def test_all_forms_have_the_same_parameters_but_for_the_landmark_token():
    counts = {
        form: STUDY.run({"experiment": "needle", "form": form}, 0)["parameters"]
        for form in ("full", "window", "moba", "routing", "landmark")
    }
    embedding_and_logits = 2 * STUDY.SIZES["width"]
    assert counts.pop("landmark") == counts["full"] + embedding_and_logits
    assert len(set(counts.values())) == 1


def test_a_switch_takes_the_weights_and_changes_the_attention():
    same = STUDY.run({"experiment": "switch", "trained": "moba", "tested": "moba"}, 0)
    model = STUDY.trained("moba", 0)
    assert same["loss"] == STUDY.tested(model, 1).loss
    other = STUDY.run({"experiment": "switch", "trained": "moba", "tested": "window"}, 0)
    assert other["loss"] != same["loss"]


def test_training_and_tests_draw_other_texts():
    first = STUDY.TASK.batch(32, 0).tokens
    assert not torch.equal(first[:16], STUDY.TASK.batch(16, STUDY.TEST_SEED).tokens)


@pytest.mark.parametrize("form", ["moba", "landmark"])
def test_past_blocks_by_the_forms_own_rule_are_the_form_and_others_read_as_many_keys(form):
    model, tokens = STUDY.trained(form, 0), batches(2)[0].tokens
    by_rule = {rule: copy.deepcopy(model) for rule in ("best", "nearest", "random")}
    for rule, changed in by_rule.items():
        for block in getattr(changed, "decoder", changed).blocks:
            block.attention.operator = STUDY.PastBlocksBy(form, rule)
        assert STUDY.keys_read(changed, 2) == 22.5
    if form == "landmark":
        model.retrieve(STUDY.TAKEN - 1)
    with torch.no_grad():
        torch.testing.assert_close(by_rule["best"](tokens), model(tokens), rtol=0, atol=1e-5)
        assert (by_rule["nearest"](tokens) - model(tokens)).abs().max() > 0.01


def test_pairs_of_a_support_are_counted_after_the_causal_rule():
    assert causal_pairs(torch.ones(64, 64, dtype=torch.bool)) == 64 * 65 / 2
    assert size_for(4 * 16 * 17 / 2) == 16


def test_a_frozen_router_stays_as_it_began_and_the_rest_is_trained(monkeypatch):
    monkeypatch.setattr(experiments, "STEPS", 1)
    monkeypatch.setattr(experiments, "ROUTER_STEPS", 2)
    made = {
        router: experiments.grouped_model.__wrapped__("interleaved", 0, router).blocks[0].attention
        for router in ("random", "frozen", "learned")
    }
    routes = {router: layer.to_route.weight for router, layer in made.items()}
    assert torch.equal(routes["frozen"], routes["random"])
    assert not torch.equal(routes["learned"], routes["random"])
    values = [made[router].attention.to_value.weight for router in ("random", "frozen")]
    assert not torch.equal(*values)
