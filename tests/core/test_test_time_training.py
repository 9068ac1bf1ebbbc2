"""TTT-linear: three equal forms, and its two ends, the delta rule and linear attention."""

import pytest
import torch
from torch.nn.functional import normalize

from attnlib.memory.delta_rule import delta_rule_recurrent
from attnlib.memory.hebbian import hebbian_attention
from attnlib.memory.linear_memory import linear_memory_chunked
from attnlib.memory.memory_rates import largest_stable_rate
from attnlib.memory.test_time_training import (
    TTTState,
    ttt_linear_attention,
    ttt_linear_chunked,
    ttt_linear_parallel,
    ttt_linear_read,
    ttt_linear_recurrent,
    ttt_linear_step,
)

LENGTHS = (1, 15, 63, 100, 257)


def drawn(length: int, width: int = 5):
    """query, unit key, value and a rate for each token."""
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    query, key = normal(2, length, width), normalize(normal(2, length, width), dim=-1)
    rate = torch.rand(2, length, generator=generator, dtype=torch.float64)
    return query, key, normal(2, length, 3), rate


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("mini_batch", [1, 6, 16])
def test_the_forms_are_equal_and_their_gradients_too(length, mini_batch):
    *tensors, rate = drawn(length)
    leaves = [x.requires_grad_() for x in (*tensors, rate / mini_batch)]

    def run(form):
        *tensors, rate = leaves
        read, state = form(*tensors, rate=rate, mini_batch=mini_batch)
        weights = torch.linspace(-1, 1, read.numel(), dtype=torch.float64).view_as(read)
        loss = (read * weights).sum() + state.memory.sum() + state.anchor.square().sum()
        return read, state, torch.autograd.grad(loss, leaves)

    read, state, slopes = run(ttt_linear_recurrent)
    for form in (ttt_linear_parallel, ttt_linear_chunked):
        other, final, found = run(form)
        pairs = [(read, other), (state.memory, final.memory), (state.anchor, final.anchor)]
        pairs += list(zip(slopes, found, strict=True))
        assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in pairs), form.__name__
        assert final.place == state.place == length % mini_batch


def test_mini_batches_of_one_token_are_the_delta_rule():
    query, key, value, rate = drawn(63)
    read, state = ttt_linear_recurrent(query, key, value, rate=rate, mini_batch=1)
    wanted, memory = delta_rule_recurrent(query, key, value, beta=rate)
    assert torch.allclose(read, wanted, rtol=0, atol=1e-13)
    assert torch.allclose(state.memory, memory, rtol=0, atol=1e-13)


def test_one_mini_batch_as_long_as_the_sequence_is_linear_attention():
    query, key, value, rate = drawn(40)
    read, _ = ttt_linear_chunked(query, key, value, rate=rate / 40, mini_batch=40, scale=1.0)
    wanted = hebbian_attention(query, key, rate[..., None] / 40 * value, is_causal=True, scale=1.0)
    assert torch.allclose(read, wanted, rtol=0, atol=1e-13)


def test_it_is_the_linear_memory_without_momentum_and_forgetting():
    query, key, value, rate = drawn(50)
    read, state = ttt_linear_chunked(query, key, value, rate=rate / 8, mini_batch=8)
    wanted, memory = linear_memory_chunked(query, key, value, theta=rate / 8, mini_batch=8)
    assert torch.allclose(read, wanted, rtol=0, atol=1e-13)
    assert torch.allclose(state.memory, memory.memory, rtol=0, atol=1e-13)


def test_the_gradient_is_that_of_half_the_squared_error():
    query, key, value, _ = drawn(4)
    weights = torch.zeros(2, 5, 3, dtype=torch.float64, requires_grad=True)
    (0.5 * (key @ weights - value).square().sum()).backward()
    _, state = ttt_linear_recurrent(query, key, value, rate=0.3, mini_batch=4)
    assert torch.allclose(state.memory, -0.3 * weights.grad, atol=1e-14)


def test_a_stream_in_pieces_is_the_batch_and_the_given_state_stays():
    query, key, value, rate = drawn(60)
    wanted, target = ttt_linear_recurrent(query, key, value, rate=rate / 7, mini_batch=7)
    state, reads, start = None, [], 0
    for length in (1, 2, 1, 9, 0, 17, 30):
        rows = (..., slice(start, start + length), slice(None))
        before = None if state is None else state.memory.clone()
        given = rate[:, start : start + length] / 7
        read, after = ttt_linear_step(
            state, query[rows], key[rows], value[rows], rate=given, mini_batch=7
        )
        assert state is None or torch.equal(before, state.memory)
        state = after
        reads.append(read)
        start += length
    assert torch.allclose(torch.cat(reads, dim=-2), wanted, rtol=0, atol=1e-12)
    assert torch.allclose(state.memory, target.memory, rtol=0, atol=1e-12)
    assert state.place == target.place


def test_training_on_equal_keys_is_stable_up_to_two_over_the_mini_batch():
    query, key, value, _ = drawn(320)
    same_key = key[:, :1].expand_as(key)
    assert largest_stable_rate(mini_batch=16) == pytest.approx(2 / 16)

    def largest_read(share: float) -> float:
        read, _ = ttt_linear_chunked(query, same_key, value, rate=share * 2 / 16, mini_batch=16)
        return read[:, -16:].abs().max().item()

    assert largest_read(0.98) < 20
    assert largest_read(1.5) > 1e5
    long = [x.repeat(1, 40, 1) for x in (query, same_key, value)]
    with pytest.raises(ValueError, match="memory has diverged"):
        ttt_linear_chunked(*long, rate=2.0, mini_batch=16)
    with pytest.raises(ValueError, match=r"rate must keep the memory stable.* 1\.05 times"):
        ttt_linear_chunked(query, key, value, rate=2.1, mini_batch=16)


def test_wrong_input_is_named():
    query, key, value, _ = drawn(8)
    _, state = ttt_linear_step(None, query, key, value, rate=0.1, mini_batch=16)
    cases = [
        (lambda: ttt_linear_read(None, query), ValueError, "read before it is written"),
        (lambda: ttt_linear_step(None, query, key, value, rate=-1.0), ValueError, "rate must lie"),
        (lambda: ttt_linear_chunked(query, key, value, mini_batch=0), ValueError, "mini_batch"),
        (
            lambda: ttt_linear_step(state, query, key, value, rate=0.1, mini_batch=8),
            ValueError,
            "state must lie within a mini-batch of 8 tokens, got place 8",
        ),
        (
            lambda: ttt_linear_step(TTTState(state.memory[:1], *state[1:]), query, key, value),
            ValueError,
            "state.memory must have shape",
        ),
        (lambda: ttt_linear_step(state[:2], query, key, value), TypeError, "state must be a TTT"),
        (lambda: ttt_linear_recurrent(query[:, :3], key, value), ValueError, "query must have"),
        (lambda: ttt_linear_attention(query, key, value, rate="a"), TypeError, "rate must be"),
        (lambda: ttt_linear_attention(query, key[..., :2], value), ValueError, "key must have"),
        (lambda: ttt_linear_chunked(query, key, value, rate=3.0), ValueError, "rate must keep"),
    ]
    for call, kind, words in cases:
        with pytest.raises(kind, match=words):
            call()
