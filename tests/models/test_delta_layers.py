"""Layers over a memory read what the operator of the same name reads, and nothing of the future."""

import pytest
import torch

from attnlib import attend
from attnlib.memory.convolutions import (
    kernel_in_a_row,
    kernel_side_by_side,
    long_convolution,
    short_convolution,
)
from attnlib.memory.delta_attention import gated_delta_rule_attention
from attnlib.memory.gated_linear import gated_linear_attention
from attnlib.memory.hgrn2 import hgrn2_attention
from attnlib.memory.retention import retention
from attnlib.memory.short_long import short_long_convolution
from attnlib.memory.state_space_duality import state_space_duality
from attnlib.models import DecoderLM, with_attention
from attnlib.models.delta_layer import DeltaLayer, GatedDeltaLayer
from attnlib.models.hybrid_heads import HybridHeads
from attnlib.models.short_long_layer import ShortLongConvolution, ShortLongLayer
from attnlib.models.state_layer import ShortConvolution, SoftmaxLayer, WindowLayer
from attnlib.models.summing_layers import (
    GatedLinearLayer,
    LinearLayer,
    RetentionLayer,
    StateSpaceLayer,
    SumLayer,
    TaylorLayer,
    TiedGateLayer,
)
from attnlib.read.based_attention import based_attention
from attnlib.read.hybrid_heads import hybrid_heads
from attnlib.read.linear_attention import linear_attention
from attnlib.support import window
from attnlib.tasks import Copy
from attnlib.training import train

LAYERS = {
    "softmax": SoftmaxLayer,
    "window": lambda *sizes, **rest: WindowLayer(*sizes, window=3, **rest),
    "linear": LinearLayer,
    "taylor": TaylorLayer,
    "sum": SumLayer,
    "retention": RetentionLayer,
    "gated linear": GatedLinearLayer,
    "tied gates": TiedGateLayer,
    "state space": StateSpaceLayer,
    "delta": DeltaLayer,
    "delta to 2": lambda *sizes, **rest: DeltaLayer(*sizes, largest_beta=2.0, **rest),
    "gated delta": GatedDeltaLayer,
    "short and long": lambda *sizes, **rest: ShortLongLayer(*sizes, taps=3, length=7, **rest),
    "hybrid heads": lambda *sizes, **rest: HybridHeads(*sizes, gates=0.3, **rest),
}


def made(name, **sizes):
    torch.manual_seed(0)
    return LAYERS[name](8, 2, **sizes).double()


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_causal_keeps_its_shape_and_has_gradients_everywhere(name):
    layer, x = made(name, key_width=3, value_width=5), draw(2, 11, 8)
    read = layer(x)
    assert read.shape == x.shape
    changed = x.clone()
    changed[:, 7:] += 1
    torch.testing.assert_close(layer(changed)[:, :7], read[:, :7], rtol=1e-12, atol=1e-12)
    assert (layer(changed)[:, 7:] - read[:, 7:]).abs().min(-1).values.max() > 1e-6
    read.square().sum().backward()
    for part, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), part
        assert parameter.grad.count_nonzero(), part


def of_delta(layer, query, key, value, x):
    gates = {"beta": layer.beta(x), "log_decay": 0.0}
    if isinstance(layer, GatedDeltaLayer):
        gates["log_decay"] = layer.log_decay(x)
    return gated_delta_rule_attention(query, key, value, is_causal=True, scale=1.0, **gates)


def of_gated(layer, query, key, value, x):
    gates = layer.to_decay(x).sigmoid().log() / 16
    gates = gates.unflatten(-1, (2, 4)).transpose(1, 2)
    return gated_linear_attention(query, key, value, log_decay=gates)


def of_state_space(layer, query, key, value, x):
    step = torch.nn.functional.softplus(layer.to_step(x)).mT
    rate = layer.log_rate.exp()[:, None]
    return state_space_duality(query, key, value, step=step, rate=rate)


OPERATORS = {
    "softmax": lambda layer, q, k, v, x: attend(q, k, v, is_causal=True),
    "window": lambda layer, q, k, v, x: attend(q, k, v, support=window(3), is_causal=True),
    "linear": lambda layer, q, k, v, x: linear_attention(q, k, v, is_causal=True),
    "taylor": lambda layer, q, k, v, x: based_attention(q, k, v, is_causal=True),
    "retention": lambda layer, q, k, v, x: retention(q, k, v),
    "gated linear": of_gated,
    "tied gates": lambda layer, q, k, v, x: hgrn2_attention(q, k, v, lower_bound=0.9),
    "state space": of_state_space,
    "delta": of_delta,
    "delta to 2": of_delta,
    "gated delta": of_delta,
}


@pytest.mark.parametrize("name", OPERATORS)
def test_the_read_of_a_layer_is_that_of_the_operator(name):
    layer, operator = made(name, key_width=4), OPERATORS[name]
    x = draw(2, 20, 8)
    query, key, value = (draw(2, 2, 20, 4, seed=seed) for seed in (1, 2, 3))
    got, wanted = layer.read(query, key, value, x), operator(layer, query, key, value, x)
    rounding = 1e-7 if name == "retention" else 1e-12  # its rates are made in float32
    torch.testing.assert_close(got, wanted, rtol=rounding, atol=rounding)


def test_beta_and_decay_stay_in_their_ranges_for_any_token():
    x = 100 * draw(2, 50, 8)
    for name, largest in (("delta", 1.0), ("delta to 2", 2.0), ("gated delta", 1.0)):
        beta = made(name).beta(x)
        assert beta.shape == (2, 2, 50) and beta.min() >= 0 and beta.max() <= largest
    assert made("delta to 2").beta(x).max() > 1.5
    assert (made("gated delta").log_decay(x) <= 0).all()


def test_numbers_of_state_count_what_the_forms_keep():
    sizes = {"key_width": 3, "value_width": 5}
    kept = {name: made(name, **sizes).state_numbers(100) for name in LAYERS}
    assert kept["softmax"] == 2 * 100 * 8
    assert kept["window"] == 2 * 3 * 8
    assert kept["linear"] == 2 * 3 * 6
    assert kept["taylor"] == 2 * 10 * 6
    assert kept["sum"] == kept["delta"] == kept["gated delta"] == 2 * 3 * 5
    assert kept["short and long"] == 2 * 3 * 6 + 9 * 8
    assert kept["hybrid heads"] == kept["softmax"] + kept["delta"]


def test_a_language_model_learns_with_a_stack_of_different_layers():
    task = Copy(count=4, symbols=6)
    makes = iter((DeltaLayer, SoftmaxLayer))
    model = DecoderLM(task.vocabulary, width=16, layers=2, position="none")
    model = with_attention(model, lambda: next(makes)(16, 2))
    loss = train(model, task.batches(16, 0), steps=30, progress=False).loss
    assert loss[-5:].mean() < loss[:5].mean()


@pytest.mark.parametrize("taps", [1, 4, 30])
def test_the_long_convolution_is_the_short_one_by_fourier_transform(taps):
    x, kernel = draw(2, 17, 3), draw(taps, 3, seed=1)
    wanted = short_convolution(x, kernel)
    torch.testing.assert_close(long_convolution(x, kernel), wanted, rtol=1e-12, atol=1e-12)
    by_hand = sum(kernel[j] * x[:, 16 - j] for j in range(min(taps, 17)))
    torch.testing.assert_close(wanted[:, 16], by_hand, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("first", "second"), [(4, 9), (9, 4), (1, 5), (3, 3)])
def test_two_convolutions_merge_into_the_one_that_their_impulse_shows(first, second):
    x, one, two = draw(2, 20, 3), draw(first, 3, seed=1), draw(second, 3, seed=2)
    row, side = kernel_in_a_row(one, two), kernel_side_by_side(one, two)
    impulse = torch.zeros(first + second - 1, 3, dtype=torch.float64)
    impulse[0] = 1
    assert row.shape == impulse.shape
    in_a_row = short_convolution(short_convolution(impulse, one), two)
    torch.testing.assert_close(row, in_a_row, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        short_convolution(x, side), short_convolution(x, one) + short_convolution(x, two)
    )
    torch.testing.assert_close(
        short_long_convolution(x, one, two), short_convolution(short_convolution(x, one), two)
    )


def test_something_that_bends_between_two_convolutions_cannot_be_merged():
    x, one, two = draw(2, 20, 3), draw(4, 3, seed=1), draw(9, 3, seed=2)
    bent = short_convolution(short_convolution(x, one).relu(), two)
    assert (bent - short_long_convolution(x, one, two)).abs().max() > 0.1


def test_the_layer_runs_its_two_kernels_as_one():
    torch.manual_seed(0)
    layer = ShortLongConvolution(3, taps=4, length=9).double()
    x = draw(2, 20, 3)
    wanted = x + short_convolution(short_convolution(x, layer.short), layer.long)
    torch.testing.assert_close(layer(x), wanted, rtol=1e-12, atol=1e-12)


def test_zero_gates_make_hybrid_heads_a_plain_concatenation():
    looking, keeping, share = draw(2, 3, 5, 4), draw(2, 3, 5, 4, seed=1), draw(2, 3, 5, 1).sigmoid()
    zero, one = torch.zeros(3, 1, 1).double(), torch.ones(3, 1, 1).double()
    fused = hybrid_heads(looking, keeping, added=zero, mixed=zero, share=share)
    assert torch.equal(fused, torch.cat((looking, keeping, torch.zeros_like(looking)), dim=1))
    fused = hybrid_heads(looking, keeping, added=zero, mixed=one, share=0 * share + 1)
    assert torch.equal(fused[:, 6:], looking)

    layer = made("hybrid heads")
    layer.added.data.zero_()
    layer.mixed.data.zero_()
    x = draw(2, 9, 8)
    both = torch.cat((layer.looking(x), layer.keeping(x)), dim=-1)
    plain = both @ layer.to_output.weight[:, :16].mT
    torch.testing.assert_close(layer(x), plain, rtol=1e-12, atol=1e-12)


WRONG = [
    (lambda: DeltaLayer(8, 3), ValueError, "heads must divide width 8, got 3"),
    (lambda: DeltaLayer(8, 2, largest_beta=2.1), ValueError, "largest_beta must lie above 0"),
    (lambda: DeltaLayer(8, 2, key_width=0), ValueError, "key_width must be at least 1"),
    (lambda: WindowLayer(8, 2, window=0), ValueError, "window must be at least 1"),
    (lambda: ShortConvolution(8, taps=0), ValueError, "taps must be at least 1"),
    (lambda: ShortLongConvolution(8, 4, 0), ValueError, "length must be at least 1"),
    (lambda: TiedGateLayer(8, 2, lower_bound=1.0), ValueError, "lower_bound must lie in"),
    (lambda: DeltaLayer(8, 2)(torch.ones(1, 3, 8), return_weights=True), ValueError, "weights"),
    (lambda: short_convolution(torch.ones(3), torch.ones(1, 3)), ValueError, "x must have shape"),
    (lambda: long_convolution(draw(4, 3), draw(2, 2)), ValueError, r"kernel must.*\(taps, 3\)"),
    (lambda: long_convolution(draw(4, 3), torch.ones(2, 3)), TypeError, "kernel must have"),
    (
        lambda: hybrid_heads(draw(3, 4), draw(3, 5), added=0, mixed=0, share=0),
        ValueError,
        "keeping",
    ),
]


@pytest.mark.parametrize(("call", "kind", "says"), WRONG)
def test_wrong_input_is_refused_by_name(call, kind, says):
    with pytest.raises(kind, match=says):
        call()
