"""A cache with a fixed place: rows are written in place, and nothing goes in that does not fit."""

import pytest
import torch

from attnlib import FixedCache, KeyValueCache, attend, split_decode


def tensors(length=9, heads=(2, 3), value_width=5):
    generator = torch.Generator().manual_seed(0)
    widths = (4, 4, value_width)
    return [
        torch.randn(*heads, length, width, generator=generator, dtype=torch.float64)
        for width in widths
    ]


def cache_for(key, value, capacity):
    return FixedCache(
        tuple(key.shape[:-2]), capacity, key.shape[-1], value.shape[-1], dtype=key.dtype
    )


@pytest.mark.parametrize("steps", [[1] * 9, [4, 1, 1, 3], [9], [0, 9]])
def test_decoding_with_it_in_any_portions_gives_the_rows_of_causal_attention(steps):
    query, key, value = tensors()
    wanted = attend(query, key, value, is_causal=True)
    cache, reads = cache_for(key, value, capacity=12), []
    cache.key_rows.fill_(torch.nan)  # what is not filled must never be read
    cache.value_rows.fill_(torch.nan)
    for q, k, v in zip(*(x.split(steps, -2) for x in (query, key, value)), strict=True):
        cache.append(k, v)
        reads.append(split_decode(q, cache.key, cache.value, splits=3))
    assert torch.allclose(torch.cat(reads, -2), wanted, rtol=0, atol=1e-12)
    assert cache.length == 9


def test_it_holds_what_the_growing_cache_holds():
    _, key, value = tensors()
    cache = cache_for(key, value, capacity=9)
    cache.append(key[..., :5, :], value[..., :5, :])
    cache.append(key[..., 5:, :], value[..., 5:, :])
    growing = KeyValueCache(key, value)
    assert torch.equal(cache.key, growing.key) and torch.equal(cache.value, growing.value)


def test_nothing_is_copied_and_nothing_grows():
    _, key, value = tensors()
    cache = cache_for(key, value, capacity=20)
    places = cache.key_rows.data_ptr(), cache.value_rows.data_ptr()
    for _ in range(2):
        cache.append(key, value)
    assert (cache.key.data_ptr(), cache.value.data_ptr()) == places
    assert cache.key.untyped_storage().nbytes() == 2 * 3 * 20 * 4 * 8


def test_numbers_of_a_token_are_counted_per_sequence():
    assert FixedCache((7, 8), 10, width=64, value_width=32).numbers_per_token == 8 * (64 + 32)
    assert FixedCache((), 10, width=64).numbers_per_token == 128


def test_overflow_says_what_was_there_and_what_came_and_writes_nothing():
    _, key, value = tensors()
    cache = cache_for(key, value, capacity=10)
    cache.append(key, value)
    before = cache.key_rows.clone()
    with pytest.raises(ValueError, match="capacity 10, length 9, and key brings 2 more"):
        cache.append(key[..., :2, :], value[..., :2, :])
    assert cache.length == 9
    assert torch.equal(cache.key_rows[..., :9, :], before[..., :9, :])
    cache.append(key[..., :1, :], value[..., :1, :])
    assert cache.length == cache.capacity == 10


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda k, v: (k, v[..., :2]), ValueError, "value must have shape"),
        (lambda k, v: (k[0], v), ValueError, "key must have shape"),
        (lambda k, v: (k, v[..., :2, :]), ValueError, "9 keys and 2 values"),
        (lambda k, v: (k, v.float()), TypeError, "value must be torch.float64"),
        (lambda k, v: (k.to("meta"), v), ValueError, "key must be on cpu"),
        (lambda k, v: (k.tolist(), v), TypeError, "key must be a torch.Tensor"),
        (lambda k, v: (k, v.requires_grad_()), ValueError, "value requires a gradient"),
    ],
)
def test_rows_that_do_not_fit_are_refused_before_anything_is_written(change, kind, message):
    _, key, value = tensors()
    cache = cache_for(key, value, capacity=20)
    cache.key_rows.zero_()
    with pytest.raises(kind, match=message):
        cache.append(*change(key, value))
    assert cache.length == 0 and not cache.key_rows.any()


def test_rows_that_require_a_gradient_are_taken_where_none_is_recorded():
    _, key, value = tensors()
    cache = cache_for(key, value, capacity=20)
    with torch.no_grad():
        cache.append(key.requires_grad_(), value)
    assert not cache.key.requires_grad


@pytest.mark.parametrize(
    ("arguments", "kind", "name"),
    [
        (((2,), 0, 4), ValueError, "capacity"),
        (((2,), 3, 0), ValueError, "width"),
        (((2,), 3, 4, 0), ValueError, "value_width"),
        (((2, -1), 3, 4), ValueError, "heads"),
        ((2, 3, 4), TypeError, "heads"),
        (((2,), 3.0, 4), TypeError, "capacity"),
    ],
)
def test_a_wrong_size_is_refused_by_name(arguments, kind, name):
    with pytest.raises(kind, match=name):
        FixedCache(*arguments)


def test_whole_numbers_cannot_be_kept():
    with pytest.raises(TypeError, match="dtype must be a floating-point dtype"):
        FixedCache((2,), 3, 4, dtype=torch.int64)
