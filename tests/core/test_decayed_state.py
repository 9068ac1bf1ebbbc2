"""Linear attention with decay: three forms of one operator, equal in values and gradients."""

import math

import pytest
import torch

from attnlib.memory.decay import behind, decay_between, scores_by_channel, until
from attnlib.memory.decayed_state import (
    decayed_attention,
    decayed_attention_dense,
    decayed_attention_step,
)

LENGTHS = (1, 15, 63, 100, 257)
CHUNKS = (1, 2, 7, 16, 64, 300)
KINDS = ("none", "head", "token", "channel")


def draw(length, kind, *, heads=2, width=4, value_width=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(length)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    shapes = {"head": (heads, 1), "token": (heads, length), "channel": (heads, length, width)}
    decay = None if kind == "none" else -normal(*shapes[kind]).exp() / 4
    tensors = [
        normal(heads, length, width),
        normal(heads, length, width),
        normal(heads, length, value_width),
        normal(heads, width, value_width),
        *([] if decay is None else [decay]),
    ]
    return [tensor.requires_grad_() for tensor in tensors]


def call(function, inputs, **options):
    query, key, value, state, *decay = inputs
    options |= {"log_decay": decay[0]} if decay else {}
    return function(query, key, value, initial_state=state, **options)


def gradients(read, inputs):
    probe = torch.linspace(-1, 1, read.numel(), dtype=read.dtype).view_as(read)
    return torch.autograd.grad((read * probe).sum(), inputs)


def assert_same(got, wanted):
    size = max(1.0, wanted.abs().max().item())
    assert (got - wanted).abs().max().item() <= 1e-12 * size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", LENGTHS)
def test_every_chunk_gives_the_read_and_gradients_of_the_dense_form(length, kind):
    inputs = draw(length, kind)
    wanted = call(decayed_attention_dense, inputs)
    slopes = gradients(wanted, inputs)
    for chunk in CHUNKS if length <= 100 else (16, 64, 300):
        got = call(decayed_attention, inputs, chunk=chunk)
        assert_same(got, wanted)
        for ours, theirs in zip(gradients(got, inputs), slopes, strict=True):
            assert_same(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", LENGTHS)
def test_token_by_token_gives_the_rows_gradients_and_final_state(length, kind):
    inputs = draw(length, kind)
    query, key, value, state, *decay = inputs
    wanted, final = call(decayed_attention, inputs, return_state=True)
    reads = []
    for t in range(length):
        now = {}
        if decay:
            row = decay[0] if kind == "head" else decay[0][:, t : t + 1]
            now = {"log_decay": row}
        token = (x[:, t : t + 1] for x in (query, key, value))
        read, state = decayed_attention_step(state, *token, **now)
        reads.append(read)
    got = torch.cat(reads, -2)
    assert_same(got, wanted)
    assert_same(state, final)
    for ours, theirs in zip(gradients(got, inputs), gradients(wanted, inputs), strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_the_final_state_of_one_half_starts_the_next(kind):
    inputs = draw(100, kind)
    query, key, value, state, *decay = inputs
    reads = []
    for rows in (slice(0, 37), slice(37, 100)):
        now = {"log_decay": decay[0] if kind == "head" else decay[0][:, rows]} if decay else {}
        half = (x[:, rows] for x in (query, key, value))
        read, state = decayed_attention(
            *half, initial_state=state, return_state=True, chunk=16, **now
        )
        reads.append(read)
    assert_same(torch.cat(reads, -2), call(decayed_attention_dense, inputs))


def test_the_state_is_the_sum_that_its_equation_says():
    key = torch.tensor([[1.0, 0.0], [1.0, 2.0]], dtype=torch.float64)
    value = torch.tensor([[3.0], [5.0]], dtype=torch.float64)
    query = torch.tensor([[1.0, 1.0], [2.0, 1.0]], dtype=torch.float64)
    decay = torch.tensor([[1.0, 1.0], [0.5, 0.25]], dtype=torch.float64).log()
    read, state = decayed_attention(
        query, key, value, log_decay=decay, scale=1.0, return_state=True
    )
    # S_1 = [3, 0]; S_2 = [0.5 * 3 + 5, 10]; o_1 = 3; o_2 = 2 * 6.5 + 10
    assert torch.allclose(state, torch.tensor([[6.5], [10.0]], dtype=torch.float64))
    assert torch.allclose(read, torch.tensor([[3.0], [23.0]], dtype=torch.float64))


@pytest.mark.parametrize("size", [1, 2, 5, 8, 13])
def test_scores_by_channel_are_the_products_between_two_tokens(size):
    query, key, _, _, decay = draw(size, "channel")
    got = scores_by_channel(query, key, decay)
    for t in range(size):
        for s in range(size):
            left = decay[:, s + 1 : t + 1].sum(1).exp()
            wanted = (query[:, t] * key[:, s] * left).sum(-1) if s <= t else torch.zeros(2)
            assert torch.allclose(got[:, t, s], wanted.to(got), rtol=1e-12, atol=1e-12)


def test_sums_of_decays_never_cancel():
    decay = torch.tensor([-1e4, -1e-3, -2e-3])[:, None]
    assert torch.allclose(until(decay)[:, 0], torch.tensor([-1e4, -10000.001, -10000.003]))
    assert torch.allclose(behind(decay)[:, 0], torch.tensor([-3e-3, -2e-3, 0.0]), atol=0, rtol=1e-6)
    between = decay_between(decay)
    assert between[2, 0].item() == pytest.approx(math.exp(-3e-3), rel=1e-6)


@pytest.mark.parametrize("kind", ["token", "channel"])
def test_strong_decays_are_exact_and_their_gradients_finite(kind):
    inputs = draw(63, kind, dtype=torch.float32)
    with torch.no_grad():
        inputs[4][:, ::3] = -1e4
    got = call(decayed_attention, inputs, chunk=16)
    wanted = call(decayed_attention_dense, [x.double() for x in inputs])
    assert torch.allclose(got.double(), wanted, atol=1e-5, rtol=1e-5)
    assert all(slope.isfinite().all() for slope in gradients(got, inputs))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 15])
def test_the_kernel_gives_the_same_read_state_and_gradients(length, kind):
    pytest.importorskip("triton")
    inputs = draw(length, kind)
    got, state = call(decayed_attention, inputs, return_state=True, backend="triton")
    wanted, final = call(decayed_attention, inputs, return_state=True)
    assert_same(got, wanted)
    assert_same(state, final)
    for ours, theirs in zip(gradients(got, inputs), gradients(wanted, inputs), strict=True):
        assert_same(ours, theirs)


def test_no_tokens_leave_the_state_as_it_was():
    inputs = draw(0, "none")
    read, state = call(decayed_attention, inputs, return_state=True)
    assert read.shape == (2, 0, 3)
    assert torch.equal(state, inputs[3])
    with pytest.raises(ValueError, match="no token"):
        call(decayed_attention, inputs, backend="triton")


def test_half_precision_keeps_a_state_of_float32():
    query, key, value, *_ = draw(15, "none", dtype=torch.bfloat16)
    read, state = decayed_attention(query, key, value, return_state=True)
    assert (read.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    read, state = decayed_attention_step(state, query[:, :1], key[:, :1], value[:, :1])
    assert (read.dtype, state.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"log_decay": torch.zeros(2, 15).fill_(0.1)}, ValueError, r"log_decay must lie in .*0.1"),
        ({"log_decay": torch.full((2, 15), math.nan)}, ValueError, "log_decay must lie in"),
        ({"log_decay": -math.inf}, ValueError, r"decay is in \(0, 1\]"),
        ({"log_decay": torch.zeros(2, 14)}, ValueError, r"log_decay must broadcast .*\(2, 14\)"),
        ({"log_decay": torch.zeros(2)}, ValueError, r"log_decay must broadcast to \(2, 15\)"),
        ({"log_decay": torch.zeros(2, 15).long()}, TypeError, "log_decay"),
        ({"log_decay": "0.9"}, TypeError, "log_decay"),
        ({"initial_state": torch.zeros(2, 3, 4)}, ValueError, r"initial_state .*\(2, 4, 3\)"),
        ({"chunk": 0}, ValueError, "chunk must be at least 1"),
        ({"chunk": 2.5}, TypeError, "chunk"),
        ({"is_causal": False}, ValueError, "is_causal must be True"),
        ({"scale": 0.0}, ValueError, "scale"),
    ],
)
def test_wrong_input_is_refused_by_name(options, kind, message):
    query, key, value, *_ = (x.detach().float() for x in draw(15, "none"))
    with pytest.raises(kind, match=message):
        decayed_attention(query, key, value, **options)


def test_a_step_refuses_a_state_of_another_shape_and_other_lengths_of_keys():
    query, key, value, state = (x.detach() for x in draw(3, "none"))
    with pytest.raises(ValueError, match=r"state must have shape \(2, 4, 3\), got \(2, 3, 4\)"):
        decayed_attention_step(state.mT, query, key, value)
    with pytest.raises(ValueError, match="key must have the shape of query"):
        decayed_attention(query, key[:, :2], value[:, :2])
