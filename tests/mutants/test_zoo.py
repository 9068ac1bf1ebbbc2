"""Every wrong attention must be rejected, and for its own mistake alone."""

import pytest
import torch

import attnlib
from attnlib.conformance import check, check_positions, mutants, zoo_score
from attnlib.conformance.mutants.reads import in_chunks
from attnlib.memory.partial_read import merge
from attnlib.weight.softmax_attention import softmax_attention

# What a mutant may never fail: these promises are about other mistakes.
UNTOUCHED = {"shape of the read", "cross-attention lengths", "clear errors"}


@pytest.fixture(scope="module")
def score():
    return zoo_score()


def test_every_mutant_is_rejected(score, record_property):
    record_property("summary", str(score))
    assert [name for name, error in score.errors.items() if error is None] == []
    assert len(score.errors) >= 22


@pytest.mark.parametrize("mutant", mutants(), ids=lambda mutant: mutant.name)
def test_a_mutant_is_right_but_for_its_mistake(score, mutant):
    broken = {row.promise for row in score.errors[mutant.name].report.broken}
    assert not broken & UNTOUCHED


@pytest.mark.parametrize(
    ("name", "promise", "words"),
    [
        ("mask-shifted-late", "no leak from the future", "row 0 sees key 1, which lies in its"),
        ("mask-shifted-late", "no leak from the future", "the mask is shifted by one"),
        ("mask-after-softmax", "no leak from the future", "no causal mask is applied"),
        ("mask-bottom-right", "no leak from the future", "bottom right corner"),
        ("offset-ignored", "equality with the oracle", "query_offset=3"),
        ("padding-in-the-denominator", "masked keys change nothing", "2 padded keys"),
        ("mask-too-weak", "masked keys change nothing", "padded key with a high score"),
        ("mask-of-the-first-sequence", "each sequence its own mask", "sequence 1"),
        ("empty-row-uniform", "empty support reads zero", "its weights are uniform"),
        ("empty-row-nan", "empty support reads zero", "nan"),
        ("no-max-subtraction", "finite range", "subtract the largest score"),
        ("key-heads-tiled", "grouped-query heads", "repeat_interleave, not repeat"),
        ("heads-mixed", "head independence", "heads are mixed"),
        ("input-changed", "inputs not changed", "query is changed by the call"),
        ("softmax-over-queries", "weights sum to one", "not to one"),
        ("uniform-over-the-tensor", "appending changes nothing before", "length of the whole"),
        ("weights-without-gradient", "gradients", "the gradient of query"),
        ("single-precision-inside", "equality with the oracle", "off by"),
        ("state-is-stale", "token by token", "its own key is not in the state yet"),
        ("step-without-offset", "token by token", "lacks its query_offset"),
        ("rope-paired-wrongly", "scores depend on i - j", "which coordinates are paired"),
        ("rope-without-minus", "lengths are kept", "this is no rotation"),
    ],
)
def test_the_message_says_what_is_wrong(score, name, promise, words):
    notes = {row.promise: row.note for row in score.errors[name].report.broken}
    assert words in notes[promise]


def test_the_frames_of_the_mutants_are_right_without_their_mistake():
    def chunked(query, key, value, **options):
        return in_chunks(query, key, value, merge, options)

    chunked.__signature__ = mutants("check")[0].function.__signature__
    assert not check(chunked, oracle=softmax_attention).broken
    assert not check_positions(attnlib.score.rotate).broken


def test_mutants_have_a_name_a_docstring_and_an_own_function():
    zoo = mutants()
    assert len({mutant.name for mutant in zoo}) == len({mutant.function for mutant in zoo}) == 31
    assert all(mutant.what_is_wrong.endswith(".") for mutant in zoo)
    assert {mutant.meant_for for mutant in zoo} == {"check", "step", "positions"}


@pytest.mark.parametrize("mutant", mutants("check"), ids=lambda mutant: mutant.name)
def test_a_mutant_has_the_right_shape_so_that_shape_tests_miss_it(mutant):
    query, key, value = (torch.randn(2, 2, 5, 4) for _ in range(3))
    assert mutant.function(query, key, value).shape == (2, 2, 5, 4)
