"""One-bit weights: sorting finds the best of all sets of keys; a row keeps what it promises."""

from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlib import attend
from attnlib.read.binarized import (
    best_bits,
    binarized,
    bits_above,
    descended_bits,
    shared_value,
)
from attnlib.support import window

LENGTHS = (1, 15, 63, 100, 257)


def rows(count, keys, sharpness=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = sharpness * torch.randn(count, keys, dtype=torch.float64, generator=generator)
    return scores.softmax(-1)


def error(weights, bits):
    return ((weights - shared_value(weights, bits) * bits) ** 2).sum(-1)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 9), st.floats(0.1, 8), st.integers(0, 999))
def test_sorting_finds_the_best_of_all_sets_of_keys(keys, sharpness, seed):
    a = rows(4, keys, sharpness, seed)
    every = torch.tensor(list(product((False, True), repeat=keys)))
    least = error(a[:, None], every).amin(-1)
    torch.testing.assert_close(error(a, best_bits(a)), least, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("keys", LENGTHS)
def test_no_other_choice_beats_the_best_bits(keys):
    for sharpness in (0.1, 1, 4):
        a = rows(100, keys, sharpness)
        least = error(a, best_bits(a))
        others = [descended_bits(a), *(bits_above(a, share) for share in (0.1, 0.25, 0.5))]
        for bits in (*others, a >= a.mean(-1, keepdim=True), a >= 0.5):
            assert (least <= error(a, bits) + 1e-12).all()


def test_the_best_bits_are_those_above_half_of_their_mean():
    a = rows(500, 40)
    bits = best_bits(a)
    assert torch.equal(bits, a >= shared_value(a, bits) / 2)


def test_each_round_of_descent_lowers_the_error_or_leaves_it():
    a = rows(500, 40, sharpness=3)
    errors = [error(a, descended_bits(a, rounds)) for rounds in range(6)]
    for before, after in pairwise(errors):
        assert (after <= before + 1e-15).all()


def test_descent_can_stop_short_of_the_best():
    a = rows(2000, 40, sharpness=3)
    assert (error(a, descended_bits(a, 50)) > error(a, best_bits(a)) + 1e-6).any()


def test_a_quarter_of_the_largest_weight_is_chosen_by_hand():
    a = torch.tensor([[0.6, 0.2, 0.15, 0.05]])
    assert bits_above(a).tolist() == [[True, True, True, False]]
    assert bits_above(a, 0.5).tolist() == [[True, False, False, False]]


@pytest.mark.parametrize("scaled", [True, False])
def test_a_row_is_its_bits_times_one_number_and_keys_outside_the_support_have_none(scaled):
    q, k = torch.randn(2, 3, 30, 8, dtype=torch.float64)
    weight = binarized(lambda weights, scores: best_bits(weights), scaled=scaled)
    near = window(4)
    _, w = attend(q, k, k, support=near, weight=weight, return_weights=True)
    _, full = attend(q, k, k, support=near, return_weights=True)
    assert (w[full == 0] == 0).all()
    for row in w.flatten(0, 1):
        assert len(row[row > 0].unique()) == 1
    kept = (full * (w > 0)).sum(-1)
    torch.testing.assert_close(w.sum(-1), kept if scaled else (w > 0).sum(-1).double())


def test_a_row_without_keys_and_a_row_without_bits_read_zero():
    q, k = torch.randn(2, 1, 5, 8, dtype=torch.float64)
    nothing = torch.zeros(5, 5, dtype=torch.bool)
    weight = binarized(lambda weights, scores: best_bits(weights))
    assert attend(q, k, k, attn_mask=nothing, weight=weight).eq(0).all()
    below = binarized(lambda weights, scores: scores > 1e3)
    assert attend(q, k, k, weight=below).eq(0).all()
