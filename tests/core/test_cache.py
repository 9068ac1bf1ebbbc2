"""The cache, one token or several at a time, gives the rows of the causal form."""

import pytest
import torch

from attnlib import KeyValueCache, softmax_attention, softmax_attention_step


def tensors(length=9):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, length, 4, generator=generator).double() for _ in range(3)]


@pytest.mark.parametrize("steps", [[1] * 9, [4, 1, 1, 3], [9]])
def test_tokens_in_any_portions_give_the_causal_form(steps):
    query, key, value = tensors()
    wanted = softmax_attention(query, key, value, is_causal=True)
    cache, reads = None, []
    for q, k, v in zip(*(x.split(steps, -2) for x in (query, key, value)), strict=True):
        read, cache = softmax_attention_step(cache, q, k, v)
        reads.append(read)
    assert torch.allclose(torch.cat(reads, -2), wanted, atol=1e-12)
    assert cache.length == 9 and torch.equal(cache.key, key)


def test_gradients_flow_through_the_cache():
    inputs = [tensor.requires_grad_() for tensor in tensors(4)]
    wanted = torch.autograd.grad(softmax_attention(*inputs, is_causal=True).square().sum(), inputs)
    cache, total = None, 0.0
    for t in range(4):
        read, cache = softmax_attention_step(cache, *(x[..., t : t + 1, :] for x in inputs))
        total = total + read.square().sum()
    got = torch.autograd.grad(total, inputs)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(got, wanted, strict=True))


def test_appending_leaves_the_old_cache_as_it_was():
    _, key, value = tensors(2)
    old = KeyValueCache(key, value)
    new = old.append(key, value)
    assert (old.length, new.length) == (2, 4)


def test_grouped_heads_are_cached_once():
    query, key, value = tensors(3)
    key, value = key[:, :1], value[:, :1]
    read, cache = softmax_attention_step(None, query, key, value, enable_gqa=True)
    assert cache.key.shape[1] == 1
    wanted = softmax_attention(query, key, value, is_causal=True, enable_gqa=True)
    assert torch.equal(read, wanted)


def test_rows_of_another_shape_cannot_be_appended():
    _, key, value = tensors(2)
    with pytest.raises(ValueError, match="value must have shape"):
        KeyValueCache(key, value).append(key, value[..., :2])
