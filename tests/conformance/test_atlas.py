"""The atlas holds true facts, refuses wrong ones, and the stored copy is current."""

import dataclasses
import json

import pytest
import torch

import attnlib
from attnlib import Promises, Taxonomy
from attnlib.atlas import STEPS, all_mechanisms, entry_of, export, get, mechanism, registry

FACTS = {
    "key": "trial",
    "step": "weight",
    "idea": "an attention for this test",
    "equation": "o",
    "cost": "none",
    "promises": Promises(causal=False, grouped_query=False, padding=False),
    "taxonomy": Taxonomy("self", "single", "soft", "single"),
}


def read(query, key, value):
    return value


@pytest.fixture(autouse=True)
def own_table(monkeypatch):
    monkeypatch.setattr(registry, "_table", dict(registry._table))


def test_the_decorator_returns_the_function_unchanged_and_knows_its_name():
    assert mechanism(**FACTS)(read) is read
    entry = get("trial")
    assert entry.function is read and entry is entry_of(read)
    assert (entry.name, entry.module) == ("read", __name__)


def test_calling_an_entry_runs_the_mechanism():
    query = torch.randn(2, 3, 4)
    assert torch.equal(
        attnlib.get("softmax")(query, query, query, is_causal=True),
        attnlib.softmax_attention(query, query, query, is_causal=True),
    )


def test_the_same_key_twice_is_an_error():
    mechanism(**FACTS)(read)
    with pytest.raises(ValueError, match="key must be new: 'trial'"):
        mechanism(**FACTS)


def test_an_unknown_step_is_an_error():
    with pytest.raises(ValueError, match="step must be one of"):
        mechanism(**FACTS | {"step": "feed-forward"})


def test_an_unknown_promise_is_an_error():
    with pytest.raises(TypeError, match="fast"):
        Promises(fast=True)
    with pytest.raises(TypeError, match="promises must be"):
        mechanism(**FACTS | {"promises": {"causal": True}})


@pytest.mark.parametrize("promise", ["causal", "grouped_query", "padding"])
def test_a_promise_about_an_argument_that_is_not_taken_is_an_error(promise):
    promises = dataclasses.replace(FACTS["promises"], **{promise: True})
    with pytest.raises(ValueError, match=f"{promise}=True needs an argument"):
        mechanism(**FACTS | {"promises": promises})(read)


def test_promises_and_tags_outside_their_range_are_errors():
    with pytest.raises(ValueError, match="error must be given"):
        Promises(exact=False)
    with pytest.raises(ValueError, match="score_range"):
        Promises(score_range=-1)
    with pytest.raises(ValueError, match="dtypes"):
        Promises(dtypes=(torch.int64,))
    with pytest.raises(ValueError, match="positions must be one of"):
        Taxonomy("self", "single", "wide", "single")


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'softmax'"):
        attnlib.get("sofmax")


def test_the_stored_atlas_is_current():
    assert export.path().read_text(encoding="utf-8") == export.as_json(), (
        "book/atlas.json is stale: run python -m attnlib.atlas"
    )


def test_the_export_is_sorted_and_whole():
    entries = json.loads(export.as_json())["mechanisms"]
    keys = [entry["key"] for entry in entries]
    assert keys == sorted(keys) and {"additive", "memory-efficient-attention", "softmax"} <= set(
        keys
    )
    for entry in entries:
        assert entry["step"] in STEPS and entry["cost"] and entry["idea"] and entry["equation"]
        assert set(entry["taxonomy"]) == {"sequences", "levels", "positions", "representations"}


def test_papers_of_mechanisms_are_in_the_list_of_papers():
    papers = pytest.importorskip("attnlib.papers").load()
    named = {entry.paper for entry in all_mechanisms()} - {None}
    assert named <= set(papers)
