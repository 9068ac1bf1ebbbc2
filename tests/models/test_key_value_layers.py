"""What every layer that changes keys and values promises: causal, decodable, counted, trainable."""

from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy

from attnlib.models import (
    AddedHeadEmbeddings,
    Block,
    DecoderLM,
    EfficientAttention,
    LatentAttention,
    LatentAttentionAfterRotation,
    LatentAttentionBeforeRotation,
    MultiHeadAttention,
    MultipliedHeadEmbeddings,
    OptimizedAttention,
    SuperAttention,
    UnequalHeadsAttention,
    cache_numbers,
    with_attention,
)

WIDTH, HEADS, LENGTH = 24, 3, 15

# Each layer with the numbers that it keeps a token, and its parameters.
LAYERS = {
    "latent": (
        partial(LatentAttention, WIDTH, HEADS, latent_width=10),
        10 + 4,
        2 * 24**2 + 3 * 24 * 10 + 10 + (3 + 1) * 4 * 24,
    ),
    "latent without positions": (
        partial(LatentAttention, WIDTH, HEADS, latent_width=10, position="none"),
        10,
        2 * 24**2 + 3 * 24 * 10 + 10,
    ),
    "latent before rotation": (
        partial(LatentAttentionBeforeRotation, WIDTH, HEADS, latent_width=10),
        10,
        2 * 24**2 + 3 * 24 * 10 + 10,
    ),
    "latent after rotation": (
        partial(LatentAttentionAfterRotation, WIDTH, HEADS, latent_width=10),
        10,
        3 * 24**2 + 3 * 24 * 10 + 10,
    ),
    "unequal": (
        partial(UnequalHeadsAttention, WIDTH, HEADS, key_heads=1, value_heads=3, position="rope"),
        1 * 8 + 3 * 8,
        24 * (24 + 8 + 24 + 24),
    ),
    "unequal and augmented": (
        partial(
            UnequalHeadsAttention,
            WIDTH,
            HEADS,
            key_heads=1,
            value_heads=3,
            key_width=4,
            value_width=6,
            query_expansion=1.5,
        ),
        1 * 4 + 3 * 6,
        24 * (12 + 4 + 18 + 18) + 3 * 12 * 36,
    ),
    "optimized": (partial(OptimizedAttention, WIDTH, HEADS, position="rope"), 48, 3 * 24**2),
    "efficient": (partial(EfficientAttention, WIDTH, HEADS, position="rope"), 24, 2 * 24**2),
    "super": (partial(SuperAttention, WIDTH, length=LENGTH), 24, 2 * 24**2 + LENGTH**2),
    "added": (
        partial(AddedHeadEmbeddings, WIDTH, HEADS, position="rope"),
        16,
        3 * 24 * 8 + 3 * 3 * 8 + 24**2,
    ),
    "multiplied": (
        partial(MultipliedHeadEmbeddings, WIDTH, HEADS),
        16,
        3 * 24 * 8 + 3 * 3 * 8 + 24**2,
    ),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def make(name, **options):
    """The layer in float64, with every parameter stirred so that no two heads are alike."""
    torch.manual_seed(0)
    layer = LAYERS[name][0](**options).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return layer


def tokens(length=LENGTH, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, length, WIDTH, generator=generator, dtype=torch.float64)


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


@every_layer
def test_it_has_the_parameters_of_its_formula_and_keeps_the_numbers_that_it_says(name):
    make_layer, kept, parameters = LAYERS[name]
    layer = make_layer()
    assert sum(parameter.numel() for parameter in layer.parameters()) == parameters
    assert cache_numbers(layer) == layer.cache_numbers == kept
    _, state = make(name, is_causal=True).step(None, tokens())
    held = sum(part.numel() for part in state if part is not None)
    assert held == 2 * LENGTH * kept


@every_layer
def test_step_by_step_is_the_whole(name):
    layer, x = make(name, is_causal=True), tokens()
    kept, reads = None, []
    for start, end in ((0, 1), (1, 2), (2, 7), (7, 15)):
        read, kept = layer.step(kept, x[:, start:end])
        reads.append(read)
    close(torch.cat(reads, dim=1), layer(x))


@every_layer
def test_a_changed_future_changes_nothing_in_the_past(name):
    layer, x = make(name, is_causal=True), tokens()
    later = x.clone()
    later[:, 9:] = tokens(seed=2)[:, 9:]
    close(layer(later)[:, :9], layer(x)[:, :9])
    assert (layer(later)[:, 9:] - layer(x)[:, 9:]).abs().min() > 0
    free = make(name)
    assert (free(later)[:, :9] - free(x)[:, :9]).abs().max() > 1e-3


@every_layer
@pytest.mark.parametrize("length", [1, 7])
def test_it_reads_a_context_of_another_length(name, length):
    layer = make(name)
    context = tokens(length, seed=3)
    out, weights = layer(tokens(), context, return_weights=True)
    assert out.shape == (2, LENGTH, WIDTH) and weights.shape[-2:] == (LENGTH, length)
    close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    close(out, layer(tokens(), context))


@every_layer
def test_a_mask_removes_keys(name):
    layer, x = make(name), tokens()
    if isinstance(layer, SuperAttention):
        with torch.no_grad():
            layer.mixer.copy_(layer.mixer.tril())  # the mixing itself knows of no mask
    close(layer(x, attn_mask=(torch.arange(LENGTH) < 9)[None]), layer(x, x[:, :9]))


@every_layer
def test_a_language_model_with_it_trains_a_step_and_does_not_see_the_future(name):
    model = DecoderLM(11, width=WIDTH, heads=HEADS, max_length=LENGTH, position="none")
    assert with_attention(model, partial(LAYERS[name][0], is_causal=True)) is model
    ids = torch.randint(11, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    before = model(ids).detach()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(5):
        loss = cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        for parameter in model.parameters():
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert not torch.equal(model(ids), before)
    changed = ids.clone()
    changed[:, 9:] = (ids[:, 9:] + 1) % 11
    torch.testing.assert_close(model(changed)[:, :9], model(ids)[:, :9])
    weights = model(ids, return_weights=True)[1]
    assert not weights.triu(1).any()


@every_layer
def test_a_layer_that_sees_the_future_cannot_be_decoded(name):
    with pytest.raises(ValueError, match="is_causal must be True"):
        make(name).step(None, tokens())


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_multi_head_attention_keeps_a_key_and_a_value_for_each_key_head(key_heads):
    layer = MultiHeadAttention(24, 4, key_heads=key_heads)
    assert cache_numbers(layer) == 2 * key_heads * 6
    assert cache_numbers(layer) * 4 == cache_numbers(MultiHeadAttention(24, 4)) * key_heads


def test_a_module_that_does_not_say_what_it_keeps_is_an_error():
    with pytest.raises(TypeError, match=r"layer must be a MultiHeadAttention or have .* got Block"):
        cache_numbers(Block(8, 2))


def test_with_attention_is_seeded_and_leaves_the_random_state_and_the_rest_alone():
    def build(seed):
        layer = partial(EfficientAttention, WIDTH, is_causal=True)
        return with_attention(DecoderLM(11, width=WIDTH, layers=2), layer, seed=seed)

    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, second, other = build(0), build(0), build(1)
    assert torch.equal(torch.rand(3), expected)
    plain = dict(DecoderLM(11, width=WIDTH, layers=2).named_parameters())
    for (name, a), (_, b), (_, c) in zip(
        first.named_parameters(), second.named_parameters(), other.named_parameters(), strict=True
    ):
        assert torch.equal(a, b)
        if ".attention." in name:
            assert not torch.equal(a, c)
        else:
            assert torch.equal(a, plain[name])
    a, b = (block.attention.to_query.weight for block in first.blocks)
    assert not torch.equal(a, b)


def test_with_attention_names_what_is_wrong_and_changes_nothing_then():
    model = DecoderLM(11, width=WIDTH, layers=2)
    layer = EfficientAttention(WIDTH, is_causal=True)
    cases = [
        (TypeError, "model must be a DecoderLM, got Block", Block(8, 2), lambda: layer),
        (TypeError, "make_layer must be callable, got int", model, 3),
        (TypeError, "make_layer must make a torch.nn.Module, got int", model, lambda: 3),
        (ValueError, "a new layer at each call", model, lambda: layer),
        (ValueError, "is_causal=True", model, partial(EfficientAttention, WIDTH)),
    ]
    for error, words, given, make_layer in cases:
        with pytest.raises(error, match=words):
            with_attention(given, make_layer)
    assert all(isinstance(block.attention, MultiHeadAttention) for block in model.blocks)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: LatentAttention(24, 5, latent_width=4), "heads must divide width 24, got 5"),
        (lambda: LatentAttention(24, 3, latent_width=0), "latent_width must be at least 1, got 0"),
        (
            lambda: LatentAttention(24, 3, latent_width=4, rotary_width=3),
            "rotary_width must be even, because rope turns pairs of coordinates, got 3",
        ),
        (
            lambda: LatentAttention(24, 3, latent_width=4, rotary_width=2, position="none"),
            "rotary_width must be 0 with position 'none', got 2",
        ),
        (
            lambda: LatentAttention(24, 3, latent_width=4, position="alibi"),
            "position must be one of none, rope",
        ),
        (
            lambda: LatentAttentionBeforeRotation(15, 3, latent_width=4),
            "width / heads must be even",
        ),
        (
            lambda: UnequalHeadsAttention(24, 4, key_heads=3, value_heads=4),
            "key_heads must divide heads 4, got 3",
        ),
        (
            lambda: UnequalHeadsAttention(24, 4, key_heads=2, value_heads=0),
            "value_heads must divide heads 4, got 0",
        ),
        (
            lambda: UnequalHeadsAttention(24, 4, key_heads=2.0, value_heads=4),
            "key_heads must be an int, got float",
        ),
        (
            lambda: UnequalHeadsAttention(
                24, 4, key_heads=2, value_heads=4, key_width=3, position="rope"
            ),
            "key_width must be even",
        ),
        (
            lambda: UnequalHeadsAttention(24, 4, key_heads=2, value_heads=4, query_expansion=-1.0),
            "query_expansion must be positive, got -1.0",
        ),
        (lambda: OptimizedAttention(24, 5), "heads must divide width 24, got 5"),
        (lambda: SuperAttention(24, length=0), "length must be at least 1, got 0"),
        (
            lambda: SuperAttention(24, length=3)(torch.ones(1, 4, 24)),
            "context must be at most length = 3 long, got 4",
        ),
        (lambda: AddedHeadEmbeddings(24, 7), "heads must divide width 24, got 7"),
        (lambda: EfficientAttention(9, 3, position="rope"), "width / heads must be even"),
    ],
)
def test_sizes_that_do_not_fit_are_named(build, words):
    with pytest.raises((ValueError, TypeError)) as caught:
        build()
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["efficient", "latent"])
def test_another_batch_than_the_kept_one_is_an_error(name):
    layer = make(name, is_causal=True)
    _, kept = layer.step(None, tokens())
    with pytest.raises(ValueError, match=r"x must have the batch|latent must have shape"):
        layer.step(kept, tokens()[:1])
