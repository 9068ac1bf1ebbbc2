"""TTT-linear with its norm and residual, and the layers that learn its rate and its start."""

import pytest
import torch
from torch.nn.functional import layer_norm, normalize

from attnlib.memory.normed_training import (
    normed_answer,
    slope_before_norm,
    ttt_normed_chunked,
    ttt_normed_recurrent,
)
from attnlib.memory.test_time_training import TTTState
from attnlib.models.test_time_layer import NormedTTTLayer, TTTLayer


def drawn(length: int):
    """query, unit key, value, a rate for each token, weight and bias of the norm."""
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    query, key = (normalize(normal(2, length, 4), dim=-1) for _ in range(2))
    rate = 0.1 * normal(2, length).sigmoid()
    norm = {"weight": 1 + 0.2 * normal(2, 1, 4), "bias": 0.2 * normal(2, 1, 4)}
    return (query, key, normal(2, length, 4)), {"rate": rate, **norm}


def test_the_slope_by_hand_is_that_of_autograd():
    (query, _, value), given = drawn(7)
    before = query.clone().requires_grad_()
    answer = given["weight"] * layer_norm(before, (4,), eps=1e-6) + given["bias"]
    (slope,) = torch.autograd.grad(0.5 * (answer - value).square().sum(), before)
    by_hand = slope_before_norm(before, value, given["weight"], given["bias"])
    assert torch.allclose(by_hand, slope, atol=1e-12)


@pytest.mark.parametrize("length", [1, 15, 63, 100, 257])
@pytest.mark.parametrize("mini_batch", [1, 6])
def test_the_forms_are_equal_and_their_gradients_too(length, mini_batch):
    tensors, given = drawn(length)
    # A model of zeros would be divided by its spread of zero: it begins small, as in the layer.
    first = 0.3 * torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(5)).double()
    leaves = [x.requires_grad_() for x in (*tensors, *given.values(), first)]

    def run(form):
        begin = TTTState(first, first, 0)
        read, state = form(*tensors, **given, mini_batch=mini_batch, state=begin)
        probe = torch.linspace(-1, 1, read.numel(), dtype=torch.float64).view_as(read)
        loss = (read * probe).sum() + state.memory.sum()
        return (read, state.memory, *torch.autograd.grad(loss, leaves))

    for got, wanted in zip(run(ttt_normed_chunked), run(ttt_normed_recurrent), strict=True):
        assert torch.allclose(got, wanted, rtol=1e-10, atol=1e-10)


def test_a_stream_in_pieces_is_the_batch():
    tensors, given = drawn(40)
    wanted, target = ttt_normed_recurrent(*tensors, **given, mini_batch=7)
    norm = {name: given[name] for name in ("weight", "bias")}
    state, reads, start = None, [], 0
    for length in (1, 2, 9, 0, 28):
        rows = (..., slice(start, start + length), slice(None))
        read, state = ttt_normed_chunked(
            *(x[rows] for x in tensors),
            **norm,
            rate=given["rate"][:, start : start + length],
            mini_batch=7,
            state=state,
        )
        reads.append(read)
        start += length
    assert torch.allclose(torch.cat(reads, dim=-2), wanted, atol=1e-10)
    assert torch.allclose(state.memory, target.memory, rtol=1e-10)
    answer = normed_answer(state.memory, tensors[0][:, -1:], **norm)
    assert torch.allclose(answer, wanted[:, -1:], atol=1e-10)


@pytest.mark.parametrize("kind", [TTTLayer, NormedTTTLayer])
def test_a_layer_is_causal_learns_everything_and_keeps_its_rate_stable(kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = kind(8, 2, mini_batch=4).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 19, 8, generator=generator, dtype=torch.float64).requires_grad_()
    read = layer(x)
    assert read.shape == x.shape
    (slope,) = torch.autograd.grad(read[:, 9].square().sum(), x, retain_graph=True)
    assert not slope[:, 10:].any() and slope[:, 0].any()
    read.square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name
    assert 0 < layer.rate(100 * x).max() <= 2 / 4
    assert layer.state_numbers(1000) == 2 * 2 * 4 * 4


def test_wrong_input_is_named():
    (query, key, value), given = drawn(5)
    with pytest.raises(ValueError, match="value must have the width of key, 4, got 3"):
        ttt_normed_chunked(query, key, value[..., :3], **given)
    with pytest.raises(ValueError, match="value_width must be key_width, 4, got 2"):
        NormedTTTLayer(8, 2, value_width=2)
    with pytest.raises(ValueError, match="mini_batch must be at least 1"):
        TTTLayer(8, 2, mini_batch=0)
    with pytest.raises(ValueError, match="rate must keep the memory stable"):
        ttt_normed_recurrent(query, key, value, **{**given, "rate": 3.0})
