"""The additive recurrence: a running softmax in three forms, and no order where there is none."""

import pytest
import torch

from attnlib.memory.additive_recurrence import (
    AdditiveState,
    additive_recurrence,
    additive_recurrence_dense,
    additive_recurrence_step,
    shares,
)
from attnlib.memory.retention import retention

LENGTHS = (1, 15, 63, 100, 257)


def draw(length, size=1.0):
    generator = torch.Generator().manual_seed(length)
    drawn = (torch.randn(2, length, w, generator=generator).double() for w in (4, 4, 3))
    return [(size * x).requires_grad_() for x in drawn]


def assert_same(got, wanted):
    assert (got - wanted).abs().max().item() <= 1e-12 * max(1.0, wanted.abs().max().item())


def assert_same_gradients(got, wanted, inputs):
    probe = torch.linspace(-1, 1, wanted.numel(), dtype=wanted.dtype).view_as(wanted)
    slopes = [
        torch.autograd.grad((x * probe).sum(), inputs, retain_graph=True) for x in (got, wanted)
    ]
    for ours, theirs in zip(*slopes, strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
def test_every_chunk_gives_the_dense_read_and_gradients(length, is_causal):
    inputs = draw(length)
    wanted = additive_recurrence_dense(*inputs, is_causal=is_causal)
    for chunk in (1, 7, 64, 300) if length < 100 else (16, 300):
        got = additive_recurrence(*inputs, is_causal=is_causal, chunk=chunk)
        assert_same(got, wanted)
        assert_same_gradients(got, wanted, inputs)


@pytest.mark.parametrize("length", LENGTHS)
def test_token_by_token_is_the_running_softmax(length):
    inputs = draw(length, size=3.0)
    state, reads = None, []
    for t in range(length):
        read, state = additive_recurrence_step(state, *(x[:, t : t + 1] for x in inputs))
        reads.append(read)
    got = torch.cat(reads, 1)
    wanted = additive_recurrence(*inputs, is_causal=True)
    assert_same(got, wanted)
    assert_same_gradients(got, wanted, inputs)
    _, key, value = inputs
    assert_same(state.log_total, key.logsumexp(-2))
    assert_same(state.mean, key.softmax(-2).mT @ value)


def test_several_tokens_at_once_continue_a_state():
    inputs = draw(15)
    first, state = additive_recurrence_step(None, *(x[:, :6] for x in inputs))
    second, _ = additive_recurrence_step(state, *(x[:, 6:] for x in inputs))
    assert_same(torch.cat((first, second), 1), additive_recurrence(*inputs, is_causal=True))


def test_the_shares_of_a_channel_sum_to_one():
    key = draw(15, size=5.0)[1]
    share, left, total = shares(key)
    weights = [share[:, s] * left[:, s + 1 :].sum(1).exp() for s in range(15)]
    assert_same(torch.stack(weights).sum(0), torch.ones(2, 4, dtype=torch.float64))
    assert_same(total[:, -1], key.logsumexp(1))


def test_a_grid_reads_the_same_in_every_scan_and_a_decay_does_not():
    inputs = [x.detach() for x in draw(36)]
    scan = torch.arange(36).view(6, 6).T.flatten()
    columns = [x[:, scan] for x in inputs]
    rows_first = additive_recurrence(*inputs)[:, scan]
    assert_same(additive_recurrence(*columns), rows_first)
    assert (retention(*columns) - retention(*inputs)[:, scan]).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_scores_stay_finite_and_the_largest_wins(dtype):
    query, key, value = (x.detach().to(dtype) for x in draw(15))
    key[:, 7] = 1e4
    read = additive_recurrence(query, key, value, is_causal=True)
    assert read.isfinite().all()
    wanted = query.sum(-1, keepdim=True) / 2 * value[:, 7:8]
    assert torch.allclose(read[:, 7:].float(), wanted[:, 7:].float(), atol=5e-2, rtol=2e-2)


@pytest.mark.parametrize("length", [1, 15])
def test_the_kernel_gives_the_causal_form(length):
    pytest.importorskip("triton")
    inputs = draw(length)
    got = additive_recurrence(*inputs, is_causal=True, backend="triton")
    assert_same(got, additive_recurrence(*inputs, is_causal=True))


def test_a_wrong_state_is_refused_by_name():
    inputs = [x.detach() for x in draw(3)]
    with pytest.raises(TypeError, match="state must be an AdditiveState or None, got Tensor"):
        additive_recurrence_step(torch.zeros(2, 4, 3), *inputs)
    _, state = additive_recurrence_step(None, *inputs)
    with pytest.raises(ValueError, match=r"state.mean must have shape \(2, 4, 3\)"):
        additive_recurrence_step(AdditiveState(state.log_total, state.mean.mT), *inputs)
    with pytest.raises(ValueError, match=r"state.log_total must have shape"):
        additive_recurrence_step(AdditiveState(state.log_total[:, :2], state.mean), *inputs)
    with pytest.raises(ValueError, match="key must have the shape of query"):
        additive_recurrence(inputs[0], inputs[1][:, :2], inputs[2][:, :2])
    with pytest.raises(ValueError, match="chunk"):
        additive_recurrence(*inputs, chunk=0)


def test_no_tokens_give_an_empty_read():
    for is_causal in (False, True):
        assert additive_recurrence(*draw(0), is_causal=is_causal).shape == (2, 0, 3)


def test_a_step_without_tokens_or_total_is_refused_by_name():
    query, key, value = (x.detach() for x in draw(1))
    with pytest.raises(ValueError, match="query must have at least one token"):
        additive_recurrence_step(None, query[:, :0], key[:, :0], value[:, :0])
    with pytest.raises(TypeError, match=r"state\.log_total must be a torch\.Tensor"):
        additive_recurrence_step(AdditiveState(None, torch.zeros(2, 4, 3)), query, key, value)
