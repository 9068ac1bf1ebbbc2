"""Query heads that share keys and values read what they would read from copies."""

import pytest
import torch

from attnlib import (
    attend,
    grouped_query_attention,
    multi_query_attention,
    softmax_attention,
    unequal_heads_attention,
)

LENGTHS = [(1, 1), (15, 15), (7, 63), (100, 31), (1, 257)]


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def draw(queries, keys, *, heads=6, key_heads=2, value_heads=None, batch=(2,)):
    value_heads = key_heads if value_heads is None else value_heads
    return (
        normal(*batch, heads, queries, 4),
        normal(*batch, key_heads, keys, 4, seed=1),
        normal(*batch, value_heads, keys, 3, seed=2),
    )


@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
@pytest.mark.parametrize("key_heads", [1, 2, 3, 6])
def test_a_group_reads_its_one_head_as_if_it_were_repeated(queries, keys, key_heads):
    inputs = [x.requires_grad_() for x in draw(queries, keys, key_heads=key_heads)]
    for options in ({}, {"is_causal": True}, {"is_causal": True, "query_offset": 3}):
        mine = grouped_query_attention(*inputs, scale=0.3, **options)
        theirs = attend(*inputs, scale=0.3, enable_gqa=True, **options)
        close(mine, theirs)
        slope = normal(*mine.shape, seed=3)
        for a, b in zip(
            torch.autograd.grad(mine, inputs, slope),
            torch.autograd.grad(theirs, inputs, slope),
            strict=True,
        ):
            close(a, b)


@pytest.mark.parametrize(
    "shape", [(7, 9), (1, 9), (6, 7, 9), (1, 7, 9), (2, 1, 1, 9), (2, 6, 7, 9), (2, 6, 1, 9)]
)
def test_a_mask_of_any_shape_reaches_the_right_head_of_a_group(shape):
    mask = normal(*shape, seed=5) > 0
    for options in ({}, {"is_causal": True, "query_offset": 2}):
        mine = grouped_query_attention(*draw(7, 9), attn_mask=mask, **options)
        close(mine, attend(*draw(7, 9), attn_mask=mask, enable_gqa=True, **options))


def test_a_single_sequence_and_many_batch_dimensions_are_taken():
    for batch in ((), (2, 3)):
        inputs = draw(5, 8, batch=batch)
        close(grouped_query_attention(*inputs), attend(*inputs, enable_gqa=True))
    query, key, value = (x[0] for x in draw(5, 8, key_heads=6, batch=()))
    close(grouped_query_attention(query, key, value), attend(query, key, value))


@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
def test_multi_query_is_multi_head_with_the_same_keys_and_values_in_every_head(queries, keys):
    query, key, value = draw(queries, keys, key_heads=1)
    for options in ({}, {"is_causal": True}, {"attn_mask": normal(2, 6, queries, keys) > 0}):
        mine = multi_query_attention(query, key[:, 0], value[:, 0], **options)
        copies = key.expand(2, 6, -1, -1), value.expand(2, 6, -1, -1)
        close(mine, softmax_attention(query, *copies, **options))


@pytest.mark.parametrize(("key_heads", "value_heads"), [(1, 6), (2, 3), (3, 2), (1, 1), (6, 6)])
def test_unequal_heads_are_each_repeated_to_the_query_heads(key_heads, value_heads):
    query, key, value = draw(7, 15, key_heads=key_heads, value_heads=value_heads)
    for options in ({}, {"is_causal": True, "query_offset": 8}):
        mine = unequal_heads_attention(query, key, value, **options)
        for head in range(6):
            own = key[:, head * key_heads // 6], value[:, head * value_heads // 6]
            close(
                mine[:, head],
                attend(query[:, head, None], *(x[:, None] for x in own), **options)[:, 0],
            )


def test_equal_heads_give_grouped_query_and_softmax_attention():
    inputs = draw(7, 9)
    close(unequal_heads_attention(*inputs), attend(*inputs, enable_gqa=True))
    inputs = draw(7, 9, key_heads=6)
    close(unequal_heads_attention(*inputs), softmax_attention(*inputs))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda q, k, v: grouped_query_attention(q, *draw(5, 8, key_heads=4)[1:]),
            "key must have a number of heads that divides 6, got 4",
        ),
        (
            lambda q, k, v: unequal_heads_attention(q, k, draw(5, 8, key_heads=4)[2]),
            "value must have a number of heads that divides 6, got 4",
        ),
        (
            lambda q, k, v: grouped_query_attention(q, k, draw(5, 8, key_heads=3)[2]),
            "value must have one row for each key",
        ),
        (
            lambda q, k, v: unequal_heads_attention(q, k[0, 0], v[0, 0]),
            "key must have as many dimensions as query",
        ),
        (
            lambda q, k, v: unequal_heads_attention(q, k, v.tolist()),
            "value must be a torch.Tensor, got list",
        ),
        (lambda q, k, v: multi_query_attention(q, k, v), "key must have the batch of query"),
        (lambda q, k, v: multi_query_attention(q[0, 0], k[0, 0], v[0, 0]), "query must have shape"),
        (
            lambda q, k, v: multi_query_attention(q, k.tolist(), v),
            "key must be a torch.Tensor, got list",
        ),
        (lambda q, k, v: multi_query_attention(q, k[:, 0], v[:, 0, :3]), "value must have one row"),
        (
            lambda q, k, v: grouped_query_attention(q, k, v, attn_mask=torch.ones(5, 7) > 0),
            "attn_mask must broadcast",
        ),
        (
            lambda q, k, v: grouped_query_attention(q, k, v, query_offset=-1),
            "query_offset must be at least 0",
        ),
        (lambda q, k, v: grouped_query_attention(q, k, v, scale=0.0), "scale must be"),
    ],
)
def test_wrong_input_is_refused_by_name(call, words):
    with pytest.raises((ValueError, TypeError)) as caught:
        call(*draw(5, 8))
    assert words in str(caught.value)
