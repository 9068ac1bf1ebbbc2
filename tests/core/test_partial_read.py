"""Unfinished reads merge in any order and grouping, as a monoid should."""

import functools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlib import attend
from attnlib.memory import empty_read, finish, merge, partial_read

QUICK = settings(derandomize=True, deadline=None, max_examples=60)
seeds = st.integers(min_value=0, max_value=2**31)


def part(seed, keys=3, allowed=0.7, size=10.0):
    """A read of some keys; rows may have none of them allowed, and scores may be large."""
    generator = torch.Generator().manual_seed(seed)
    scores = size * torch.randn(2, 4, keys, generator=generator, dtype=torch.float64)
    value = torch.randn(2, keys, 3, generator=generator, dtype=torch.float64)
    mask = torch.rand(2, 4, keys, generator=generator) < allowed
    return partial_read(scores, value, mask)


def same(a, b):
    return torch.equal(a.max, b.max) and all(
        torch.allclose(x, y, rtol=1e-12, atol=1e-12)
        for x, y in ((a.total, b.total), (a.read, b.read), (finish(a), finish(b)))
    )


@QUICK
@given(seeds, seeds, seeds)
def test_merging_is_associative(a, b, c):
    a, b, c = part(a), part(b, keys=1), part(c, size=1000.0)
    assert same(merge(merge(a, b), c), merge(a, merge(b, c)))


@QUICK
@given(seeds, seeds)
def test_merging_is_commutative(a, b):
    assert same(merge(part(a), part(b)), merge(part(b), part(a)))


@QUICK
@given(seeds)
def test_the_empty_read_is_neutral(seed):
    read = part(seed)
    nothing = empty_read(torch.zeros(2, 4, 5, dtype=torch.float64), 3)
    assert same(merge(nothing, read), read) and same(merge(read, nothing), read)
    assert not finish(nothing).any()


@QUICK
@given(
    seeds, st.lists(st.integers(1, 5), min_size=1, max_size=5), st.randoms(use_true_random=False)
)
def test_any_split_of_the_keys_in_any_order_gives_the_whole_read(seed, sizes, shuffle):
    generator = torch.Generator().manual_seed(seed)
    keys = sum(sizes)
    query, key, value = (
        torch.randn(2, length, 4, generator=generator, dtype=torch.float64)
        for length in (6, keys, keys)
    )
    scores = query @ key.mT / 2
    parts = [
        partial_read(s, v)
        for s, v in zip(scores.split(sizes, -1), value.split(sizes, -2), strict=True)
    ]
    shuffle.shuffle(parts)
    got = finish(functools.reduce(merge, parts))
    assert torch.allclose(got, attend(query, key, value), rtol=1e-12, atol=1e-12)
