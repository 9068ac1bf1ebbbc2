"""What delta_rule promises beyond closeness: a memory that answers, chunks, steps, clear errors."""

import importlib
import math

import pytest
import torch
import triton
import triton.language as tl
from attnlib.kernels import delta_rule, delta_rule_step, linear_attention, tile_choice
from attnlib.kernels.delta_rule_chunks import TILES, inverse_of_unit_lower
from attnlib.kernels.delta_rule_proof import reference
from attnlib.kernels.linear_states import TILES as LINEAR_TILES

module = importlib.import_module("attnlib.kernels.delta_rule")


def numbers(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def unit(tensor):
    return torch.nn.functional.normalize(tensor, dim=-1)


def inputs(tokens, width=8, value_width=6, heads=(), dtype=torch.float64):
    """query, key, value, beta, log_decay, initial_state."""
    rows = (*heads, tokens)
    tensors = (
        numbers(*rows, width),
        unit(numbers(*rows, width, seed=1)),
        numbers(*rows, value_width, seed=2),
        2 * numbers(*rows, seed=3).sigmoid(),
        -0.2 * numbers(*rows, seed=4).abs(),
        numbers(*heads, width, value_width, seed=5),
    )
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


def with_gradients(function, tensors):
    outputs = function(*tensors)
    sent = [numbers(*out.shape, seed=8).to(out.dtype) for out in outputs]
    return *outputs, *torch.autograd.grad(outputs, tensors, sent)


def test_worked_example_by_hand():
    one_hot = torch.eye(2, dtype=torch.float64)
    key = one_hot[[0, 0, 1]]
    value = torch.tensor([[4.0], [8.0], [6.0]], dtype=torch.float64)
    query = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    beta = torch.tensor([0.5, 0.25, 1.0], dtype=torch.float64)
    log_decay = torch.tensor([1.0, 0.5, 0.5], dtype=torch.float64).log()
    # Row 0 of S: 0 + 0.5 (4 - 0) = 2, fades to 1; 1 + 0.25 (8 - 1) = 2.75, fades to 1.375.
    # Row 1 of S: 6 at the last token.
    read, state = delta_rule(query, key, value, beta, log_decay, scale=1.0)
    assert read.flatten().tolist() == pytest.approx([2.0, 2.75, 1.375 + 6.0])
    assert state.flatten().tolist() == pytest.approx([1.375, 6.0])
    plain, _ = delta_rule(query, key, value, beta, scale=1.0)
    # 2, then 2 + 0.25 (8 - 2) = 3.5, then nothing fades.
    assert plain.flatten().tolist() == pytest.approx([2.0, 3.5, 9.5])


def test_after_a_full_step_the_memory_answers_with_the_value():
    _, key, value, *_ = inputs(30)
    read, _ = delta_rule(key, key, value, torch.ones(30, dtype=torch.float64), scale=1.0)
    torch.testing.assert_close(read, value, rtol=1e-12, atol=1e-13)


def test_every_token_is_a_gradient_step_on_its_own_error():
    _, key, value, beta, log_decay, state = (tensor.detach() for tensor in inputs(1))
    faded = (log_decay.exp() * state).requires_grad_()
    loss = 0.5 * (key @ faded - value).square().sum()
    (gradient,) = torch.autograd.grad(loss, faded)
    _, after = delta_rule(key, key, value, beta, log_decay, state)
    torch.testing.assert_close(after, faded - beta * gradient)


def test_orthogonal_keys_and_beta_one_are_linear_attention():
    query, value, state = numbers(8, 8), numbers(8, 6, seed=1), numbers(8, 6, seed=2)
    key = torch.linalg.qr(numbers(8, 8, seed=3)).Q.contiguous()
    value_seen = value - key @ state
    found = delta_rule(query, key, value, torch.ones(8, dtype=torch.float64), None, state)
    expected = linear_attention(query, key, value_seen, None, state)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_gradcheck():
    assert torch.autograd.gradcheck(delta_rule, inputs(3, 2, 1), fast_mode=True)


@pytest.mark.parametrize("tile", [(16, 16), (32, 64)], ids=str)
def test_size_of_the_chunk_does_not_change_the_result(monkeypatch, tile):
    tensors = inputs(45, width=20, value_width=18)
    exact = with_gradients(lambda *t: reference(*t, {}), tensors)
    monkeypatch.setattr(tile_choice, "INTERPRETED_TILE", (*tile, 4, 1))
    for found, expected in zip(with_gradients(delta_rule, tensors), exact, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@triton.jit
def kernel_that_inverts(matrix_ptr, inverse_ptr, count, size: tl.constexpr):
    place = tl.arange(0, size)[:, None] * size + tl.arange(0, size)[None, :]
    inverse = inverse_of_unit_lower(tl.load(matrix_ptr + place), count)
    tl.store(inverse_ptr + place, inverse)


@pytest.mark.parametrize("beta", [1.0, 2.0])
@pytest.mark.parametrize("spread", [0.0, 0.01])
def test_inverse_in_float32_holds_where_powers_of_the_matrix_fail(beta, spread):
    keys = unit(numbers(1, 64) + spread * numbers(64, 64, seed=1))
    lower = (beta * keys @ keys.mT).tril(-1)
    exact = torch.linalg.inv(torch.eye(64, dtype=torch.float64) + lower)
    found = torch.empty(64, 64)
    kernel_that_inverts[(1,)](lower.float(), found, 64, size=64)
    assert (found - exact).abs().max() < 1e-4 * exact.abs().max()
    power, series = -lower.float(), torch.eye(64) - lower.float()
    for _ in range(5):
        power = power @ power
        series = series @ (torch.eye(64) + power)
    assert (series - exact).abs().max() > 1e3


def test_rows_of_the_inverse_beyond_the_tokens_are_those_of_the_identity():
    lower = numbers(16, 16).tril(-1).float()
    found = torch.empty(16, 16)
    kernel_that_inverts[(1,)](lower, found, 5, size=16)
    assert torch.equal(found[5:], torch.eye(16)[5:])
    torch.testing.assert_close((torch.eye(16) + lower)[:5, :5] @ found[:5, :5], torch.eye(5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equal_keys_and_beta_two_reflect_for_ever_and_stay_right(dtype):
    key = unit(numbers(1, 16)).expand(200, 16).to(dtype)
    value = numbers(200, 4, dtype=dtype)
    beta = torch.full((200,), 2.0, dtype=dtype)
    read, _ = delta_rule(key, key, value, beta, scale=1.0)
    exact, _ = reference(*(t.double() for t in (key, key, value, beta)), None, None, {"scale": 1.0})
    error = (read - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < {torch.float64: 1e-13, torch.float32: 2e-5}[dtype]


def test_equal_keys_and_beta_two_in_float16_are_no_worse_than_token_by_token():
    key = unit(numbers(1, 16, seed=1)).expand(70, 16).half()
    beta = torch.full((70,), 2.0).half()
    tensors = numbers(70, 16, seed=9).half(), key, numbers(70, 4, seed=8).half(), beta
    exact = reference(*(tensor.double() for tensor in tensors), None, None, {})
    plain = reference(*tensors, None, None, {})
    for found, theirs, right in zip(delta_rule(*tensors), plain, exact, strict=True):
        assert (found - right).square().mean() < 2.5 * (theirs - right).square().mean()


def test_state_stays_bounded_with_unit_keys_and_beta_up_to_two():
    query, key, value, beta, *_ = inputs(150, dtype=torch.float32)
    _, state = delta_rule(query, key, 0 * value, beta, None, numbers(8, 6, dtype=torch.float32))
    assert torch.linalg.matrix_norm(state, 2) <= torch.linalg.matrix_norm(numbers(8, 6).float(), 2)


def test_nothing_of_the_past_passes_a_decay_of_minus_infinity():
    query, key, value, beta, log_decay, state = (t.detach() for t in inputs(40))
    log_decay[25] = -math.inf
    read, final_state = delta_rule(query, key, value, beta, log_decay, state)
    rest = [tensor[25:] for tensor in (query, key, value, beta)]
    alone, alone_state = delta_rule(*rest, log_decay[25:].clamp(min=-1.0))
    torch.testing.assert_close(read[25:], alone, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(final_state, alone_state, rtol=1e-12, atol=1e-13)


def test_decay_is_exact_right_behind_a_token_that_forgets_all():
    tensors = inputs(60, dtype=torch.float32)
    tensors[4] = torch.where(torch.arange(60) % 2 == 0, -9000.0, -0.001).requires_grad_()
    found = with_gradients(delta_rule, tensors)
    exact = with_gradients(
        lambda *t: reference(*t, {}), [t.detach().double().requires_grad_() for t in tensors]
    )
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=3e-6)


def test_future_token_changes_no_bit_of_the_past(monkeypatch):
    monkeypatch.setattr(tile_choice, "INTERPRETED_TILE", (32, 16, 4, 1))
    tensors = [tensor.detach() for tensor in inputs(70)]
    before, _ = delta_rule(*tensors)
    changed = [tensor.clone() for tensor in tensors[:5]]
    for tensor in changed:
        tensor[40:] += 1.0
        tensor[64:] = torch.nan  # a chunk of its own
    after, state = delta_rule(*changed, tensors[5])
    assert torch.equal(before[:40], after[:40])
    assert not torch.equal(before[40:64], after[40:64])
    assert after[40:64].isfinite().all()
    assert state.isnan().any()


def test_gradient_of_the_past_alone_does_not_see_the_future():
    tensors = inputs(50)
    read, _ = delta_rule(*tensors)
    gradients = torch.autograd.grad(read[:20].sum(), tensors)
    for gradient in gradients[:5]:
        assert gradient[:20].any()
        assert not gradient[20:].any()


def test_two_calls_on_two_parts_are_one_call():
    tensors = inputs(45, heads=(2,))

    def in_two(*tensors):
        first = [tensor[:, :20] for tensor in tensors[:5]]
        read, state = delta_rule(*first, tensors[5])
        rest, state = delta_rule(*(tensor[:, 20:] for tensor in tensors[:5]), state)
        return torch.cat([read, rest], 1), state

    for a, b in zip(
        with_gradients(in_two, tensors), with_gradients(delta_rule, tensors), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gated", [False, True])
def test_one_token_at_a_time_is_the_whole_sequence(gated):
    tensors = [tensor.detach() for tensor in inputs(6, width=7, value_width=40, heads=(2, 1))]
    read, final_state = delta_rule(*tensors[:4], tensors[4] if gated else None, tensors[5])
    state = tensors[5]
    for t in range(6):
        query, key, value, beta, log_decay = (tensor[:, :, t] for tensor in tensors[:5])
        kept = state.clone()
        row, after = delta_rule_step(query, key, value, beta, state, log_decay if gated else None)
        assert torch.equal(state, kept)
        state = after
        torch.testing.assert_close(row, read[:, :, t], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(state, final_state, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_the_state_in_float32(dtype):
    tensors = inputs(40, dtype=dtype)
    tensors[5] = tensors[5].detach().float().requires_grad_()
    read, state, *gradients = with_gradients(delta_rule, tensors)
    assert (read.dtype, state.dtype) == (dtype, torch.float32)
    assert [gradient.dtype for gradient in gradients] == [tensor.dtype for tensor in tensors]
    assert all(gradient.isfinite().all() for gradient in gradients)
    row = [tensor.detach()[0] for tensor in tensors[:5]]
    row, after = delta_rule_step(*row[:4], state.detach(), row[4])
    assert (row.dtype, after.dtype) == (dtype, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("size", [1e-3, 1e3])
def test_huge_and_tiny_values_scale_the_read(dtype, size):
    query, key, value, beta, log_decay, _ = inputs(20, dtype=dtype)
    ones, _ = delta_rule(query, key, value, beta, log_decay)
    read, _ = delta_rule(query, key, (size * value.detach()).to(dtype), beta, log_decay)
    assert read.isfinite().all()
    torch.testing.assert_close(read.double(), size * ones.double(), rtol=2e-2, atol=5e-3 * size)


@pytest.mark.parametrize("heads", [(2,), (0,), (2, 0)], ids=str)
def test_no_tokens_read_nothing_and_pass_the_state_on(heads):
    tensors = inputs(0, heads=heads)
    read, state, *gradients = with_gradients(delta_rule, tensors)
    assert read.shape == (*heads, 0, 6)
    assert torch.equal(state, tensors[5])
    assert torch.equal(gradients[5], numbers(*heads, 8, 6, seed=8))
    fresh = delta_rule(*tensors[:5])[1]
    assert fresh.shape == (*heads, 8, 6)
    assert not fresh.any()


def test_only_one_of_the_results_may_be_used():
    tensors = inputs(20)
    exact = reference(*tensors, {})
    for number, found in enumerate(delta_rule(*tensors)):
        gradients = torch.autograd.grad(found.sum(), tensors, retain_graph=True)
        expected = torch.autograd.grad(
            exact[number].sum(), tensors, retain_graph=True, allow_unused=True
        )
        for a, b in zip(gradients, expected, strict=True):
            torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b)


def test_two_runs_give_the_same_bits():
    tensors = inputs(20, heads=(2,))
    first, second = with_gradients(delta_rule, tensors), with_gradients(delta_rule, tensors)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_views_give_the_bits_of_copies():
    packed = numbers(2, 20, 3, 2, 16)
    rows = [part.transpose(1, 2) for part in packed.unbind(2)]
    gates = [numbers(2, 20, 2, seed=seed).sigmoid().transpose(1, 2) for seed in (1, 2)]
    found = delta_rule(*rows, gates[0], -gates[1])
    copies = delta_rule(*(t.contiguous() for t in rows), gates[0].contiguous(), -gates[1])
    assert all(torch.equal(a, b) for a, b in zip(found, copies, strict=True))


def test_every_width_has_a_tile_on_every_chip():
    for memory in (101_376, 166_912, 232_448):
        for width in (1, 64, 65, 128, 256):
            for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
                assert tile_choice.fits(TILES, width, width, dtype, memory)


def test_chunks_are_those_of_linear_attention():
    for size in (2, 4, 8):
        used = [*TILES.items(), *LINEAR_TILES.items()]
        lines = [line for (_, of), kernel_lines in used if of == size for line in kernel_lines]
        assert len({chunk for _, _, chunk, *_ in lines}) == 1


GOOD = torch.zeros(2, 5, 8)
GATE = torch.zeros(2, 5)
STATE = torch.zeros(2, 8, 8)
WRONG_INPUTS = {
    "query must be float64.*got int32": (GOOD.int(), GOOD, GOOD, GATE),
    "key must have the dtype of query": (GOOD, GOOD.half(), GOOD, GATE),
    "key must have the width of query, 8, got 4": (GOOD, GOOD[..., :4], GOOD, GATE),
    "key must have the shape of query.*got .1, 5, 8": (GOOD, GOOD[:1], GOOD[:1], GATE),
    "value must have one row for each key": (GOOD, GOOD, GOOD[:, :3], GATE),
    "value must have a last stride of 1": (GOOD, GOOD, torch.zeros(2, 8, 5).mT, GATE),
    "from 1 to 256, got 257": (*(torch.zeros(5, 257),) * 3, GATE[0]),
    "beta must be a torch tensor, got float": (GOOD, GOOD, GOOD, 1.0),
    "beta must have the dtype of query.*got float64": (GOOD, GOOD, GOOD, GATE.double()),
    r"beta must have shape \(2, 5\).*got \(5,\)": (GOOD, GOOD, GOOD, GATE[0]),
    r"log_decay must have shape \(2, 5\).*got \(2, 5, 8\)": (GOOD, GOOD, GOOD, GATE, GOOD),
    r"initial_state must have shape \(2, 8, 8\), got \(8, 8\)": (
        *(GOOD, GOOD, GOOD, GATE, None),
        STATE[0],
    ),
    "initial_state must have the dtype of query": (GOOD, GOOD, GOOD, GATE, None, STATE.double()),
    "query on cpu.*beta on meta": (GOOD, GOOD, GOOD, GATE.to("meta")),
}


@pytest.mark.parametrize("message", WRONG_INPUTS)
def test_wrong_input_is_named_before_any_launch(message):
    with pytest.raises((TypeError, ValueError), match=message):
        delta_rule(*WRONG_INPUTS[message])


def test_wrong_scale_is_named():
    with pytest.raises(ValueError, match="scale must be a positive finite number, got 0"):
        delta_rule(GOOD, GOOD, GOOD, GATE, scale=0)


ROW, NUMBER = torch.zeros(2, 8), torch.zeros(2)
WRONG_STEPS = {
    "query must be a torch tensor, got list": ([[0.0]], ROW, ROW, NUMBER, STATE),
    "query must have a width from 1 to 256, got 257": (
        *(torch.zeros(2, 257),) * 3,
        NUMBER,
        STATE,
    ),
    "query must have shape": (NUMBER[0], NUMBER[0], NUMBER[0], NUMBER, STATE),
    r"key must have the shape of query, \(2, 8\), got \(2, 4\)": (
        ROW,
        ROW[:, :4],
        ROW,
        NUMBER,
        STATE,
    ),
    "value must have shape.*got .1, 8": (ROW, ROW, ROW[:1], NUMBER, STATE),
    r"beta must have shape \(2,\)": (ROW, ROW, ROW, ROW, STATE),
    r"state must have shape \(2, 8, 8\)": (ROW, ROW, ROW, NUMBER, STATE[0]),
    r"log_decay must have shape \(2,\)": (ROW, ROW, ROW, NUMBER, STATE, ROW),
    "state requires a gradient": (ROW, ROW, ROW, NUMBER, STATE.clone().requires_grad_()),
    "state on meta": (ROW, ROW, ROW, NUMBER, STATE.to("meta")),
}


@pytest.mark.parametrize("message", WRONG_STEPS)
def test_wrong_step_is_named_before_any_launch(message):
    with pytest.raises((TypeError, ValueError), match=message):
        delta_rule_step(*WRONG_STEPS[message])


def test_second_derivative_is_refused():
    tensors = inputs(5)
    read, _ = delta_rule(*tensors)
    (gradient,) = torch.autograd.grad(read.square().sum(), tensors[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
