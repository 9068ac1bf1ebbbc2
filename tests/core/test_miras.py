"""Miras: one loop whose choices give the memories of the book, and three of its own."""

import pytest
import torch
from torch.nn.functional import normalize

from attnlib import decayed_attention, delta_rule_attention, moneta_attention, yaad_attention
from attnlib.memory.delta_rule import delta_rule_recurrent
from attnlib.memory.miras import (
    DELTA_RULE,
    LINEAR_ATTENTION,
    Miras,
    memora,
    miras_chunked,
    miras_recurrent,
    miras_step,
    moneta,
    yaad,
)
from attnlib.memory.miras_attention import memora_step, moneta_step, yaad_step
from attnlib.memory.miras_choices import (
    LinearMemory,
    TwoLayerMemory,
    huber_bias,
    mirror_norm_retention,
    norm_retention,
    power_bias,
    softmax_retention,
    squared_bias,
)

LENGTHS = (1, 15, 63, 100, 257)
CHOICES = {
    "linear attention": LINEAR_ATTENTION,
    "delta rule": DELTA_RULE,
    "moneta": moneta(),
    "moneta by the mirror step": Miras(power_bias(1.5), mirror_norm_retention(4)),
    "yaad": yaad(0.5),
    "memora": memora(3.0),
    "two layers": Miras(architecture=TwoLayerMemory(6)),
}


def drawn(length, *, width=5, value_width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(2, 2, length, *shape, generator=generator, dtype=torch.float64)

    query, key = (normalize(normal(width), dim=-1) for _ in range(2))
    gates = [torch.rand(2, 2, length, generator=generator, dtype=torch.float64) for _ in range(3)]
    return query, key, normal(value_width), gates


@pytest.mark.parametrize("length", LENGTHS)
def test_dot_product_bias_gives_linear_attention_and_with_a_constant_keep_its_decayed_form(length):
    query, key, value, _ = drawn(length)
    for keep in (1.0, 0.9):
        log_decay = torch.tensor(keep, dtype=torch.float64).log().expand(2, length)
        wanted = decayed_attention(query, key, value, log_decay=log_decay, scale=1.0)
        got, _ = miras_recurrent(query, key, value, LINEAR_ATTENTION, keep=keep)
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", LENGTHS)
def test_squared_bias_gives_the_delta_rule(length):
    query, key, value, (rate, *_) = drawn(length)
    wanted, state = delta_rule_recurrent(query, key, value, beta=rate, scale=1.0)
    got, end = miras_recurrent(query, key, value, DELTA_RULE, rate=rate)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(end.accumulated[0], state, rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", LENGTHS)
def test_forgetting_before_the_look_is_a_louder_value_and_gives_the_gated_delta_rule(length):
    query, key, value, (rate, keep, _) = drawn(length)
    keep = 0.5 + keep / 2
    wanted, _ = delta_rule_recurrent(query, key, value, beta=rate, log_decay=keep.log(), scale=1.0)
    got, _ = miras_recurrent(
        query, key, value / keep[..., None], DELTA_RULE, rate=keep * rate, keep=keep
    )
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-11)


def test_forgetting_after_the_look_is_another_memory_than_the_gated_delta_rule():
    query, key, value, (rate, keep, _) = drawn(15)
    gated, _ = delta_rule_recurrent(query, key, value, beta=rate, log_decay=keep.log(), scale=1.0)
    plain, _ = miras_recurrent(query, key, value, DELTA_RULE, rate=rate, keep=keep)
    assert (gated - plain).abs().max() > 0.1


@pytest.mark.parametrize("length", (1, 15, 63))
def test_momentum_gives_titans_with_a_linear_memory(length):
    query, key, value, (rate, keep, momentum) = drawn(length)
    memory = surprise = torch.zeros(2, 2, 5, 4, dtype=torch.float64)
    wanted = []
    for t in range(length):
        k, v = key[..., t, :, None], value[..., t, None, :]
        gradient = k @ (k.mT @ memory - v)
        surprise = momentum[..., t, None, None] * surprise - rate[..., t, None, None] * gradient
        memory = keep[..., t, None, None] * memory + surprise
        wanted.append(query[..., t, None, :] @ memory)
    got, _ = miras_recurrent(query, key, value, DELTA_RULE, rate=rate, keep=keep, momentum=momentum)
    torch.testing.assert_close(got, torch.cat(wanted, dim=-2), rtol=0, atol=1e-12)


def test_the_neutral_values_of_each_choice_are_the_delta_rule_exactly():
    query, key, value, (rate, *_) = drawn(20)
    wanted, _ = miras_recurrent(query, key, value, DELTA_RULE, rate=rate)
    for choices in (moneta(2, 2), yaad(torch.inf), yaad(1e6), Miras(power_bias(2))):
        got, _ = miras_recurrent(query, key, value, choices, rate=rate)
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    operators = (
        moneta_attention(query, key, value, p=2, q=2, rate=rate),
        yaad_attention(query, key, value, delta=torch.inf, rate=rate),
    )
    wanted = delta_rule_attention(query, key, value, beta=rate, is_causal=True)
    for got in operators:
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CHOICES)
def test_a_chunk_of_one_is_the_loop_with_gradients(name):
    query, key, value, (rate, keep, momentum) = drawn(15)
    inputs = [x.requires_grad_() for x in (query, key, value, rate)]
    options = {"rate": rate, "keep": keep, "momentum": momentum}
    wanted, end = miras_recurrent(query, key, value, CHOICES[name], **options)
    got, last = miras_chunked(query, key, value, CHOICES[name], chunk=1, **options)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(last, end, rtol=0, atol=1e-12)
    probe = torch.linspace(-1, 1, wanted.numel(), dtype=wanted.dtype).view_as(wanted)
    slopes = [torch.autograd.grad((x * probe).sum(), inputs) for x in (wanted, got)]
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-10, atol=1e-10)


def test_longer_chunks_change_nothing_only_where_the_slope_asks_no_memory():
    query, key, value, (rate, keep, momentum) = drawn(15)
    options = {"rate": rate, "keep": keep, "momentum": momentum}
    for name, choices in CHOICES.items():
        one, _ = miras_recurrent(query, key, value, choices, **options)
        four, _ = miras_chunked(query, key, value, choices, chunk=4, **options)
        same = torch.allclose(one, four, rtol=0, atol=1e-12)
        assert same == (name == "linear attention"), name


@pytest.mark.parametrize("name", CHOICES)
def test_a_stream_cut_anywhere_reads_as_the_whole_and_the_given_state_is_kept(name):
    query, key, value, (rate, keep, momentum) = drawn(15)
    options = {"rate": rate, "keep": keep, "momentum": momentum}
    wanted, end = miras_recurrent(query, key, value, CHOICES[name], **options)
    state, reads = None, []
    for part in (slice(0, 6), slice(6, 7), slice(7, 15)):
        before = None if state is None else [x.clone() for x in state.accumulated]
        gates = {which: gate[..., part] for which, gate in options.items()}
        rows = (x[..., part, :] for x in (query, key, value))
        old = state
        read, state = miras_step(state, *rows, CHOICES[name], **gates)
        reads.append(read)
        if before is not None:
            assert all(map(torch.equal, before, old.accumulated))
    torch.testing.assert_close(torch.cat(reads, dim=-2), wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(state, end, rtol=0, atol=1e-12)


@pytest.mark.parametrize("architecture", [LinearMemory(), TwoLayerMemory(3)])
@pytest.mark.parametrize(
    ("bias", "loss"),
    [
        (squared_bias, lambda e: e.square().sum() / 2),
        (power_bias(3), lambda e: e.abs().pow(3).sum() / 3),
        (power_bias(1.5), lambda e: e.abs().pow(1.5).sum() / 1.5),
        (huber_bias(0.3), lambda e: 0.3 * (e.norm() - 0.15)),
    ],
)
def test_slopes_and_gradients_are_those_of_the_stated_loss(architecture, bias, loss):
    _, key, value, _ = drawn(1)
    start = architecture.start(key, value)
    generator = torch.Generator().manual_seed(3)
    memory = tuple(
        torch.randn(part.shape, generator=generator, dtype=part.dtype).requires_grad_()
        for part in start
    )
    answer = architecture.answer(memory, key)
    row = (0, 1)
    wanted = torch.autograd.grad(loss((answer - value)[row]), memory)
    got = architecture.gradient(memory, key, bias(answer, value))
    for mine, right in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine[row][0], right[row], rtol=1e-5, atol=1e-5)


def test_retentions_keep_what_they_say():
    matrix = torch.randn(3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    column_sums = softmax_retention(3.0)(matrix)
    torch.testing.assert_close(column_sums.sum(-2), torch.full((3, 4), 3.0).double())
    assert column_sums.min() > 0
    norm = matrix.abs().pow(4).sum((-2, -1), keepdim=True) ** (1 / 4)
    torch.testing.assert_close(norm_retention(4)(matrix), matrix / norm**2)
    torch.testing.assert_close(norm_retention(4)(2 * matrix), norm_retention(4)(matrix) / 2)
    wanted = matrix.clone().requires_grad_()
    half = (wanted.abs().pow(4).sum((-2, -1)) ** (2 / 4)).sum() / 2
    (slope,) = torch.autograd.grad(half, wanted)
    torch.testing.assert_close(mirror_norm_retention(4)(matrix), slope, rtol=1e-9, atol=1e-9)
    for retention in (norm_retention(4), mirror_norm_retention(4)):
        for size in (0.0, 1e-30, 1e30):
            assert retention(size * matrix).isfinite().all()


def test_an_outlier_moves_yaad_by_no_more_than_its_delta():
    query, key, value, _ = drawn(6)
    value[..., 3, :] = 1e6
    _, before = miras_recurrent(query[..., :3, :], key[..., :3, :], value[..., :3, :], yaad(0.5))
    row = (..., slice(3, 4), slice(None))
    _, after = miras_step(before, query[row], key[row], value[row], yaad(0.5))
    moved = (after.accumulated[0] - before.accumulated[0]).norm(dim=(-2, -1))
    torch.testing.assert_close(moved, torch.full_like(moved, 0.5))


@pytest.mark.parametrize("step", [moneta_step, yaad_step, memora_step])
def test_states_do_not_grow(step):
    query, key, value, _ = drawn(9)
    _, state = step(None, query, key, value)
    assert [part.shape for part in (*state.accumulated, *state.surprise)] == [(2, 2, 5, 4)] * 2


def test_too_large_a_rate_is_refused_or_named_when_the_memory_diverges():
    query, key, value, _ = drawn(1)
    query, key, value = (x.expand(2, 2, 3000, -1) for x in (query, key, value))
    with pytest.raises(ValueError, match=r"rate must keep the memory stable.* 1.5 times as large"):
        miras_recurrent(query, key, value, DELTA_RULE, rate=3.0)
    with pytest.raises(ValueError, match="rate must be smaller: the memory diverged"):
        miras_recurrent(query, key, value, Miras(bias=power_bias(3.0)), rate=3.0)
    with pytest.raises(ValueError, match="rate must be at most 2"):
        yaad_attention(query, key, value, rate=2.5)
    with pytest.raises(ValueError, match="rate must be at most 2"):
        yaad_attention(query, key, value, rate=torch.tensor([1.0, 2.5]).double()[:, None])
    read, _ = miras_recurrent(query, key, value, DELTA_RULE, rate=2.0)
    assert read.abs().max() < 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": -0.1}, "rate must lie in 0"),
        ({"keep": 1.1}, "keep must lie in 0 ... 1"),
        ({"momentum": -1.0}, "momentum must lie in 0 ... 1"),
        ({"keep": torch.ones(3).double()}, "keep must broadcast"),
        ({"initial_state": torch.zeros(5, 4)}, "initial_state must be a MirasState"),
    ],
)
def test_wrong_gates_and_states_are_refused_by_name(options, message):
    query, key, value, _ = drawn(4)
    with pytest.raises((ValueError, TypeError), match=message):
        miras_recurrent(query, key, value, **options)
    _, state = miras_recurrent(query, key, value)
    with pytest.raises(ValueError, match="initial_state must hold matrices of shape"):
        miras_step(state, query[..., :3], key[..., :3], value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: power_bias(0.5), "p must be at least 1"),
        (lambda: power_bias("two"), "p must be a number"),
        (lambda: norm_retention(1.5), "q must be at least 2"),
        (lambda: mirror_norm_retention(torch.inf), "q must be at least 2"),
        (lambda: huber_bias(0.0), "delta must be positive"),
        (lambda: softmax_retention(-1.0), "mass must be positive"),
    ],
)
def test_choices_refuse_numbers_out_of_range(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
