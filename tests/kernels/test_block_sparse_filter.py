"""What filtered_block_sparse_attention promises: its rule, its bound, what it leaves unread."""

import math

import pytest
import torch
from attnlib.kernels import block_sparse_attention, filtered_block_sparse_attention
from attnlib.kernels.block_sparse_attention_proof import support_of

SIZE = 16


def peaked(queries, keys, seed=0):
    """Rows whose scores differ much from block to block, so that some tiles can be left out."""
    draw = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(count, 8, generator=draw, dtype=torch.float64)
        for count in (queries, keys, keys)
    )
    strength = torch.tensor([0.0, 14.0, 2.0, 10.0]).repeat_interleave(SIZE)[:keys, None]
    query[:, 0], key[:, :1] = 3.0, strength
    return query, key, value


def by_the_rule(query, key, value, skip_below, is_causal=False):
    """The rule in plain torch: (read, tiles left out of each query block, weights left out)."""
    scale = query.shape[-1] ** -0.5
    everything = torch.ones(-(-len(query) // SIZE), -(-len(key) // SIZE), dtype=torch.bool)
    support = support_of(query, key, everything, SIZE, is_causal=is_causal)
    scores = torch.where(support, scale * query @ key.mT, -torch.inf)
    left_out = torch.zeros_like(support)
    skipped = []
    for i in range(0, len(query), SIZE):
        running_max = torch.full((len(query[i : i + SIZE]),), -torch.inf, dtype=query.dtype)
        skipped.append(0)
        for j in range(0, len(key), SIZE):
            if not support[i : i + SIZE, j : j + SIZE].any():
                continue
            tile_max = scores[i : i + SIZE, j : j + SIZE].amax(-1)
            running_max = torch.maximum(running_max, tile_max)
            if (tile_max - running_max).max() < math.log(skip_below):
                left_out[i : i + SIZE, j : j + SIZE] = True
                skipped[-1] += 1
    weights = scores.softmax(-1)
    return weights.masked_fill(left_out, 0.0) @ value, skipped, weights * left_out


def all_blocks(query, key):
    return torch.ones(-(-len(query) // SIZE), -(-len(key) // SIZE), dtype=torch.bool)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("skip_below", [1e-2, 0.5])
def test_tiles_are_left_out_by_the_rule_and_the_error_is_within_the_bound(skip_below, is_causal):
    query, key, value = peaked(40, 60)
    options = {"blocks": all_blocks(query, key), "block_size": SIZE, "is_causal": is_causal}
    found = filtered_block_sparse_attention(query, key, value, **options, skip_below=skip_below)
    read, skipped, weights = by_the_rule(query, key, value, skip_below, is_causal)
    torch.testing.assert_close(found.read, read, rtol=1e-12, atol=1e-14)
    assert found.skipped.tolist() == skipped
    assert 0 < sum(skipped) < found.visited.sum()

    exact = block_sparse_attention(query, key, value, **options)
    error = (found.read - exact).abs().amax(-1)
    mass = weights.sum(-1)
    keys_left_out = (weights > 0).sum(-1)
    assert error.any()
    assert (error <= mass * value.abs().max() + 1e-14).all()
    assert (mass <= keys_left_out * skip_below).all()


def test_visited_counts_the_listed_tiles_that_causality_leaves():
    query, key, value = peaked(40, 40)
    blocks = torch.tensor([[True, True, False], [True, False, True], [False, True, True]])
    options = {"block_size": SIZE, "skip_below": 1e-3}
    found = filtered_block_sparse_attention(query, key, value, blocks, **options)
    assert found.visited.tolist() == [2, 2, 2]
    found = filtered_block_sparse_attention(query, key, value, blocks, **options, is_causal=True)
    assert found.visited.tolist() == [1, 1, 2]


def test_equal_scores_leave_out_nothing_and_give_the_same_bits():
    query, key, value = (torch.zeros(2, 20, 8), torch.zeros(2, 40, 8), torch.rand(2, 40, 8))
    options = {"blocks": torch.ones(2, 3, dtype=torch.bool), "block_size": SIZE}
    found = filtered_block_sparse_attention(query, key, value, **options, skip_below=0.999)
    assert torch.equal(found.read, block_sparse_attention(query, key, value, **options))
    assert found.skipped.shape == found.visited.shape == (2, 2)
    assert not found.skipped.any()
    assert (found.visited == 3).all()


def test_values_of_tiles_that_are_left_out_are_not_loaded():
    query, key, value = torch.ones(20, 1), torch.ones(40, 1), torch.ones(40, 1)
    key[16:32], value[16:32] = -50.0, torch.nan  # e^-51 of the first tile, for every query
    options = {"blocks": torch.ones(2, 3, dtype=torch.bool), "block_size": SIZE, "skip_below": 1e-9}
    found = filtered_block_sparse_attention(query, key, value, **options)
    assert found.skipped.tolist() == [1, 1]  # the second block has 4 rows; the 12 others are none
    torch.testing.assert_close(found.read, torch.ones(20, 1))


def test_left_out_weights_stay_in_the_normalizer():
    query, value = torch.ones(1, 1, dtype=torch.float64), torch.ones(32, 1, dtype=torch.float64)
    key = torch.tensor([0.0, math.log(0.25)], dtype=torch.float64).repeat_interleave(16)[:, None]
    options = {"blocks": torch.ones(1, 2, dtype=torch.bool), "block_size": SIZE}
    read = filtered_block_sparse_attention(query, key, value, **options, skip_below=0.3).read
    assert read.item() == pytest.approx(16 / (16 + 16 * 0.25), rel=1e-14)
    read = filtered_block_sparse_attention(query, key, value, **options, skip_below=0.2).read
    assert read.item() == pytest.approx(1.0, rel=1e-14)


def test_rows_without_a_key_hold_nothing_back():
    query, key, value = torch.ones(20, 1), torch.ones(40, 1), torch.ones(40, 1)
    key[16:], value[16:32] = -50.0, torch.nan
    key_mask = torch.ones(40, dtype=torch.bool)
    key_mask[32:] = False
    found = filtered_block_sparse_attention(
        query,
        key,
        value,
        torch.tensor([[True, True, True], [False, False, True]]),
        block_size=SIZE,
        skip_below=1e-9,
        key_mask=key_mask,
    )
    assert found.skipped.tolist() == [2, 1]
    torch.testing.assert_close(found.read, torch.cat([torch.ones(16, 1), torch.zeros(4, 1)]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_dtype(dtype):
    query, key, value = (tensor.to(dtype) for tensor in peaked(20, 60))
    options = {"blocks": all_blocks(query, key), "block_size": SIZE, "skip_below": 1e-3}
    found = filtered_block_sparse_attention(query, key, value, **options)
    assert found.read.dtype == dtype
    assert found.skipped.sum() > 0
    exact = by_the_rule(query.double(), key.double(), value.double(), 1e-3)[0]
    torch.testing.assert_close(found.read.double(), exact, rtol=0, atol=2e-2)


def test_a_gradient_is_refused():
    query, key, value = (tensor.requires_grad_() for tensor in peaked(20, 20))
    options = {"blocks": all_blocks(query, key), "block_size": SIZE, "skip_below": 0.1}
    with pytest.raises(ValueError, match="query requires a gradient and filtered_block"):
        filtered_block_sparse_attention(query, key, value, **options)
    with torch.no_grad():
        assert filtered_block_sparse_attention(query, key, value, **options).read.isfinite().all()


@pytest.mark.parametrize("skip_below", [0.0, 1.0, -1.0, math.nan, 1, "0.1", None])
def test_wrong_threshold_is_named(skip_below):
    query, key, value = peaked(20, 20)
    with pytest.raises(ValueError, match="skip_below must be a number between 0 and 1, got"):
        filtered_block_sparse_attention(
            query, key, value, all_blocks(query, key), block_size=SIZE, skip_below=skip_below
        )


def test_wrong_input_is_named_as_in_block_sparse_attention():
    query, key, value = peaked(20, 20)
    with pytest.raises(ValueError, match="blocks must have shape"):
        filtered_block_sparse_attention(
            query, key, value, all_blocks(query, key)[:1], block_size=SIZE, skip_below=0.1
        )
