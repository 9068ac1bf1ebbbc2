"""Hashed attention equals dense attention under its mask, and near tokens share buckets."""

import math

import pytest
import torch

from attnlib import attend
from attnlib.atlas import Promises
from attnlib.conformance import check
from attnlib.read.hashed_attention import (
    dense_hashed_attention,
    hash_buckets,
    hashed_attention,
    hashed_pairs,
    random_rotations,
    sorted_ranks,
)

LENGTHS = [1, 15, 63, 100, 257]


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotations(width, buckets, rounds=1, seed=0):
    return random_rotations(width, buckets, rounds=rounds, seed=seed, dtype=torch.float64)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("rounds", "is_causal"), [(1, True), (3, True), (3, False)])
def test_the_sorted_chunks_read_what_the_dense_mask_allows(length, rounds, is_causal):
    query, value = (draw(2, 2, length, 6, seed=s).requires_grad_() for s in (0, 1))
    options = {
        "rotations": rotations(6, 8, rounds),
        "chunk_size": -(-length // 5),
        "is_causal": is_causal,
    }
    ours, dense = (
        form(query, query, value, **options) for form in (hashed_attention, dense_hashed_attention)
    )
    assert torch.allclose(ours, dense, rtol=0, atol=1e-12)
    probe = torch.linspace(-1, 1, dense.numel(), dtype=dense.dtype).view_as(dense)
    slopes = [torch.autograd.grad((read * probe).sum(), (query, value)) for read in (ours, dense)]
    for mine, wanted in zip(*slopes, strict=True):
        assert torch.allclose(mine, wanted, rtol=0, atol=1e-11)


def test_it_keeps_the_promises_of_an_operator():
    def hashed(query, key, value, *, rotations, chunk_size, is_causal=False, scale=None):
        return hashed_attention(
            query,
            key,
            value,
            rotations=rotations,
            chunk_size=chunk_size,
            is_causal=is_causal,
            scale=scale,
        )

    def arguments(query, key, value):
        turn = random_rotations(query.shape[-1], 4, rounds=2, dtype=query.dtype)
        return {"rotations": turn, "chunk_size": 1 + query.shape[-2] // 3}

    promises = Promises(
        causal=False,
        cross=False,
        query_equivariant=False,
        key_invariant=False,
        grouped_query=False,
        padding=False,
        shortest=1,
        dtypes=(torch.float64, torch.float32),  # rounding to half moves a token to another bucket
        arguments=arguments,
    )
    assert not check(hashed, promises, oracle=dense_hashed_attention).broken


def test_where_all_tokens_share_a_bucket_it_is_attention_to_all_but_oneself():
    query = draw(20, 4).abs() + 1
    value = draw(20, 3, seed=1)
    one_way = -torch.ones(1, 4, 1).double()
    ours = hashed_attention(query, query, value, rotations=one_way, chunk_size=20)
    others = ~torch.eye(20, dtype=torch.bool)
    key = query / query.norm(dim=-1, keepdim=True)
    assert torch.allclose(ours, attend(query, key, value, attn_mask=others), atol=1e-12)


def test_a_token_that_is_alone_in_every_round_reads_its_own_value():
    query = torch.cat((draw(9, 4).abs(), -torch.ones(1, 4).double()))
    value = draw(10, 3, seed=1)
    one_way = torch.ones(2, 4, 1).double()
    read = hashed_attention(query, query, value, rotations=one_way, chunk_size=10)
    assert torch.allclose(read[9], value[9]) and not torch.allclose(read[0], value[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_a_token_alone_reads_its_value_whatever_the_dtype_and_the_scores(dtype):
    query = torch.tensor([[60.0, 0], [-60, 1], [0, 60]], dtype=dtype)
    value = torch.eye(3, dtype=dtype)
    turn = torch.eye(2, dtype=dtype).expand(3, 2, 2)
    read = hashed_attention(query, query, value, rotations=turn, chunk_size=3)
    assert torch.equal(read, value)


def test_tokens_at_a_small_angle_share_a_bucket_more_often():
    turn = rotations(16, 8, rounds=2000)
    shares = []
    for angle in (0.0, 0.3, 1.0, math.pi / 2, math.pi):
        x = torch.zeros(2, 16).double()
        x[0, 0] = 1
        x[1, 0], x[1, 1] = math.cos(angle), math.sin(angle)
        buckets = hash_buckets(x, turn)
        shares.append((buckets[:, 0] == buckets[:, 1]).double().mean().item())
    assert shares[0] == 1 and shares[4] == 0
    assert shares[1] > shares[2] + 0.1 > shares[3] + 0.2


def test_more_rounds_add_pairs_and_lose_none():
    query, turn = draw(40, 8), rotations(8, 8, rounds=4)
    pairs = [hashed_pairs(hash_buckets(query, turn[:rounds]), 40, False) for rounds in (1, 2, 4)]
    off = ~torch.eye(40, dtype=torch.bool)
    one, two, four = (table & off for table in pairs)
    assert not (one & ~two).any() and not (two & ~four).any()
    assert one.sum() < two.sum() < four.sum()


def test_ranks_sort_by_bucket_and_then_by_place():
    assert sorted_ranks(torch.tensor([2, 0, 2, 1, 0])).tolist() == [3, 0, 4, 2, 1]


def test_a_long_bucket_loses_the_pairs_that_are_more_than_a_chunk_apart():
    same = torch.zeros(1, 12, dtype=torch.long)
    pairs = hashed_pairs(same, 4, True)
    assert pairs[11, 4] and not pairs[11, 3]


def test_zero_vectors_and_doubled_tokens_stay_finite():
    query = torch.zeros(10, 4, dtype=torch.float64, requires_grad=True)
    read = hashed_attention(query, query, draw(10, 3), rotations=rotations(4, 4, 2), chunk_size=3)
    read.sum().backward()
    assert read.isfinite().all() and query.grad.isfinite().all()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"chunk_size": 0}, "chunk_size"),
        ({"rotations": torch.zeros(1, 3, 2).double()}, "rotations"),
        ({"rotations": torch.zeros(4, 2).double()}, "rotations"),
        ({"rotations": torch.zeros(0, 4, 2).double()}, "rotations"),
        ({"rotations": torch.zeros(1, 4, 2)}, "rotations"),
    ],
)
def test_wrong_input_is_refused_by_name(change, name):
    x = draw(2, 12, 4)
    options = {"rotations": rotations(4, 4), "chunk_size": 6} | change
    with pytest.raises((ValueError, TypeError), match=name):
        hashed_attention(x, x, x, **options)


def test_an_odd_number_of_buckets_and_keys_of_another_length_are_refused():
    with pytest.raises(ValueError, match="buckets"):
        random_rotations(4, 5)
    with pytest.raises(ValueError, match="key"):
        hashed_attention(
            draw(5, 4), draw(6, 4), draw(6, 4), rotations=rotations(4, 4), chunk_size=3
        )
