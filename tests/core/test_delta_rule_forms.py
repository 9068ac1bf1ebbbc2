"""The delta rule is one function in three forms, with a state that is handed over."""

import pytest
import torch
from torch.nn.functional import normalize

from attnlib.memory.delta_attention import (
    delta_rule_attention,
    delta_rule_attention_step,
    gated_delta_rule_attention,
)
from attnlib.memory.delta_rule import (
    delta_rule_chunked,
    delta_rule_parallel,
    delta_rule_recurrent,
    delta_rule_step,
)

FORMS = {"parallel": delta_rule_parallel, "chunked": delta_rule_chunked}


def draw(length, width=4, value_width=3, lead=(2, 2), seed=0):
    """query, key, value, beta, log_decay, state in float64; keys have length one."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*lead, *shape, generator=generator, dtype=torch.float64)

    key = normalize(normal(length, width), dim=-1)
    beta, log_decay = 2 * normal(length).sigmoid(), -normal(length).exp() / 4
    inputs = normal(length, width), key, normal(length, value_width)
    return [x.requires_grad_() for x in (*inputs, beta, log_decay, normal(width, value_width))]


def run(form, inputs, **options):
    query, key, value, beta, log_decay, state = inputs
    return form(query, key, value, beta=beta, log_decay=log_decay, initial_state=state, **options)


def slopes(results, inputs):
    """The gradients of one number that both results enter with different weights."""
    probes = [torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x) for x in results]
    total = sum((probe * x).sum() for probe, x in zip(probes, results, strict=True))
    return torch.autograd.grad(total, inputs)


def assert_same(got, wanted):
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("length", [1, 15, 63, 100, 257])
def test_the_forms_agree_in_read_state_and_all_gradients(name, length):
    inputs = draw(length)
    got, wanted = run(FORMS[name], inputs), run(delta_rule_recurrent, inputs)
    assert_same(got, wanted)
    assert_same(slopes(got, inputs), slopes(wanted, inputs))


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 1000])
def test_the_chunk_changes_nothing(chunk):
    inputs = draw(37)
    assert_same(run(delta_rule_chunked, inputs, chunk=chunk), run(delta_rule_parallel, inputs))


def test_two_tokens_by_hand():
    key = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    value = torch.tensor([[10.0], [20.0]])
    read, state = delta_rule_recurrent(key, key, value, beta=0.5, scale=1.0)
    # S = (5, 0); then the answer 3 to the second key is 17 off, half of which is written.
    torch.testing.assert_close(state, torch.tensor([[5 + 8.5 * 0.6], [8.5 * 0.8]]))
    torch.testing.assert_close(read, torch.tensor([[5.0], [3 + 8.5]]))


@pytest.mark.parametrize("cut", [1, 20, 36])
@pytest.mark.parametrize("form", [delta_rule_recurrent, *FORMS.values()])
def test_two_halves_with_the_state_handed_over_are_the_whole(form, cut):
    inputs = draw(37)
    read, state = run(form, inputs)
    first = [x[:, :, :cut] for x in inputs[:5]]
    second = [x[:, :, cut:] for x in inputs[:5]]
    start, middle = run(form, [*first, inputs[5]])
    end, last = run(form, [*second, middle])
    assert_same((torch.cat((start, end), dim=-2), last), (read, state))


@pytest.mark.parametrize("few", [1, 3])
def test_streaming_gives_the_rows_of_the_batch_and_keeps_the_old_state(few):
    query, key, value, beta, log_decay, _ = draw(12)
    wanted = delta_rule_chunked(query, key, value, beta=beta, log_decay=log_decay, chunk=5)
    state, reads = None, []
    for t in range(0, 12, few):
        rows = (x[:, :, t : t + few] for x in (query, key, value))
        before = None if state is None else state.clone()
        gates = {"beta": beta[..., t : t + few], "log_decay": log_decay[..., t : t + few]}
        read, new = delta_rule_step(state, *rows, **gates)
        assert before is None or torch.equal(before, state)
        state = new
        reads.append(read)
    assert_same((torch.cat(reads, dim=-2), state), wanted)


def test_with_beta_one_the_memory_answers_the_last_key_exactly_where_addition_does_not():
    query, key, value, *_ = draw(9)
    _, state = delta_rule_recurrent(query, key, value, scale=1.0)
    assert_same([key[..., -1:, :] @ state], [value[..., -1:, :]])
    added = key.mT @ value
    assert ((key[..., -1:, :] @ added) - value[..., -1:, :]).abs().max() > 0.1


def test_a_key_that_comes_again_has_its_value_replaced():
    key = torch.eye(3).repeat(2, 1)
    value = torch.arange(6.0)[:, None]
    _, state = delta_rule_chunked(key, key, value, chunk=4)
    torch.testing.assert_close(state, torch.tensor([[3.0], [4.0], [5.0]]))


def test_beta_two_reflects_the_state():
    key = torch.tensor([[1.0, 0.0]])
    start = torch.tensor([[3.0], [5.0]])
    _, state = delta_rule_recurrent(key, key, torch.zeros(1, 1), beta=2.0, initial_state=start)
    torch.testing.assert_close(state, torch.tensor([[-3.0], [5.0]]))


def test_beta_zero_writes_nothing_and_a_decay_of_minus_infinity_empties_the_memory():
    query, key, value, _, _, start = draw(6)
    _, state = delta_rule_chunked(query, key, value, beta=0.0, initial_state=start)
    assert_same([state], [start])
    gates = {"beta": 0.0, "log_decay": -torch.inf}
    for form in (delta_rule_recurrent, *FORMS.values()):
        read, state = form(query, key, value, initial_state=start, **gates)
        assert not state.count_nonzero() and not read.count_nonzero()


def test_the_state_stays_bounded_for_unit_keys_and_every_allowed_beta():
    generator = torch.Generator().manual_seed(0)
    key = normalize(torch.randn(400, 6, generator=generator, dtype=torch.float64), dim=-1)
    value = torch.zeros(400, 6, dtype=torch.float64)
    beta = 2 * torch.rand(400, generator=generator, dtype=torch.float64)
    start = torch.eye(6, dtype=torch.float64)
    _, state = delta_rule_chunked(key, key, value, beta=beta, initial_state=start)
    assert torch.linalg.matrix_norm(state, 2) <= 1 + 1e-12


@pytest.mark.parametrize("operator", [delta_rule_attention, gated_delta_rule_attention])
@pytest.mark.parametrize(
    ("queries", "keys", "offset", "is_causal"),
    [(17, 17, 0, True), (5, 8, 6, True), (3, 5, 0, False)],
)
def test_the_kernel_in_the_interpreter_is_the_same_operator(
    operator, queries, keys, offset, is_causal
):
    pytest.importorskip("triton")
    query = draw(queries)[0]
    _, key, value, beta, log_decay, _ = draw(keys, seed=1)
    gates = {"beta": beta} | ({"log_decay": log_decay} if "gated" in operator.__name__ else {})
    options = {"is_causal": is_causal, "query_offset": offset, **gates}
    inputs = [query, key, value, *gates.values()]
    got = operator(query, key, value, backend="triton", **options)
    wanted = operator(query, key, value, backend="torch", **options)
    assert_same([got], [wanted])
    assert_same(slopes([got], inputs), slopes([wanted], inputs))


def test_half_precision_is_summed_in_float32():
    inputs = [x.detach() for x in draw(300)]
    exact = delta_rule_attention(*inputs[:3], beta=inputs[3], is_causal=True)
    rounded = [x.bfloat16() for x in inputs]
    got = delta_rule_attention(*rounded[:3], beta=rounded[3], is_causal=True)
    assert got.dtype == torch.bfloat16
    assert (got.double() - exact).abs().max() < 0.05 * exact.abs().max()
    _, state = delta_rule_attention_step(None, *(x[..., :1, :] for x in rounded[:3]))
    assert state.dtype == torch.float32


WRONG = [
    ({"beta": 2.5}, ValueError, r"beta must lie in 0 \.\.\. 2, got numbers from 2.5"),
    ({"beta": torch.tensor([-0.1] * 5)}, ValueError, r"beta must lie in 0 \.\.\. 2"),
    ({"beta": torch.ones(4)}, ValueError, r"beta must broadcast to \(2, 2, 5\).*got \(4,\)"),
    ({"beta": "one"}, TypeError, "beta must be a number or a torch.Tensor, got str"),
    ({"beta": torch.ones(5, dtype=torch.long)}, TypeError, "beta must be a floating-point"),
    ({"beta": torch.ones(5).bfloat16()}, TypeError, "beta must have the dtype of query"),
    ({"log_decay": 0.1}, ValueError, r"log_decay must lie in -inf \.\.\. 0, got"),
    ({"log_decay": torch.zeros(2, 2, 5, 4)}, ValueError, r"log_decay must broadcast to"),
    ({"log_decay": torch.full((5,), torch.nan)}, ValueError, "log_decay must lie in"),
    ({"initial_state": torch.zeros(2, 2, 3, 4).double()}, ValueError, r"must have shape \(2, 2, 4"),
    ({"initial_state": torch.zeros(2, 2, 4, 3)}, TypeError, "initial_state must have dtype"),
    ({"scale": 0.0}, ValueError, "scale"),
]


@pytest.mark.parametrize(("options", "kind", "says"), WRONG)
@pytest.mark.parametrize("form", [delta_rule_recurrent, *FORMS.values()])
def test_wrong_input_is_refused_by_name(form, options, kind, says):
    query, key, value, *_ = draw(5)
    with pytest.raises(kind, match=says):
        form(query, key, value, **options)


def test_the_forms_want_one_query_a_key_and_a_chunk_of_at_least_one():
    query, key, value, *_ = draw(5)
    with pytest.raises(ValueError, match="query must have the shape of key"):
        delta_rule_parallel(query[..., :3, :], key, value)
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        delta_rule_chunked(query, key, value, chunk=0)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_a_step_in_half_precision_takes_keys_of_any_length(dtype):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 5, 4, generator=generator).to(dtype) for _ in range(3))
    key[:, 1], key[:, 2] = 0.0, 3e4
    whole = delta_rule_attention(query, key, value, beta=0.5, is_causal=True)
    state, reads = None, []
    for t in range(5):
        token = (x[:, t : t + 1] for x in (query, key, value))
        read, state = delta_rule_attention_step(state, *token, beta=0.5)
        reads.append(read)
    assert read.dtype == dtype and state.dtype == torch.float32
    torch.testing.assert_close(torch.cat(reads, dim=1), whole, rtol=0, atol=1e-3)


def test_behind_the_last_key_the_offset_costs_nothing():
    query, key, value, *_ = draw(3)
    key, value = key.repeat(1, 1, 2, 1), value.repeat(1, 1, 2, 1)
    wanted = delta_rule_attention(query, key, value)
    for offset in (5, 6, 10**12):
        got = delta_rule_attention(query, key, value, is_causal=True, query_offset=offset)
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("strength", [-20.0, -1e4])
def test_strong_decays_lose_no_digits_in_single_precision(strength):
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 100, 8, generator=generator).double()
    key = torch.nn.functional.normalize(key, dim=-1)
    weak = -0.01 * torch.rand(2, 100, generator=generator).double()
    strong = torch.rand(2, 100, generator=generator) < 0.1
    log_decay = torch.where(strong, strength, weak)
    exact, _ = delta_rule_recurrent(query, key, value, log_decay=log_decay)
    for form in (delta_rule_parallel, delta_rule_chunked):
        single, _ = form(*(x.float() for x in (query, key, value)), log_decay=log_decay.float())
        assert (single.double() - exact).abs().max() < 2e-6 * exact.abs().max()
