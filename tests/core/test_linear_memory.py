"""The linear memory of Titans: four equal forms, its special cases, its stable rates."""

import pytest
import torch
from torch.nn.functional import normalize

from attnlib.memory.delta_rule import delta_rule_recurrent
from attnlib.memory.linear_memory import (
    linear_memory_chunked,
    linear_memory_parallel,
    linear_memory_read,
    linear_memory_recurrent,
    linear_memory_step,
)
from attnlib.memory.memory_rates import (
    chunk_weights,
    influence,
    largest_stable_rate,
    stability_ratio,
)
from attnlib.memory.neural_memory import MemoryState, deep_memory_chunked
from attnlib.memory.neural_memory_attention import linear_memory_attention

LENGTHS = (1, 15, 63, 100, 257)


def drawn(length: int, *, heads: int = 2, width: int = 5, seed: int = 0):
    """query, unit key, value, and a rate, a momentum and a forgetting for each token."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    query, key = normal(heads, length, width), normalize(normal(heads, length, width), dim=-1)
    rates = torch.rand(3, heads, length, generator=generator, dtype=torch.float64)
    return (query, key, normal(heads, length, 4)), {
        "theta": 0.3 * rates[0],
        "eta": 0.6 * rates[1],
        "alpha": 0.2 * rates[2],
    }


def by_hand(query, key, value, theta, eta, alpha, mini_batch):
    """The two equations, for one head, in plain loops."""
    memory = torch.zeros(key.shape[-1], value.shape[-1], dtype=torch.float64)
    momentum, reads = torch.zeros_like(memory), []
    for t in range(len(key)):
        if t % mini_batch == 0:
            anchor = memory
        gradient = torch.outer(key[t], key[t] @ anchor - value[t])
        momentum = eta[t] * momentum - theta[t] * gradient
        memory = (1 - alpha[t]) * memory + momentum
        reads.append(query[t] @ memory)
    return torch.stack(reads), memory, momentum


def same(one, other, tolerance=1e-12) -> bool:
    """Whether two (read, state) are equal."""
    (read, state), (wanted, target) = one, other
    pairs = [(read, wanted), *zip(state[:3], target[:3], strict=True)]
    close = all(torch.allclose(a, b, rtol=0, atol=tolerance) for a, b in pairs)
    return close and state.place == target.place


@pytest.mark.parametrize("mini_batch", [1, 4, 16])
def test_the_recurrent_form_is_the_two_equations(mini_batch):
    (query, key, value), rates = drawn(23)
    rates["theta"] = rates["theta"] / mini_batch
    read, state = linear_memory_recurrent(
        query, key, value, **rates, mini_batch=mini_batch, scale=1.0
    )
    for h in range(2):
        wanted = by_hand(
            query[h], key[h], value[h], *(rate[h] for rate in rates.values()), mini_batch
        )
        got = (read[h], state.memory[h], state.momentum[h])
        assert all(torch.allclose(a, b, atol=1e-13) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("mini_batch", [1, 7])
def test_the_forms_are_equal_and_their_gradients_too(length, mini_batch):
    tensors, rates = drawn(length)
    rates["theta"] = rates["theta"] / mini_batch
    leaves = [x.requires_grad_() for x in (*tensors, *rates.values())]

    def run(form, **chunk):
        q, k, v, theta, eta, alpha = leaves
        given = {"theta": theta, "eta": eta, "alpha": alpha, "mini_batch": mini_batch}
        read, state = form(q, k, v, **given, **chunk)
        weights = torch.linspace(-1, 1, read.numel(), dtype=torch.float64).view_as(read)
        loss = (read * weights).sum() + state.memory.sum() + 2 * state.momentum.sum()
        return (read, state), torch.autograd.grad(loss, leaves)

    wanted, slopes = run(linear_memory_recurrent)
    forms = [(linear_memory_parallel, {})]
    forms += [(linear_memory_chunked, {"chunk": chunk}) for chunk in (5, 16, 64)]
    for form, chunk in forms:
        got, found = run(form, **chunk)
        assert same(got, wanted), (form.__name__, chunk)
        for slope, target in zip(found, slopes, strict=True):
            assert torch.allclose(slope, target, rtol=0, atol=1e-11), (form.__name__, chunk)


@pytest.mark.parametrize("mini_batch", [1, 6])
def test_a_stream_in_pieces_is_the_batch_and_the_given_state_stays(mini_batch):
    (query, key, value), rates = drawn(60)
    rates["theta"] = rates["theta"] / mini_batch
    wanted = linear_memory_recurrent(query, key, value, **rates, mini_batch=mini_batch)
    state, reads, start = None, [], 0
    forms = (linear_memory_recurrent, linear_memory_parallel, linear_memory_chunked)
    for number, length in enumerate((1, 2, 1, 9, 0, 17, 30)):
        rows = (..., slice(start, start + length), slice(None))
        given = {name: rate[..., start : start + length] for name, rate in rates.items()}
        kept = None if state is None else [x.clone() for x in state[:3]]
        before = state
        if number % 2:
            read, state = forms[number % 3](
                query[rows], key[rows], value[rows], **given, mini_batch=mini_batch, state=state
            )
        else:
            read, state = linear_memory_step(
                state, query[rows], key[rows], value[rows], **given, mini_batch=mini_batch
            )
        if kept is not None:
            assert all(torch.equal(a, b) for a, b in zip(kept, before[:3], strict=True))
        reads.append(read)
        start += length
    assert same((torch.cat(reads, dim=-2), state), wanted)


def test_without_momentum_and_forgetting_it_is_the_delta_rule():
    (query, key, value), rates = drawn(63)
    got, state = linear_memory_recurrent(query, key, value, theta=rates["theta"])
    wanted, memory = delta_rule_recurrent(query, key, value, beta=rates["theta"])
    assert torch.allclose(got, wanted, rtol=0, atol=1e-13)
    assert torch.allclose(state.memory, memory, rtol=0, atol=1e-13)


def test_with_forgetting_it_is_not_the_gated_delta_rule_which_fades_before_it_errs():
    (query, key, value), rates = drawn(30)
    theta = rates["theta"]
    got, _ = linear_memory_recurrent(query, key, value, theta=theta, alpha=0.2)
    gated, _ = delta_rule_recurrent(
        query, key, value, beta=theta, log_decay=torch.tensor(0.8).double().log().item()
    )
    assert (got - gated).abs().max() > 1e-3


def test_momentum_of_zero_rate_carries_the_memory_on():
    (query, key, value), _ = drawn(3)
    theta = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    _, state = linear_memory_recurrent(query, key, value, theta=theta, eta=0.5)
    first = key[:, :1].mT @ value[:, :1]
    assert torch.allclose(state.memory, 1.75 * first, atol=1e-13)
    assert torch.allclose(state.momentum, 0.25 * first, atol=1e-13)


def test_the_weights_of_a_chunk_are_the_sums_over_the_ways_of_a_gradient():
    _, rates = drawn(6, heads=1)
    theta, eta, alpha = (rate[0] for rate in rates.values())
    weights = chunk_weights(theta, eta, alpha)
    for t in range(6):
        for i in range(6):
            total = sum(
                (1 - alpha[r + 1 : t + 1]).prod() * eta[i + 1 : r + 1].prod()
                for r in range(i, t + 1)
            )
            assert weights[t, i] == pytest.approx(float(theta[i] * total), abs=1e-14)
    zero = torch.zeros(6, dtype=torch.float64)
    assert torch.equal(chunk_weights(theta, zero, zero), theta.expand(6, 6).tril())


def test_a_momentum_of_zero_has_finite_gradients():
    eta = torch.zeros(1, 8, dtype=torch.float64, requires_grad=True)
    alpha = torch.ones(1, 8, dtype=torch.float64, requires_grad=True)
    slopes = torch.autograd.grad(sum(part.sum() for part in influence(eta, alpha)), (eta, alpha))
    assert all(slope.isfinite().all() for slope in slopes)


@pytest.mark.parametrize(
    ("eta", "alpha", "mini_batch"),
    [(0, 0, 1), (0.5, 0.2, 1), (0.9, 0, 1), (0.5, 0, 4), (0, 0.1, 8), (0.9, 0, 16)],
)
def test_a_repeated_key_stays_bounded_just_below_the_bound_and_grows_above(eta, alpha, mini_batch):
    bound = largest_stable_rate(eta, alpha, mini_batch=mini_batch)
    length = 256 * mini_batch
    key = torch.ones(1, length, 1, dtype=torch.float64)
    weights = (torch.ones(1, 1, 1, dtype=torch.float64),)

    def sizes(theta: float) -> torch.Tensor:
        read, _ = deep_memory_chunked(
            key,
            key,
            0 * key,
            weights=weights,
            theta=theta,
            eta=eta,
            alpha=alpha,
            mini_batch=mini_batch,
        )
        return read[0, :, 0].abs()

    below, above = sizes(0.97 * bound), sizes(1.03 * bound)
    assert below[-length // 4 :].max() < below[: length // 4].max()
    assert above[-length // 4 :].max() > 10 * above[: length // 4].max()


def test_the_bound_is_two_minus_alpha_times_one_plus_eta():
    assert largest_stable_rate() == pytest.approx(2.0)
    assert largest_stable_rate(0.5, 0.2) == pytest.approx(2.7)
    assert largest_stable_rate(mini_batch=16) == pytest.approx(1 / 8)
    (_, key, _), rates = drawn(12)
    plain = stability_ratio(key, **rates)
    wanted = rates["theta"] / ((2 - rates["alpha"]) * (1 + rates["eta"]))
    assert torch.allclose(plain, wanted, atol=1e-12)
    same_key = key[:, :1].expand(2, 12, 5)
    ratio = stability_ratio(same_key, theta=0.1, eta=0.5, alpha=0.1, mini_batch=4)
    assert ratio.shape == (2, 3)
    assert ratio.max().item() == pytest.approx(0.1 / largest_stable_rate(0.5, 0.1, mini_batch=4))


def test_with_momentum_and_changing_keys_it_may_diverge_below_the_bound_and_says_so():
    (query, key, value), _ = drawn(4000, heads=1, width=16)
    assert largest_stable_rate(0.9) > 3.7
    with pytest.raises(ValueError, match="memory has diverged"):
        linear_memory_chunked(query, key, value, theta=1.5, eta=0.9)
    read, _ = linear_memory_chunked(query, key, value, theta=0.1, eta=0.9)
    assert read.isfinite().all()


def test_unstable_rates_are_refused_before_anything_is_learnt():
    (query, key, value), _ = drawn(20)
    for form in (linear_memory_recurrent, linear_memory_parallel, linear_memory_chunked):
        with pytest.raises(ValueError, match=r"theta must keep the memory stable.*1\.05 times"):
            form(query, key, value, theta=2.1)
    linear_memory_recurrent(query, key, value, theta=2.0)
    with pytest.raises(ValueError, match="theta must keep the memory stable"):
        linear_memory_recurrent(query, 3 * key, value, theta=0.5)


def test_tokens_of_a_mini_batch_may_be_unstable_together_and_the_memory_says_so():
    (query, key, value), _ = drawn(20 * 600)
    same_key = key[:, :1].expand_as(key)
    given = {"theta": 0.4, "mini_batch": 20}
    assert stability_ratio(same_key, **given).min() == pytest.approx(4.0)
    for form in (linear_memory_recurrent, linear_memory_chunked):
        with pytest.raises(ValueError, match="memory has diverged"):
            form(query, same_key, value, **given)


def test_wrong_input_is_named():
    (query, key, value), _ = drawn(6)
    _, state = linear_memory_step(None, query, key, value, theta=0.1, mini_batch=4)
    cases = [
        (lambda: linear_memory_read(None, query), "read before it is written"),
        (lambda: linear_memory_step(None, query[:, :2], key, value, theta=0.1), "query must have"),
        (lambda: linear_memory_chunked(query, key, value, theta=-0.1), "theta must lie in"),
        (lambda: linear_memory_chunked(query, key, value, theta=0.1, eta=1.2), "eta must lie in"),
        (lambda: linear_memory_chunked(query, key, value, theta=0.1, alpha=-1), "alpha must lie"),
        (lambda: linear_memory_chunked(query, key, value, theta=0.1, chunk=0), "chunk must be"),
        (
            lambda: linear_memory_chunked(query, key, value, theta=0.1, mini_batch=0),
            "mini_batch must be at least 1",
        ),
        (
            lambda: linear_memory_step(state, query, key, value, theta=0.1, mini_batch=2),
            "state must lie within a mini-batch of 2 tokens, got place 2",
        ),
        (
            lambda: linear_memory_step(state, *(x[:1] for x in (query, key, value)), theta=0.1),
            "state.memory must hold",
        ),
        (
            lambda: linear_memory_recurrent(query, key, value, theta=torch.rand(5).double()),
            r"theta must broadcast to \(2, 6\)",
        ),
    ]
    for call, words in cases:
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(TypeError, match="state must be a MemoryState"):
        linear_memory_step((state.memory, state.momentum), query, key, value, theta=0.1)
    with pytest.raises(TypeError, match="theta must be a number"):
        linear_memory_chunked(query, key, value, theta="fast")


def test_width_zero_and_no_tokens_read_zero():
    (query, key, value), _ = drawn(4)
    read, state = linear_memory_chunked(query[..., :0], key[..., :0], value, theta=0.1)
    assert read.shape == (2, 4, 4) and not read.any()
    assert state.memory.shape == (2, 0, 4)
    for form in (linear_memory_recurrent, linear_memory_parallel, linear_memory_chunked):
        none, state = form(query[:, :0], key[:, :0], value[:, :0], theta=0.1)
        assert none.shape == (2, 0, 4) and not state.memory.any()
    assert not linear_memory_attention(query, key[:, :0], value[:, :0]).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_keeps_its_state_in_single(dtype):
    (query, key, value), _ = drawn(70)
    half = [x.to(dtype) for x in (query, key, value)]
    read, state = linear_memory_chunked(*half, theta=0.5, eta=0.3, scale=1.0)
    assert read.dtype == dtype
    assert isinstance(state, MemoryState) and state.memory.dtype == torch.float32
    exact, _ = linear_memory_chunked(*(x.double() for x in half), theta=0.5, eta=0.3, scale=1.0)
    rounding = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 1e-5}[dtype]
    assert (read.double() - exact).abs().max() < rounding * exact.abs().max()


def test_ten_thousand_tokens_do_not_drift_in_single_precision():
    (query, key, value), _ = drawn(10_000, heads=1, width=8)
    given = {"theta": 0.5, "eta": 0.5, "alpha": 0.001, "scale": 1.0}
    exact, state = linear_memory_chunked(query, key, value, **given)
    single, small = linear_memory_chunked(*(x.float() for x in (query, key, value)), **given)
    apart = (single.double() - exact).abs().amax((0, 2)) / exact.abs().max()
    assert apart[-100:].max() < 1e-5
    assert apart[-1000:].max() < 20 * apart[:1000].max()
    assert small.memory.numel() == state.memory.numel() == 32
