"""Mechanisms that are no read of (query, key, value): filed, but not taken as operators."""

import json

import pytest
import torch

import attnlib
from attnlib import Promises, Taxonomy
from attnlib.atlas import all_mechanisms, export, get, mechanism, operators, registry
from attnlib.conformance import ConformanceError, check
from attnlib.models import DecoderLM, MultiHeadAttention, VisionTransformer

FACTS = {
    "key": "other-form",
    "step": "read",
    "idea": "a form for this test",
    "equation": "o",
    "cost": "none",
    "promises": None,
    "taxonomy": Taxonomy("self", "single", "soft", "single"),
}
OTHERS = ["bidaf", "pointer-networks"]


@pytest.fixture
def own_table(monkeypatch):
    monkeypatch.setattr(registry, "_table", dict(registry._table))


def other(sequence):
    return 2 * sequence


def test_it_is_filed_and_runs_by_its_key(own_table):
    assert mechanism(**FACTS)(other) is other
    assert get("other-form").promises is None
    assert get("other-form")(3) == 6
    assert get("other-form") in all_mechanisms()


def test_it_is_no_operator(own_table):
    before = operators()
    mechanism(**FACTS)(other)
    assert operators() == before


def test_operators_are_the_entries_that_promise_something():
    keys = {entry.key for entry in operators()}
    assert {"softmax", "additive", "memory-efficient-attention"} <= keys
    assert not keys & set(OTHERS)
    assert all(isinstance(entry.promises, Promises) for entry in operators())
    rest = [entry for entry in all_mechanisms() if entry.key not in keys]
    assert all(entry.promises is None for entry in rest)


def test_its_facts_are_exported_without_promises(own_table):
    mechanism(**FACTS)(other)
    exported = {entry["key"]: entry for entry in json.loads(export.as_json())["mechanisms"]}
    for key in ("other-form", *OTHERS):
        assert exported[key]["promises"] is None
        assert exported[key]["idea"] and exported[key]["taxonomy"]["sequences"]
    assert exported["softmax"]["promises"]["causal"] is True


def test_saying_nothing_about_promises_is_an_error(own_table):
    without = {name: fact for name, fact in FACTS.items() if name != "promises"}
    with pytest.raises(TypeError, match="promises"):
        mechanism(**without)
    with pytest.raises(TypeError, match="promises must be"):
        mechanism(**FACTS | {"promises": False})


@pytest.mark.parametrize("key", OTHERS)
def test_the_check_refuses_it_with_its_name_and_the_form_that_it_needs(key):
    entry = get(key)
    for given in (entry, entry.function):
        with pytest.raises(ValueError, match=r"\(query, key, value, \.\.\.\) -> read") as caught:
            check(given)
        assert not isinstance(caught.value, ConformanceError)
        assert str(caught.value).startswith("function must") and entry.name in str(caught.value)


def test_the_check_runs_where_promises_are_given(own_table):
    def read(query, key, value):
        return attnlib.attend(query, key, value)

    mechanism(**FACTS)(read)
    assert check(read, Promises(), oracle=attnlib.attend).kept
    with pytest.raises(ConformanceError):
        check(attnlib.bidirectional_attention, Promises())


@pytest.mark.parametrize("key", OTHERS)
def test_models_refuse_it_by_name(key):
    models = (
        lambda operator: DecoderLM(9, operator=operator),
        lambda operator: VisionTransformer(8, 4, 3, operator=operator),
        lambda operator: MultiHeadAttention(8, 2, operator=operator),
    )
    for build in models:
        for given in (key, get(key)):
            with pytest.raises(ValueError, match=f"operator must have the form .*{key!r}"):
                build(given)


def test_models_refuse_the_function_of_a_pointer():
    with pytest.raises(ValueError, match=r"operator must have the form .*pointer-networks"):
        MultiHeadAttention(8, 2, operator=attnlib.pointer_attention)


def test_models_refuse_the_function_of_a_read_in_two_directions():
    with pytest.raises(ValueError, match="operator must have the form"):
        MultiHeadAttention(8, 2, operator=attnlib.bidirectional_attention)


def test_a_function_of_the_right_form_outside_the_atlas_is_still_welcome():
    def mine(query, key, value):
        return attnlib.attend(query, key, value)

    x = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(0))
    assert MultiHeadAttention(8, 2, operator=mine)(x).shape == (1, 3, 8)
