"""Latent attention: the absorbed form reads what the explicit keys and values would give."""

import pytest
import torch

from attnlib import (
    LatentCache,
    attend,
    explicit_latent_attention,
    latent_attention,
    latent_attention_step,
)

HEADS, WIDTH, VALUE_WIDTH, RANK, ROTARY = 3, 4, 5, 6, 2
LENGTHS = [(1, 1), (15, 15), (7, 63), (100, 31), (1, 257)]


def normal(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def draw(queries, keys, *, rotary=True, batch=(2,)):
    """The four tensors, and the rotary part as keyword arguments."""
    inputs = (
        normal(*batch, HEADS, queries, WIDTH, seed=0),
        normal(*batch, keys, RANK, seed=1),
        normal(HEADS, WIDTH, RANK, seed=2),
        normal(HEADS, VALUE_WIDTH, RANK, seed=3),
    )
    if not rotary:
        return inputs, {}
    return inputs, {
        "query_rotary": normal(*batch, HEADS, queries, ROTARY, seed=4),
        "key_rotary": normal(*batch, keys, ROTARY, seed=5),
    }


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
def test_absorbed_and_explicit_are_equal_gradients_too(queries, keys, rotary):
    inputs, parts = draw(queries, keys, rotary=rotary)
    leaves = [x.requires_grad_() for x in (*inputs, *parts.values())]
    mask = normal(2, HEADS, queries, keys, seed=6) > -1
    for options in ({}, {"is_causal": True, "query_offset": 2}, {"attn_mask": mask, "scale": 0.4}):
        absorbed = latent_attention(*inputs, **parts, **options)
        explicit = explicit_latent_attention(*inputs, **parts, **options)
        close(absorbed, explicit)
        slope = normal(*absorbed.shape, seed=7)
        for a, b in zip(
            torch.autograd.grad(absorbed, leaves, slope, allow_unused=True),
            torch.autograd.grad(explicit, leaves, slope, allow_unused=True),
            strict=True,
        ):
            close(a, b)


def test_the_explicit_form_is_attention_on_maps_of_the_latent_head_by_head():
    (query, latent, up_key, up_value), parts = draw(7, 9)
    read = explicit_latent_attention(query, latent, up_key, up_value, **parts)
    for head in range(HEADS):
        scores = query[:, head] @ (latent @ up_key[head].T).mT
        scores = scores + parts["query_rotary"][:, head] @ parts["key_rotary"].mT
        weights = torch.softmax(scores / (WIDTH + ROTARY) ** 0.5, dim=-1)
        close(read[:, head], weights @ (latent @ up_value[head].T))


def test_the_scale_is_that_of_the_explicit_keys():
    (query, latent, up_key, up_value), parts = draw(7, 9)
    read = latent_attention(query, latent, up_key, up_value, **parts)
    wrong = latent_attention(
        query, latent, up_key, up_value, **parts, scale=(RANK + ROTARY) ** -0.5
    )
    right = latent_attention(
        query, latent, up_key, up_value, **parts, scale=(WIDTH + ROTARY) ** -0.5
    )
    close(read, right)
    assert (read - wrong).abs().max() > 1e-3


def test_a_latent_that_holds_keys_and_values_gives_attention_on_them():
    key, value = normal(9, WIDTH, seed=8), normal(9, VALUE_WIDTH, seed=9)
    latent = torch.cat((key, value), dim=-1)
    chosen = torch.eye(WIDTH + VALUE_WIDTH, dtype=torch.float64)
    query = normal(1, 7, WIDTH, seed=10)
    read = latent_attention(query, latent, chosen[None, :WIDTH], chosen[None, WIDTH:])
    close(read, attend(query, key[None], value[None]))


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_any_number_of_batch_dimensions_is_taken(batch):
    inputs, parts = draw(5, 8, batch=batch)
    read = latent_attention(*inputs, **parts)
    assert read.shape == (*batch, HEADS, 5, VALUE_WIDTH)
    close(read, explicit_latent_attention(*inputs, **parts))


@pytest.mark.parametrize("rotary", [False, True])
def test_token_by_token_gives_the_causal_rows_and_keeps_no_keys(rotary):
    (query, latent, up_key, up_value), parts = draw(15, 15, rotary=rotary)
    whole = latent_attention(query, latent, up_key, up_value, is_causal=True, **parts)
    cache, reads = None, []
    for start, end in ((0, 1), (1, 2), (2, 7), (7, 15)):
        now = {name: part[..., start:end, :] for name, part in parts.items()}
        read, cache = latent_attention_step(
            cache, query[..., start:end, :], latent[:, start:end], up_key, up_value, **now
        )
        reads.append(read)
    close(torch.cat(reads, dim=-2), whole)
    assert cache.length == 15
    kept = sum(part.numel() for part in cache if part is not None)
    assert kept == 2 * 15 * (RANK + (ROTARY if rotary else 0))


def test_a_step_leaves_the_cache_that_it_was_given_as_it_was():
    inputs, parts = draw(4, 4)
    _, cache = latent_attention_step(None, *inputs, **parts)
    before = cache.latent.clone()
    latent_attention_step(cache, *inputs, **parts)
    assert cache.length == 4 and torch.equal(cache.latent, before)


def test_a_row_without_keys_reads_zero():
    inputs, parts = draw(5, 8)
    mask = torch.ones(5, 8, dtype=torch.bool)
    mask[2] = False
    read = latent_attention(*inputs, **parts, attn_mask=mask)
    assert not read[..., 2, :].any() and read[..., 1, :].all()


def changed(name, new):
    """The arguments of a right call with one of them replaced."""
    inputs, parts = draw(5, 8)
    given = dict(zip(("query", "latent", "up_key", "up_value"), inputs, strict=True)) | parts
    given[name] = new(given[name]) if callable(new) else new
    return given


WRONG = {
    "query": (lambda x: x[0, 0], "query must have shape (..., heads, N, D), got (5, 4)"),
    "latent": (lambda x: x[:, None], "latent must have shape (2, 'M', 'R'), without heads"),
    "up_key": (lambda x: x[:2], "up_key must have shape (3, 4, 6), got (2, 4, 6)"),
    "up_value": (lambda x: x[..., :5], "up_value must have shape (3, 'E', 6), got (3, 5, 5)"),
    "query_rotary": (lambda x: x[:, :, :4], "query_rotary must have shape (2, 3, 5, 2)"),
    "key_rotary": (lambda x: x[..., :1], "key_rotary must have shape (2, 8, 2), got (2, 8, 1)"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("function", [latent_attention, explicit_latent_attention])
def test_what_does_not_fit_is_named(function, name):
    new, words = WRONG[name]
    with pytest.raises(ValueError) as caught:
        function(**changed(name, new))
    assert words in str(caught.value)
    with pytest.raises(TypeError, match=f"{name} must"):
        function(**changed(name, lambda x: x.long()))
    if name != "query":
        with pytest.raises(TypeError, match=f"{name} must have the dtype of query"):
            function(**changed(name, lambda x: x.float()))


def test_one_rotary_part_without_the_other_is_an_error():
    for name in ("query_rotary", "key_rotary"):
        with pytest.raises(ValueError, match=f"{name} must be given"):
            latent_attention(**changed(name, None))


def test_a_wrong_cache_is_refused():
    inputs, parts = draw(4, 4)
    _, cache = latent_attention_step(None, *inputs, **parts)
    with pytest.raises(TypeError, match="cache must be a LatentCache or None, got tuple"):
        latent_attention_step(tuple(cache), *inputs, **parts)
    with pytest.raises(ValueError, match="key_rotary must be given for all tokens or for none"):
        latent_attention_step(cache, *inputs)
    with pytest.raises(ValueError, match="latent must have shape"):
        cache.append(cache.latent[..., :2], cache.rotary)
    with pytest.raises(TypeError, match=r"key_rotary must be torch\.float64"):
        LatentCache(cache.latent, cache.rotary).append(cache.latent, cache.rotary.float())
