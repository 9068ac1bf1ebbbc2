"""The neural memory on tokens, as context, gate and layer: streams, causality, gradients."""

import pytest
import torch

from attnlib.models.language import DecoderLM
from attnlib.models.learned_memory import LearnedMemory
from attnlib.models.replaced import with_attention
from attnlib.models.titans_layers import (
    MemoryAsContext,
    MemoryAsGate,
    MemoryAsLayer,
    PersistentWindow,
)

LAYERS = {
    "window": lambda **more: PersistentWindow(8, 2, window=5, **more),
    "gate": lambda **more: MemoryAsGate(8, 2, window=5, **more),
    "layer": lambda **more: MemoryAsLayer(8, 2, window=5, **more),
    "context": lambda **more: MemoryAsContext(8, 2, segment=6, **more),
    "deep gate": lambda **more: MemoryAsGate(8, 2, window=5, depth=2, mini_batch=4, **more),
    "deep context": lambda **more: MemoryAsContext(8, 2, segment=6, depth=2, **more),
}


def made(name: str, **more):
    """The layer with parameters of seed 0, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LAYERS[name](**more).double()


def tokens(length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randn(2, length, 8, generator=generator, dtype=torch.float64)


def numbers(state) -> int:
    """How many numbers a state holds."""
    if isinstance(state, torch.Tensor):
        return state.numel()
    return sum(map(numbers, state)) if isinstance(state, tuple) else 0


@pytest.mark.parametrize("length", [1, 15, 63, 100])
@pytest.mark.parametrize("name", LAYERS)
def test_a_stream_in_pieces_is_the_batch(name, length):
    layer, x = made(name), tokens(length)
    with torch.no_grad():
        wanted = layer(x)
        state, reads, start, pieces = None, [], 0, (1, 1, 2, 0, 7, 1, 11)
        while start < length:
            piece = pieces[len(reads) % len(pieces)]
            read, state = layer.step(state, x[:, start : start + piece])
            reads.append(read)
            start += piece
    assert torch.allclose(torch.cat(reads, dim=1), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_no_token_sees_the_future_and_only_a_memory_sees_far_back(name):
    layer, x = made(name), tokens(24).requires_grad_()
    (slope,) = torch.autograd.grad(layer(x)[:, 20].square().sum(), x)
    seen = slope.abs().amax((0, 2)) > 0
    assert not seen[21:].any()
    assert seen[20]
    if name == "window":  # five tokens, and the three that the convolution brings to the oldest
        assert not seen[:13].any() and seen[13:21].all()
    else:
        assert seen[:13].any()


@pytest.mark.parametrize("name", LAYERS)
def test_the_state_stops_growing_and_the_state_that_came_stays(name):
    layer = made(name)
    with torch.no_grad():
        _, state = layer.step(None, tokens(24))
        _, later = layer.step(state, tokens(24))
        assert numbers(later) == numbers(state)
        first, _ = layer.step(state, tokens(3))
        layer.step(state, tokens(9))
        again, _ = layer.step(state, tokens(3))
    assert torch.equal(first, again)


@pytest.mark.parametrize("name", LAYERS)
def test_every_parameter_learns(name):
    layer = made(name)
    if "deep" in name:  # behind a last matrix of zeros the first has no slope yet
        torch.nn.init.normal_(layer.memory.first[-1], generator=torch.Generator().manual_seed(0))
    layer(tokens(20)).square().sum().backward()
    for parameter, value in layer.named_parameters():
        assert value.grad is not None and value.grad.isfinite().all(), parameter
        assert value.grad.abs().max() > 0, parameter


@pytest.mark.parametrize("name", ["gate", "context"])
def test_gradients_through_the_learning_agree_with_finite_differences(name):
    layer = made(name)
    x = 0.5 * tokens(8)[:1]
    assert torch.autograd.gradcheck(layer, x.requires_grad_(), fast_mode=True)


def test_persistent_tokens_change_what_is_read_and_may_be_left_out():
    for name in LAYERS:
        layer = made(name)
        before = layer(tokens(9))
        with torch.no_grad():
            layer.persistent.add_(1.0)
        assert (layer(tokens(9)) - before).abs().max() > 1e-6, name
        assert made(name, persistent=0)(tokens(9)).isfinite().all()


def test_the_memory_of_a_layer_keeps_its_rates_below_the_bound():
    for depth in (1, 2):
        memory = LearnedMemory(8, 2, depth=depth)
        theta, eta, alpha = memory.rates(100 * tokens(50).float())
        assert (theta / (1 - eta).clamp(min=1e-9) * memory.curvature).max() <= 1 + 1e-5
        assert alpha.min() >= 0 and alpha.max() <= 1


def test_asking_writes_nothing_and_an_unwritten_memory_answers_with_its_first_weights():
    memory = LearnedMemory(8, 2).double()
    assert not memory.read(tokens(3), None).any()
    _, state = memory(tokens(7))
    read = memory.read(tokens(3), state)
    assert read.any() and torch.equal(read, memory.read(tokens(3), state))


@pytest.mark.parametrize("name", LAYERS)
def test_the_layers_fit_a_language_model(name):
    model = DecoderLM(11, width=8, heads=2, layers=2, position="none")
    model = with_attention(model, LAYERS[name])
    logits = model(torch.arange(20).remainder(11)[None])
    assert logits.shape == (1, 20, 11) and logits.isfinite().all()


def test_wrong_input_is_named():
    layer = made("gate")
    cases = [
        (lambda: MemoryAsGate(8, 3, window=5), ValueError, "heads must divide width 8"),
        (lambda: MemoryAsGate(8, 2, window=0), ValueError, "window must be at least 1"),
        (lambda: MemoryAsContext(8, 2, segment=0), ValueError, "segment must be at least 1"),
        (lambda: MemoryAsGate(8, 2, window=5, persistent=-1), ValueError, "persistent must be"),
        (lambda: MemoryAsLayer(8, 2, window=5, depth=0), ValueError, "depth must be at least 1"),
        (lambda: MemoryAsLayer(8, 2, window=5, convolution=0), ValueError, "convolution must be"),
        (lambda: LearnedMemory(8, 2, mini_batch=0), ValueError, "mini_batch must be at least 1"),
        (lambda: layer(tokens(4)[..., :6]), ValueError, r"x must have shape \(batch, N, 8\)"),
        (lambda: layer(tokens(4).long()), TypeError, "x must be a floating-point tensor"),
        (lambda: layer(tokens(4), return_weights=True), ValueError, "return_weights"),
    ]
    for call, kind, words in cases:
        with pytest.raises(kind, match=words):
            call()
