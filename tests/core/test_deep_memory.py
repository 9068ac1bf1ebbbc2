"""The deep memory of Titans: gradients by hand, equal forms, streams, and where it diverges."""

import pytest
import torch
from torch.nn.functional import normalize

from attnlib.memory.inner_models import answer, gradient_factors, mlp_gradient, start_weights
from attnlib.memory.linear_memory import linear_memory_recurrent
from attnlib.memory.neural_memory import (
    deep_memory_chunked,
    deep_memory_recurrent,
    deep_memory_step,
    memory_read,
    state_before,
)
from attnlib.memory.neural_memory_attention import neural_memory_attention

LENGTHS = (1, 15, 63, 100, 257)


def drawn(length: int, seed: int = 0):
    """query, unit key, value, and a rate, a momentum and a forgetting for each token."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    query, key = (normalize(normal(2, length, 5), dim=-1) for _ in range(2))
    rates = torch.rand(3, 2, length, generator=generator, dtype=torch.float64)
    return (query, key, normal(2, length, 3)), {
        "theta": 0.1 * rates[0],
        "eta": 0.6 * rates[1],
        "alpha": 0.1 * rates[2],
    }


def weights_of(hidden, *, heads: int | None = None):
    """Matrices with nothing zero in them, so that every gradient counts."""
    generator = torch.Generator().manual_seed(3)
    weights = start_weights(5, hidden, 3, generator=generator)
    last = 0.3 * torch.randn(weights[-1].shape, generator=generator, dtype=torch.float64)
    weights = (*weights[:-1], last)
    return weights if heads is None else tuple(w.repeat(heads, 1, 1) for w in weights)


@pytest.mark.parametrize("hidden", [(), 6, (6, 4), (4, 4, 4)])
def test_the_gradients_by_hand_are_those_of_autograd(hidden):
    (_, key, value), _ = drawn(9)
    weights = tuple(w.requires_grad_() for w in weights_of(hidden, heads=2))
    loss = 0.5 * (answer(weights, key) - value).square().sum()
    wanted = torch.autograd.grad(loss, weights)
    for got, target in zip(mlp_gradient(weights, key, value), wanted, strict=True):
        assert torch.allclose(got, target, rtol=0, atol=1e-12)
    assert len(gradient_factors(weights, key, value)) == len(weights)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("mini_batch", [1, 7, 16])
def test_the_forms_are_equal_and_their_gradients_too(length, mini_batch):
    tensors, rates = drawn(length)
    rates["theta"] = rates["theta"] / mini_batch
    weights = weights_of(6, heads=2)
    leaves = [x.requires_grad_() for x in (*tensors, *rates.values(), *weights)]

    def run(form):
        q, k, v, theta, eta, alpha, *weights = leaves
        given = {"theta": theta, "eta": eta, "alpha": alpha, "mini_batch": mini_batch}
        read, state = form(q, k, v, weights=tuple(weights), **given)
        probe = torch.linspace(-1, 1, read.numel(), dtype=torch.float64).view_as(read)
        ends = (*state.memory, *state.momentum, *state.anchor)
        loss = (read * probe).sum() + sum(part.sum() for part in ends)
        return (read, *ends), torch.autograd.grad(loss, leaves)

    wanted, slopes = run(deep_memory_recurrent)
    got, found = run(deep_memory_chunked)
    for a, b in zip(got, wanted, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)
    for a, b in zip(found, slopes, strict=True):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-11)


def test_the_definition_is_gradient_descent_with_momentum_and_weight_decay_by_autograd():
    (query, key, value), rates = drawn(12)
    weights = weights_of(6)
    read, _ = deep_memory_recurrent(query, key, value, weights=weights, **rates)
    for h in range(2):
        memory = [w.clone() for w in weights]
        momentum = [torch.zeros_like(w) for w in weights]
        for t in range(12):
            theta, eta, alpha = (rate[h, t] for rate in rates.values())
            leaves = [w.detach().requires_grad_() for w in memory]
            loss = 0.5 * (answer(tuple(leaves), key[h, t : t + 1]) - value[h, t]).square().sum()
            slopes = torch.autograd.grad(loss, leaves)
            momentum = [eta * s - theta * g for s, g in zip(momentum, slopes, strict=True)]
            memory = [(1 - alpha) * w + s for w, s in zip(memory, momentum, strict=True)]
            got = answer(tuple(memory), query[h, t : t + 1])[0]
            assert torch.allclose(read[h, t], got, rtol=0, atol=1e-13)


def test_one_matrix_is_the_linear_memory():
    (query, key, value), rates = drawn(40)
    weights = start_weights(5, (), 3, generator=torch.Generator().manual_seed(0))
    read, state = deep_memory_recurrent(query, key, value, weights=weights, **rates)
    wanted, linear = linear_memory_recurrent(query, key, value, **rates, scale=1.0)
    assert torch.equal(read, wanted)
    assert torch.equal(state.memory[0], linear.memory)


@pytest.mark.parametrize("mini_batch", [1, 6])
def test_a_stream_in_pieces_is_the_batch_and_the_given_state_stays(mini_batch):
    (query, key, value), rates = drawn(60)
    rates["theta"] = rates["theta"] / mini_batch
    weights = weights_of(6)
    given = {"weights": weights, "mini_batch": mini_batch}
    wanted, target = deep_memory_recurrent(query, key, value, **rates, **given)
    state, reads, start = None, [], 0
    for length in (1, 2, 1, 9, 0, 17, 30):
        rows = (..., slice(start, start + length), slice(None))
        now = {name: rate[:, start : start + length] for name, rate in rates.items()}
        kept = None if state is None else [w.clone() for w in state.memory]
        read, after = deep_memory_step(state, query[rows], key[rows], value[rows], **now, **given)
        if kept is not None:
            assert all(torch.equal(a, b) for a, b in zip(kept, state.memory, strict=True))
        state = after
        reads.append(read)
        start += length
    assert torch.allclose(torch.cat(reads, dim=-2), wanted, rtol=0, atol=1e-12)
    ends = zip((*state.memory, *state.anchor), (*target.memory, *target.anchor), strict=True)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in ends)


def test_a_fresh_memory_answers_zero_and_a_read_writes_nothing():
    (query, key, value), rates = drawn(20)
    weights = start_weights(5, 8, 3, generator=torch.Generator().manual_seed(0))
    assert not memory_read(state_before(weights), query).any()
    _, state = deep_memory_chunked(query, key, value, weights=weights, **rates)
    kept = [w.clone() for w in state.memory]
    read = memory_read(state, query)
    assert torch.equal(read, answer(state.memory, query)) and read.any()
    assert all(torch.equal(a, b) for a, b in zip(kept, state.memory, strict=True))


def test_a_memory_that_learns_one_pair_again_and_again_comes_to_know_it():
    (_, key, value), _ = drawn(1)
    weights = start_weights(5, 16, 3, generator=torch.Generator().manual_seed(0))
    often = [x.expand(2, 400, -1) for x in (key, key, value)]
    read, _ = deep_memory_chunked(*often, weights=weights, theta=0.01, eta=0.5, mini_batch=4)
    assert torch.allclose(read[:, -1], value[:, 0], atol=1e-6)


def test_a_deep_memory_that_has_faded_to_zero_cannot_learn_again_and_a_matrix_can():
    (_, key, value), _ = drawn(1)
    often = [x.expand(2, 400, -1) for x in (key, key, value)]
    alpha = torch.zeros(2, 400, dtype=torch.float64)
    alpha[:, :200] = 0.3  # half of the stream fades, the other half only learns
    generator = torch.Generator().manual_seed(0)
    for hidden, theta, learns in (((), 0.2, True), (16, 0.02, False)):
        weights = start_weights(5, hidden, 3, generator=generator)
        read, _ = deep_memory_chunked(
            *often, weights=weights, theta=theta, alpha=alpha, mini_batch=1
        )
        error = (read[:, -1] - value[:, 0]).abs().max()
        assert (error < 1e-6) == learns
        assert learns or read[:, -1].abs().max() < 1e-12


def test_a_memory_that_diverges_says_so():
    (query, key, value), _ = drawn(400)
    weights = weights_of(8)
    for form in (deep_memory_recurrent, deep_memory_chunked):
        with pytest.raises(ValueError, match="too large for these keys: the memory has diverged"):
            form(query, key, value, weights=weights, theta=20.0, mini_batch=4)


def test_wrong_input_is_named():
    (query, key, value), _ = drawn(6)
    weights = weights_of(4)
    first, last = weights
    rate = {"theta": 0.1}
    _, state = deep_memory_step(None, query, key, value, weights=weights, **rate)
    other = weights_of(6)
    cases = [
        (lambda: memory_read(None, query), ValueError, "read before it is written"),
        (
            lambda: deep_memory_step(None, query, key, value, weights=first, **rate),
            TypeError,
            "weights must be a tuple of matrices",
        ),
        (
            lambda: deep_memory_step(None, query, key, value, weights=(), **rate),
            TypeError,
            "weights must be a tuple",
        ),
        (
            lambda: deep_memory_step(None, query, key, value, weights=(first, first), **rate),
            ValueError,
            r"weights\[1\] must broadcast to \(2, 4, 3\)",
        ),
        (
            lambda: deep_memory_step(
                None, query, key, value, weights=(first.float(), last), **rate
            ),
            TypeError,
            r"weights\[0\] must have the dtype",
        ),
        (
            lambda: deep_memory_step(state, query, key, value, weights=other, **rate),
            ValueError,
            "state.memory must hold",
        ),
        (
            lambda: deep_memory_step(state[:2], query, key, value, weights=weights, **rate),
            TypeError,
            "state must be a MemoryState",
        ),
        (
            lambda: deep_memory_chunked(query, key, value, weights=weights, theta=-1.0),
            ValueError,
            "theta must lie in",
        ),
        (
            lambda: start_weights(5, 0, 3, generator=torch.Generator()),
            ValueError,
            "hidden must be at least 1",
        ),
    ]
    for call, kind, words in cases:
        with pytest.raises(kind, match=words):
            call()


def test_width_zero_and_no_keys_read_zero():
    (query, key, value), _ = drawn(4)
    read = neural_memory_attention(query[..., :0], key[..., :0], value)
    assert read.shape == (2, 4, 3) and read.isfinite().all()
    assert not neural_memory_attention(query, key[:, :0], value[:, :0]).any()


def test_three_thousand_tokens_do_not_drift_in_single_precision():
    (query, key, value), _ = drawn(3000)
    weights = start_weights(5, 16, 3, generator=torch.Generator().manual_seed(0))
    given = {"theta": 0.01, "eta": 0.5, "alpha": 0.01, "mini_batch": 16}
    exact, _ = deep_memory_chunked(query, key, value, weights=weights, **given)
    single, state = deep_memory_chunked(
        *(x.float() for x in (query, key, value)),
        weights=tuple(w.float() for w in weights),
        **given,
    )
    apart = (single.double() - exact).abs().amax((0, 2)) / exact.abs().max()
    assert apart[-500:].max() < 1e-5
    assert [tuple(w.shape) for w in state.memory] == [(2, 5, 16), (2, 16, 3)]
