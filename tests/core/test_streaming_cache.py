"""A cache with kept sinks and a window: three forms equal, positions counted in the cache."""

import pytest
import torch

from attnlib.counting import largest_tensor
from attnlib.interventions import streamed
from attnlib.memory.streaming_attention import (
    dense_streaming_attention,
    streaming_attention,
    streaming_attention_step,
)
from attnlib.memory.streaming_cache import StreamingCache
from attnlib.models import DecoderLM
from attnlib.score.positions import rotate


def draw(length, lead=(2, 2), value_width=5):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(*lead, length, width, generator=generator).double().requires_grad_()
        for width in (8, 8, value_width)
    ]


def token_by_token(inputs, **options):
    cache, reads = None, []
    for t in range(inputs[0].shape[-2]):
        token = [x[..., t : t + 1, :] for x in inputs]
        read, cache = streaming_attention_step(cache, *token, **options)
        reads.append(read)
    return torch.cat(reads, -2), cache


@pytest.mark.parametrize("length", [1, 15, 63, 100, 257])
@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize(("sinks", "window"), [(0, 7), (4, 20), (2, 1)])
def test_dense_blocks_and_steps_are_equal_with_their_gradients(length, rotary, sinks, window):
    inputs = draw(length, lead=(1, 2))
    options = {"sinks": sinks, "window": window, "rotary": rotary}
    wanted = dense_streaming_attention(*inputs, **options)
    probe = torch.linspace(-1, 1, wanted.numel(), dtype=wanted.dtype).view_as(wanted)
    slopes = torch.autograd.grad((wanted * probe).sum(), inputs)
    for got in (
        streaming_attention(*inputs, **options, chunk=16),
        token_by_token(inputs, **options)[0],
    ):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
        ours = torch.autograd.grad((got * probe).sum(), inputs)
        for slope, target in zip(ours, slopes, strict=True):
            torch.testing.assert_close(slope, target, rtol=0, atol=1e-12)


def test_each_read_is_recomputed_from_the_tokens_that_are_kept():
    """The plainest form: gather the kept tokens, number them anew, rotate, read the last row."""
    inputs, sinks, window = draw(30, lead=(2,)), 3, 6
    got, _ = token_by_token(inputs, sinks=sinks, window=window, rotary=True)
    for t in range(30):
        kept = [j for j in range(t + 1) if j < sinks or j > t - window]
        query, key, value = inputs[0][:, t : t + 1], inputs[1][:, kept], inputs[2][:, kept]
        turned = rotate(key, torch.arange(len(kept)))
        newest = rotate(query, torch.tensor([len(kept) - 1]))
        wanted = torch.softmax(newest @ turned.mT / 8**0.5, -1) @ value
        torch.testing.assert_close(got[:, t : t + 1], wanted, rtol=0, atol=1e-12)


def test_positions_in_the_cache_are_not_those_of_the_text():
    inputs = draw(40)
    in_cache = streaming_attention(*inputs, sinks=2, window=6, rotary=True)
    places = torch.arange(40)
    in_text = streaming_attention(
        rotate(inputs[0], places), rotate(inputs[1], places), inputs[2], sinks=2, window=6
    )
    torch.testing.assert_close(in_cache[..., :8, :], in_text[..., :8, :])
    assert not torch.allclose(in_cache[..., 20:, :], in_text[..., 20:, :], atol=1e-3)


def test_the_cache_keeps_the_first_and_the_last_and_says_where_they_stand():
    key, value = torch.arange(12.0)[:, None], torch.arange(12.0)[:, None]
    cache = StreamingCache.empty(key, value, sinks=2, window=3)
    assert cache.length == 0
    assert cache.tokens.tolist() == [-1] * 5
    for t in range(12):
        cache = cache.append(key[t : t + 1], value[t : t + 1])
        kept = sorted(j for j in range(t + 1) if j < 2 or j > t - 3)
        tokens = cache.tokens[cache.tokens >= 0]
        assert sorted(tokens.tolist()) == kept
        assert cache.key_rows[cache.tokens >= 0, 0].tolist() == tokens.tolist()
        order = cache.positions[cache.tokens >= 0]
        assert [kept.index(token) for token in tokens.tolist()] == order.tolist()
        assert cache.length == len(kept)


def test_its_size_never_changes_and_old_caches_stay_as_they_were():
    key = torch.randn(2, 1, 4, generator=torch.Generator().manual_seed(0))
    cache = first = StreamingCache.empty(key, key, sinks=1, window=4)
    sizes = set()
    for _ in range(50):
        before = cache.key_rows.clone()
        after = cache.append(key, key)
        assert torch.equal(cache.key_rows, before)
        cache = after
        sizes.add((cache.nbytes, cache.places))
    assert sizes == {(2 * 2 * 5 * 4 * 4, 5)}
    assert first.seen == 0


def test_several_tokens_at_once_are_the_same_as_one_by_one():
    key, value = draw(11, lead=(2,))[1:]
    options = {"sinks": 2, "window": 4}
    one = StreamingCache.empty(key, value, **options)
    many = StreamingCache.empty(key, value, **options)
    for t in range(11):
        one = one.append(key[:, t : t + 1], value[:, t : t + 1])
    for part in (slice(0, 4), slice(4, 7), slice(7, 11)):
        many = many.append(key[:, part], value[:, part])
    assert torch.equal(one.key_rows, many.key_rows)
    assert torch.equal(one.tokens, many.tokens)


def test_after_a_hundred_thousand_tokens_the_read_is_exact_and_as_cheap_as_ever():
    generator = torch.Generator().manual_seed(0)
    stream = torch.randn(2, 100_000, 8, generator=generator).double()
    query = torch.randn(1, 8, generator=generator).double()
    cache, largest = StreamingCache.empty(*stream, sinks=4, window=500), []
    for part in stream.split(500, dim=1):
        cache = cache.append(*part)
        if cache.seen in (1000, 10_000, 100_000):
            largest.append(largest_tensor(lambda cache=cache: cache.read(query, rotary=True)))
    kept = torch.cat((torch.arange(4), torch.arange(99_500, 100_000)))
    key, value = stream[:, kept]
    turned = rotate(key, torch.arange(504))
    scores = rotate(query, torch.tensor([503])) @ turned.mT / 8**0.5
    torch.testing.assert_close(cache.read(query, rotary=True), scores.softmax(-1) @ value)
    assert len(set(largest)) == 1
    assert largest[0] <= 504 * 8


def test_groups_of_heads_share_keys():
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(4, 20, 8, generator=generator).double()
    key, value = torch.randn(2, 2, 20, 8, generator=generator).double()
    options = {"sinks": 1, "window": 5, "enable_gqa": True, "rotary": True}
    got, _ = token_by_token((query, key, value), **options)
    torch.testing.assert_close(got, streaming_attention(query, key, value, **options))


def test_a_block_of_rows_looks_at_no_more_than_sinks_and_window(monkeypatch):
    import importlib

    module = importlib.import_module("attnlib.memory.streaming_attention")
    seen, plain = [], module.attend

    def spy(query, key, value, **options):
        seen.append(key.shape[-2])
        return plain(query, key, value, **options)

    monkeypatch.setattr(module, "attend", spy)
    streaming_attention(*draw(400), sinks=4, window=20, chunk=32)
    assert max(seen) <= 4 + 20 + 32 - 1
    assert len(seen) == 13


def test_a_streamed_model_says_what_it_would_say_token_by_token():
    """Layer by layer with caches of keys before rotation, against one pass over the whole text."""
    model = DecoderLM(9, width=16, heads=2, layers=2, position="rope").double()
    tokens = torch.randint(9, (1, 25), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), streamed(model, sinks=2, window=5):
        wanted = model(tokens)
    caches = [None, None]
    with torch.no_grad():
        for t in range(25):
            x = model.embedding(tokens[:, t : t + 1])
            for i, block in enumerate(model.blocks):
                normed, attention = block.attention_norm(x), block.attention
                parts = [
                    project(normed).view(1, 1, 2, 8).transpose(1, 2)
                    for project in (attention.to_query, attention.to_key, attention.to_value)
                ]
                read, caches[i] = streaming_attention_step(
                    caches[i], *parts, sinks=2, window=5, rotary=True
                )
                x = x + attention.to_output(read.transpose(1, 2).reshape(1, 1, 16))
                x = x + block.perceptron(block.perceptron_norm(x))
            logits = model.to_logits(model.norm(x))
            torch.testing.assert_close(logits, wanted[:, t : t + 1], rtol=0, atol=1e-10)


def cache_with(tokens=1):
    key = torch.zeros(2, tokens, 4)
    return StreamingCache.empty(key, key, sinks=1, window=4)


@pytest.mark.parametrize(
    ("use", "kind", "message"),
    [
        (
            lambda: cache_with().append(torch.zeros(2, 5, 4), torch.zeros(2, 5, 4)),
            ValueError,
            "the cache overflows: its window holds 4 tokens, and key brings 5",
        ),
        (
            lambda: cache_with().append(torch.zeros(2, 1, 3), torch.zeros(2, 1, 4)),
            ValueError,
            "key must have shape",
        ),
        (
            lambda: cache_with().append(torch.zeros(2, 2, 4), torch.zeros(2, 1, 4)),
            ValueError,
            "value must have one row",
        ),
        (
            lambda: cache_with().append(torch.zeros(2, 1, 4).double(), torch.zeros(2, 1, 4)),
            TypeError,
            "key must be torch.float32",
        ),
        (lambda: cache_with().read(torch.zeros(2, 1, 4)), ValueError, "read before it is written"),
        (
            lambda: (
                cache_with()
                .append(torch.zeros(2, 1, 4), torch.zeros(2, 1, 4))
                .read(torch.zeros(2, 2, 4))
            ),
            ValueError,
            "query must be that of the newest token",
        ),
        (
            lambda: StreamingCache.empty(torch.zeros(1, 4), torch.zeros(1, 4), sinks=-1),
            ValueError,
            "sinks",
        ),
        (
            lambda: StreamingCache.empty(torch.zeros(1, 4), torch.zeros(1, 4), window=0),
            ValueError,
            "window",
        ),
        (lambda: streaming_attention(*draw(4), is_causal=False), ValueError, "is_causal"),
        (lambda: streaming_attention(*draw(4), window=2.5), TypeError, "window"),
        (lambda: streaming_attention_step("cache", *draw(1)), TypeError, "cache must be"),
        (
            lambda: streaming_attention_step(cache_with(), *draw(1), sinks=2, window=4),
            ValueError,
            "cache must have 2 sinks",
        ),
        (lambda: streaming_attention_step(None, *draw(2)), ValueError, "key must be that of one"),
    ],
)
def test_wrong_sizes_and_overflow_are_clear_errors(use, kind, message):
    with pytest.raises(kind, match=message):
        use()


def test_an_overflow_leaves_the_cache_as_it_was():
    cache = cache_with().append(torch.ones(2, 1, 4), torch.ones(2, 1, 4))
    before = cache.key_rows.clone()
    with pytest.raises(ValueError, match="overflows"):
        cache.append(torch.zeros(2, 9, 4), torch.zeros(2, 9, 4))
    assert torch.equal(cache.key_rows, before)
    assert cache.seen == 1
