"""Gaussian weights over features: the formula, what it is equal to, its limits, its errors."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from attnlib.atlas import get
from attnlib.weight.gaussian_features import (
    GaussianAdaptiveAttention,
    gaussian_adaptive_attention,
    gaussian_weights,
    merged,
)


def drawn(gaussians=3, features=4):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return normal(2, 7, features), normal(gaussians, features), normal(gaussians, features) + 3


def test_three_times_by_hand():
    # Mean 1 and variance 2/3: with offset 0 and spread 1, y^2 is 3/2, 0 and 3/2.
    x = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
    side = math.exp(-(1 / (2 / 3)) / 2)
    wanted = torch.tensor([[side], [1.0], [side]], dtype=torch.float64) / (1 + 2 * side)
    zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    assert torch.allclose(gaussian_weights(x, zero, one), wanted, atol=1e-7)
    read = gaussian_adaptive_attention(x, zero, one)
    assert torch.allclose(read, x * wanted, atol=1e-7)


def test_the_weights_are_the_normalized_product_of_densities():
    x, offsets, spreads = drawn()
    density = torch.ones_like(x)
    for offset, spread in zip(offsets, spreads, strict=True):
        y = (x - (x.mean(1, keepdim=True) + offset)) / x.std(1, keepdim=True, correction=0)
        density = density * torch.exp(-(y**2) / (2 * spread**2)) / spread
    wanted = density / density.sum(1, keepdim=True)
    assert torch.allclose(gaussian_weights(x, offsets, spreads), wanted, atol=1e-7)


def test_weights_sum_to_one_over_time_and_a_wide_spread_makes_them_equal():
    x, offsets, spreads = drawn()
    got = gaussian_weights(x, offsets, spreads)
    assert torch.allclose(got.sum(1), torch.ones(2, 4, dtype=torch.float64)) and (got > 0).all()
    assert (gaussian_weights(x, offsets, 1e5 * spreads) - 1 / 7).abs().max() < 1e-8


def test_a_product_of_gaussians_is_one_gaussian():
    x, offsets, spreads = drawn(gaussians=5)
    offset, spread = merged(offsets, spreads)
    assert offset.shape == spread.shape == (1, 4)
    got = gaussian_weights(x, offset, spread)
    assert torch.allclose(got, gaussian_weights(x, offsets, spreads), atol=1e-12)


def test_a_positive_offset_prefers_high_values():
    x, _, _ = drawn()
    one = torch.ones(1, 1, dtype=torch.float64)
    got = gaussian_weights(x, 3 * one, one)
    assert torch.equal(got.argmax(1), x.argmax(1))


def test_level_and_scale_of_a_feature_do_not_matter_and_features_are_apart():
    x, _, spreads = drawn()
    none = torch.zeros_like(spreads)
    got = gaussian_weights(x, none, spreads)
    scale = torch.tensor([1.0, 2.0, 5.0, 0.1], dtype=torch.float64)
    assert torch.allclose(gaussian_weights(scale * x + 9, none, spreads), got, atol=1e-6)
    changed = x.clone()
    changed[..., 1] = changed[..., 1].flip(1) ** 3
    again = gaussian_weights(changed, none, spreads)
    assert torch.equal(again[..., [0, 2, 3]], got[..., [0, 2, 3]])
    assert not torch.allclose(again[..., 1], got[..., 1])


def test_one_time_and_a_constant_feature_are_finite_with_finite_gradients():
    _, offsets, spreads = drawn()
    for x in (torch.ones(1, 1, 4), torch.ones(1, 5, 4)):
        x = x.double().requires_grad_()
        got = gaussian_weights(x, 0 * offsets, spreads)
        assert torch.allclose(got, torch.full_like(got, 1 / x.shape[1]))
        got.square().sum().backward()
        assert x.grad.isfinite().all()


def test_gradients_agree_with_finite_differences():
    x, offsets, spreads = drawn(gaussians=2, features=2)
    inputs = [tensor.requires_grad_() for tensor in (x, offsets, spreads)]
    assert gradcheck(gaussian_adaptive_attention, inputs)


def test_the_layer_shares_its_numbers_within_a_head_and_learns_them():
    layer = GaussianAdaptiveAttention(6, heads=2, gaussians=3)
    assert sum(parameter.numel() for parameter in layer.parameters()) == 12
    with torch.no_grad():
        layer.offsets.copy_(torch.tensor([[1.0, -1.0]] * 3))
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    offsets = torch.tensor([[1.0, 1, 1, -1, -1, -1]] * 3)
    wanted = gaussian_adaptive_attention(x, offsets, torch.full((3, 1), 2.0))
    assert torch.allclose(layer(x), wanted)
    layer(x).square().sum().backward()
    assert all((parameter.grad != 0).all() for parameter in layer.parameters())


def test_it_is_in_the_atlas_as_another_form():
    assert get("gaam").function is gaussian_adaptive_attention and get("gaam").promises is None


def test_wrong_input_is_named():
    x, offsets, spreads = drawn()
    with pytest.raises(ValueError, match=r"offsets must have shape \(G, 4\) or \(G, 1\), got"):
        gaussian_weights(x, offsets[:, :3], spreads)
    with pytest.raises(ValueError, match="spreads must have the 3 rows of offsets, got 2"):
        gaussian_weights(x, offsets, spreads[:2])
    with pytest.raises(ValueError, match="spreads must not be zero"):
        gaussian_weights(x, offsets, 0 * spreads)
    with pytest.raises(ValueError, match="x must have shape"):
        gaussian_weights(x[:, :0], offsets, spreads)
    with pytest.raises(ValueError, match="heads must divide channels 6, got 4"):
        GaussianAdaptiveAttention(6, heads=4)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_a_constant_feature_is_finite_in_half_precision(dtype):
    x, offsets, spreads = (t.to(dtype) for t in (torch.ones(1, 5, 4), *drawn()[1:]))
    got = gaussian_weights(x, 0 * offsets, spreads)
    assert got.dtype == dtype and torch.allclose(got, torch.full_like(got, 0.2))


def test_parameters_that_are_no_numbers_are_named():
    x, offsets, spreads = drawn()
    with pytest.raises(ValueError, match="spreads must be finite"):
        gaussian_weights(x, offsets, spreads * math.nan)
    with pytest.raises(ValueError, match="offsets must be finite"):
        gaussian_weights(x, offsets + math.inf, spreads)
    with pytest.raises(ValueError, match="spreads must have the 3 rows of offsets, got 2"):
        merged(offsets, spreads[:2])
    with pytest.raises(ValueError, match="spreads must not be zero"):
        merged(offsets, 0 * spreads)
