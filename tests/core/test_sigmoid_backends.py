"""Sigmoid attention is one function in both forms, and says why where the kernel cannot run."""

import pytest
import torch

from attnlib import attend, sigmoid_attention
from attnlib.score import alibi
from attnlib.support import window
from attnlib.weight.sigmoid import sigmoid

pytest.importorskip("triton")


def draw(queries, keys, heads=2, key_heads=2, batch=2):
    generator = torch.Generator().manual_seed(0)
    shapes = (heads, queries, 8), (key_heads, keys, 8), (key_heads, keys, 5)
    return [torch.randn(batch, *s, generator=generator).double().requires_grad_() for s in shapes]


def assert_same_read_and_gradients(got, wanted, inputs):
    assert torch.allclose(got, wanted, rtol=0, atol=1e-12)
    probe = torch.linspace(-1, 1, wanted.numel(), dtype=wanted.dtype).view_as(wanted)
    slopes = [torch.autograd.grad((read * probe).sum(), inputs) for read in (got, wanted)]
    for ours, theirs in zip(*slopes, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


PADDING = torch.rand(2, 1, 1, 21, generator=torch.Generator().manual_seed(1)) < 0.6
OPTIONS = {
    "plain": {},
    "causal, later": {"is_causal": True, "query_offset": 5},
    "padding": {"attn_mask": PADDING},
    "padding, causal": {"attn_mask": PADDING, "is_causal": True, "query_offset": 2, "scale": 0.3},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_both_forms_count_the_keys_of_a_row(name, backend):
    inputs = draw(19, 21)
    got = sigmoid_attention(*inputs, **OPTIONS[name], backend=backend)
    wanted = attend(*inputs, weight=sigmoid, **OPTIONS[name])
    assert_same_read_and_gradients(got, wanted, inputs)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_groups_and_a_given_bias(backend):
    inputs = draw(9, 15, heads=4)
    options = {"enable_gqa": True, "is_causal": True, "query_offset": 6, "bias": -1.5}
    got = sigmoid_attention(*inputs, **options, backend=backend)
    options.pop("bias")
    wanted = attend(*inputs, weight=lambda s, allowed: sigmoid(s, allowed, bias=-1.5), **options)
    assert_same_read_and_gradients(got, wanted, inputs)


CANNOT = {
    "the kernel takes no score_mod": {"score_mod": alibi(2)},
    "the kernel takes no support": {"support": window(3)},
    r"the same for all queries and heads.*got \(9, 15\)": {"attn_mask": torch.ones(9, 15) > 0},
}


@pytest.mark.parametrize("reason", CANNOT)
def test_what_the_kernel_cannot_do_is_said_and_left_to_pytorch(reason):
    inputs = draw(9, 15)
    with pytest.raises(ValueError, match=reason):
        sigmoid_attention(*inputs, **CANNOT[reason], backend="triton")
    got = sigmoid_attention(*inputs, **CANNOT[reason])
    assert torch.allclose(got, attend(*inputs, weight=sigmoid, **CANNOT[reason]), atol=1e-12)


def test_a_head_too_wide_and_an_unknown_backend():
    wide = [torch.ones(1, 3, 257)] * 3
    with pytest.raises(ValueError, match="widths from 1 to 256, got D = 257"):
        sigmoid_attention(*wide, backend="triton")
    with pytest.raises(ValueError, match="backend must be one of"):
        sigmoid_attention(*draw(3, 3), backend="cuda")
