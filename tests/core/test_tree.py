"""Parts merge in a tree: any grouping, any order, in a logarithm of rounds; energy and read."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlib import attend, tree_attention
from attnlib.memory import PartialRead, empty_read, energy, finish, merge, merge_tree, partial_read
from attnlib.score import alibi
from attnlib.support import sink

QUICK = settings(derandomize=True, deadline=None, max_examples=60)
LENGTHS = [1, 15, 63, 100, 257]
seeds = st.integers(min_value=0, max_value=2**31)


def draw(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def close(a, b):
    return torch.allclose(a, b, rtol=1e-12, atol=1e-12)


def same(a, b):
    return torch.equal(a.max, b.max) and all(
        close(x, y) for x, y in ((a.total, b.total), (a.read, b.read))
    )


@st.composite
def splits(draw_from):
    """Keys with a mask that may close whole rows, cut into parts that may be empty."""
    sizes = draw_from(st.lists(st.integers(0, 4), min_size=1, max_size=9))
    seed = draw_from(seeds)
    keys = sum(sizes)
    query, key, value = draw((2, 5, 4), (2, keys, 4), (2, keys, 3), seed=seed)
    density = draw_from(st.sampled_from([0.0, 0.3, 1.0]))
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(2, 5, keys, generator=generator) < density
    mask[0, 0] = False  # a row that sees no key of any part
    size = draw_from(st.sampled_from([1.0, 30.0, 1000.0]))
    return size * query, key, value, mask, sizes


def parts_of(query, key, value, mask, sizes):
    scores = query @ key.mT / 2
    cut = zip(scores.split(sizes, -1), value.split(sizes, -2), mask.split(sizes, -1), strict=True)
    return [
        partial_read(*columns) if columns[0].shape[-1] else empty_read(query, value.shape[-1])
        for columns in cut
    ]


def any_grouping(parts, choose):
    """Merges two neighbors at a time, wherever `choose` says, until one part is left."""
    parts = list(parts)
    while len(parts) > 1:
        at = choose.randrange(len(parts) - 1)
        parts[at : at + 2] = [merge(*parts[at : at + 2])]
    return parts[0]


@QUICK
@given(splits(), st.randoms(use_true_random=False))
def test_any_grouping_and_any_order_of_parts_give_the_dense_read(split, choose):
    query, key, value, mask, _ = split
    expected = attend(query, key, value, attn_mask=mask)
    parts = parts_of(*split)
    choose.shuffle(parts)
    assert close(finish(merge_tree(parts)[0]), expected)
    assert close(finish(any_grouping(parts, choose)), expected)
    assert not expected[0, 0].any()


@QUICK
@given(splits(), st.randoms(use_true_random=False))
def test_a_tree_gives_the_same_part_as_any_other_grouping(split, choose):
    parts = parts_of(*split)
    assert same(merge_tree(parts)[0], any_grouping(parts, choose))


@QUICK
@given(splits(), st.integers(0, 9))
def test_empty_parts_anywhere_change_nothing(split, at):
    parts = parts_of(*split)
    nothing = empty_read(split[0], split[2].shape[-1])
    more = [*parts[:at], nothing, *parts[at:], nothing]
    assert same(merge_tree(more)[0], merge_tree(parts)[0])


def test_a_tree_of_p_parts_takes_as_many_rounds_as_the_logarithm_says():
    part = empty_read(torch.zeros(1, 1, dtype=torch.float64), 1)
    for count in range(1, 34):
        assert merge_tree([part] * count)[1] == math.ceil(math.log2(count))


def test_a_tree_of_p_parts_takes_p_minus_one_merges(monkeypatch):
    merges = []

    def counted(a, b):
        merges.append(1)
        return merge(a, b)

    monkeypatch.setattr("attnlib.memory.tree.merge", counted)
    part = empty_read(torch.zeros(1, 1), 1)
    for count in range(1, 34):
        merges.clear()
        merge_tree([part] * count)
        assert len(merges) == count - 1


def test_no_parts_make_no_tree():
    with pytest.raises(ValueError, match="parts must hold at least one"):
        merge_tree([])


def test_the_parts_that_are_given_stay_as_they_are():
    parts = parts_of(*draw((2, 5, 4), (2, 6, 4), (2, 6, 3)), torch.ones(2, 5, 6) > 0, [3, 1, 2])
    kept = [PartialRead(*(x.clone() for x in part)) for part in parts]
    merge_tree(parts)
    assert len(parts) == 3
    assert all(same(part, before) for part, before in zip(parts, kept, strict=True))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("shards", [1, 2, 3, 7, 300])
def test_the_number_of_shards_does_not_change_the_read(length, shards):
    inputs = draw((2, 5, 4), (2, length, 4), (2, length, 3), seed=length)
    assert close(tree_attention(*inputs, shards=shards), attend(*inputs))
    offset = max(0, length - 5)
    options = {"is_causal": True, "query_offset": offset}
    assert close(tree_attention(*inputs, shards=shards, **options), attend(*inputs, **options))


@pytest.mark.parametrize("length", LENGTHS)
def test_each_shard_gets_its_own_columns_of_a_mask_a_support_and_a_score_change(length):
    inputs = draw((2, 2, 5, 4), (2, 2, length, 4), (2, 2, length, 3), seed=length)
    mask = torch.rand(2, 2, 5, length, generator=torch.Generator().manual_seed(length)) < 0.5
    options = {"attn_mask": mask, "support": sink(9), "score_mod": alibi(2)}
    assert close(tree_attention(*inputs, **options), attend(*inputs, **options))


def test_the_gradient_of_the_tree_is_that_of_the_dense_read():
    reads = []
    for attention in (tree_attention, attend):
        inputs = [x.requires_grad_() for x in draw((2, 7, 4), (2, 63, 4), (2, 63, 3))]
        reads.append(torch.autograd.grad(attention(*inputs).square().sum(), inputs))
    assert all(close(a, b) for a, b in zip(*reads, strict=True))


def test_shards_must_be_at_least_one():
    with pytest.raises(ValueError, match="shards must be at least 1, got 0"):
        tree_attention(*draw((2, 4), (3, 4), (3, 4)), shards=0)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("is_causal", [False, True])
def test_the_slope_of_the_energy_without_a_source_is_the_read(length, is_causal):
    query, key, value = draw((2, length, 4), (2, length, 4), (2, length, 3), seed=length)
    source = torch.zeros_like(value).requires_grad_()
    total = energy(query, key, value, source, is_causal=is_causal).sum()
    (slope,) = torch.autograd.grad(total, source)
    assert close(slope, attend(query, key, value, is_causal=is_causal))


def test_the_second_slope_of_the_energy_is_the_covariance_of_the_values_under_the_weights():
    query, key, value = draw((1, 4), (15, 4), (15, 3))

    def of_source(source):
        return energy(query, key, value, source[None])[0]

    bend = torch.autograd.functional.hessian(of_source, torch.zeros(3, dtype=torch.float64))
    read, weights = attend(query, key, value, return_weights=True)
    spread = value - read
    assert close(bend, spread.T @ (weights.T * spread))
    assert torch.linalg.eigvalsh(bend).min() > 0


def test_the_energy_of_two_parts_is_the_logaddexp_of_their_energies():
    query, key, value, source = draw((2, 5, 4), (2, 9, 4), (2, 9, 3), (2, 5, 3))
    left = energy(query, key[:, :4], value[:, :4], source)
    right = energy(query, key[:, 4:], value[:, 4:], source)
    assert close(torch.logaddexp(left, right), energy(query, key, value, source))


def test_the_energy_is_the_maximum_and_the_total_of_the_partial_read():
    query, key, value = draw((2, 5, 4), (2, 9, 4), (2, 9, 3))
    part = partial_read(query @ key.mT / 2, value)
    without = energy(query, key, value, torch.zeros(2, 5, 3, dtype=torch.float64))
    assert close(without[..., None], part.max + part.total.log())


@pytest.mark.parametrize("keys", [0, 4])
def test_a_query_without_keys_has_energy_minus_infinity_and_slope_zero(keys):
    query, key, value, source = draw((5, 4), (keys, 4), (keys, 3), (5, 3))
    source.requires_grad_()
    nobody = torch.zeros(5, keys, dtype=torch.bool)
    got = energy(query, key, value, source, attn_mask=nobody)
    assert (got == -torch.inf).all()
    (slope,) = torch.autograd.grad(got.sum(), source)
    assert not slope.any()


def test_large_scores_keep_the_energy_and_its_slope_finite():
    query, key, value = draw((5, 4), (9, 4), (9, 3))
    source = torch.zeros(5, 3, dtype=torch.float64, requires_grad=True)
    got = energy(1e4 * query, key, value, source)
    (slope,) = torch.autograd.grad(got.sum(), source)
    assert got.isfinite().all() and close(slope, attend(1e4 * query, key, value))


def test_a_source_of_another_width_is_named():
    query, key, value, source = draw((5, 4), (9, 4), (9, 3), (5, 4))
    with pytest.raises(ValueError, match=r"source must have shape \(5, 3\)"):
        energy(query, key, value, source)
