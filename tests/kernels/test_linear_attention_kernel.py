"""What linear_attention promises beyond closeness: chunks, streams, strong decays, clear errors."""

import importlib
import math

import pytest
import torch
from attnlib.kernels import linear_attention, linear_attention_step, tile_choice
from attnlib.kernels.linear_attention_proof import reference

module = importlib.import_module("attnlib.kernels.linear_attention")
states = importlib.import_module("attnlib.kernels.linear_states")
DECAYS = [None, "token", "channel"]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks of 32, so that a few dozen tokens are several of them."""
    monkeypatch.setattr(tile_choice, "INTERPRETED_TILE", (32, 64, 4, 1))


def rows(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(shape, generator=generator, dtype=torch.float64)
    return numbers.to(dtype).requires_grad_()


def inputs(tokens, width, value_width, decay, *batch, dtype=torch.float64, least=-0.5):
    """query, key, value, log_decay, initial_state."""
    shape = {None: (), "token": (*batch, tokens), "channel": (*batch, tokens, width)}[decay]
    log_decay = torch.rand(shape, generator=torch.Generator().manual_seed(7)) * least
    return (
        rows(*batch, tokens, width, dtype=dtype),
        rows(*batch, tokens, width, dtype=dtype, seed=1),
        rows(*batch, tokens, value_width, dtype=dtype, seed=2),
        None if decay is None else log_decay.to(dtype).requires_grad_(),
        rows(*batch, width, value_width, dtype=dtype, seed=3),
    )


def with_gradients(function, tensors, **options):
    outputs = function(*tensors, **options)
    sent = [rows(*o.shape, dtype=o.dtype, seed=9 + i).detach() for i, o in enumerate(outputs)]
    wanted = [tensor for tensor in tensors if tensor is not None]
    return *outputs, *torch.autograd.grad(outputs, wanted, sent)


def token_by_token(*tensors):
    return reference(*tensors, {})


def assert_all_close(found, expected, rtol=1e-12, atol=1e-13):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)


def test_worked_example_by_hand():
    query = torch.tensor([[1.0], [2.0], [1.0]], dtype=torch.float64)
    key = torch.tensor([[1.0], [3.0], [-1.0]], dtype=torch.float64)
    value = torch.tensor([[4.0, 0.0], [0.0, 8.0], [2.0, 2.0]], dtype=torch.float64)
    halved = torch.full((3,), -math.log(2), dtype=torch.float64)
    # S: [4, 0], then [2, 0] + 3 [0, 8], then [1, 12] - [2, 2].
    expected = torch.tensor([[4.0, 0.0], [4.0, 48.0], [-1.0, 10.0]], dtype=torch.float64)
    for log_decay in (halved, halved[:, None]):
        read, state = linear_attention(query, key, value, log_decay)
        torch.testing.assert_close(read, expected)
        torch.testing.assert_close(state, expected[2:])
    read, state = linear_attention(query, key, value)
    torch.testing.assert_close(read[2], torch.tensor([2.0, 22.0], dtype=torch.float64))


@pytest.mark.parametrize("decay", ["token", "channel"])
def test_gradcheck(monkeypatch, decay):
    monkeypatch.setattr(tile_choice, "INTERPRETED_TILE", (4, 16, 4, 1))
    tensors = inputs(3, 2, 2, decay)
    assert torch.autograd.gradcheck(linear_attention, tensors, fast_mode=True)


@pytest.mark.parametrize(
    "decay, tile",
    [(None, (16, 32)), ("token", (16, 32)), ("channel", (16, 32)), ("channel", (64, 16))],
    ids=str,
)
def test_size_of_the_chunk_and_of_its_parts_does_not_change_the_result(monkeypatch, decay, tile):
    tensors = inputs(40, 20, 33, decay)
    exact = with_gradients(token_by_token, tensors)
    monkeypatch.setattr(tile_choice, "INTERPRETED_TILE", (*tile, 4, 1))
    assert_all_close(with_gradients(linear_attention, tensors), exact)


@pytest.mark.parametrize("decay", DECAYS)
def test_two_halves_with_the_state_between_are_one_run(decay):
    tensors = inputs(50, 8, 5, decay)

    def in_halves(query, key, value, log_decay, state):
        reads = []
        for part in (slice(0, 19), slice(19, 50)):
            fades = None if log_decay is None else log_decay[part]
            read, state = linear_attention(query[part], key[part], value[part], fades, state)
            reads.append(read)
        return torch.cat(reads), state

    whole = with_gradients(linear_attention, tensors)
    assert_all_close(with_gradients(in_halves, tensors), whole)


@pytest.mark.parametrize("decay", DECAYS)
def test_steps_with_the_state_between_are_one_run(decay):
    query, key, value, log_decay, state = (
        None if tensor is None else tensor.detach() for tensor in inputs(6, 8, 5, decay)
    )
    read, final_state = linear_attention(query, key, value, log_decay, state)
    for t in range(6):
        fades = None if log_decay is None else log_decay[t]
        one, state = linear_attention_step(query[t], key[t], value[t], fades, state)
        torch.testing.assert_close(one, read[t], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(state, final_state, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("decay", DECAYS)
def test_future_token_changes_no_bit_of_the_past(decay):
    tensors = inputs(60, 8, 5, decay)
    read, _ = linear_attention(*tensors)
    changed = [None if tensor is None else tensor.detach().clone() for tensor in tensors]
    for tensor in changed[:3]:
        tensor[40:] += 1.0
    if decay:
        changed[3][40:] -= 1.0
    after, _ = linear_attention(*changed)
    assert torch.equal(read[:40], after[:40])
    assert not torch.equal(read[40:], after[40:])


def test_tokens_behind_the_last_are_never_read():
    tensors = inputs(40, 8, 8, "channel")
    clean = linear_attention(*(t[:21] for t in tensors[:4]), tensors[4])
    spoiled = [tensor.detach().clone() for tensor in tensors[:4]]
    for tensor in spoiled:
        tensor[21:] = torch.nan
    found = linear_attention(*(t[:21] for t in spoiled), tensors[4])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, clean, strict=True))


@pytest.mark.parametrize("decay", ["token", "channel"])
@pytest.mark.parametrize(
    "dtype, least",
    [(torch.float64, -torch.inf), (torch.float32, -50.0), (torch.float32, -1e4)],
    ids=str,
)
def test_a_token_that_forgets_all_leaves_the_next_ones_exact(dtype, decay, least):
    tensors = inputs(37, 8, 8, decay, dtype=dtype)
    with torch.no_grad():
        tensors[3][5::11] = least
        tensors[3][20] = least  # two in one half of a chunk
    found = with_gradients(linear_attention, tensors)
    exact = with_gradients(token_by_token, [t.detach().double().requires_grad_() for t in tensors])
    tolerance = 1e-12 if dtype == torch.float64 else 3e-6
    for ours, theirs in zip(found, exact, strict=True):
        assert ours.isfinite().all()
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


@pytest.mark.parametrize("decay", ["token", "channel"])
def test_gradient_of_a_uniform_strong_decay_is_right_where_it_is_tiny(decay):
    tensors = inputs(37, 8, 8, decay, dtype=torch.float32)
    with torch.no_grad():
        tensors[3].fill_(-12.0)
    ours = with_gradients(linear_attention, tensors)[5]
    exact = with_gradients(token_by_token, [t.detach().double().requires_grad_() for t in tensors])
    assert (ours - exact[5]).abs().max() <= 1e-5 * exact[5].abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("decay", DECAYS)
def test_half_precision_is_finite_and_the_state_is_kept_in_float32(dtype, decay):
    tensors = inputs(30, 8, 8, decay, dtype=dtype, least=-1e4)
    read, state, *gradients = with_gradients(linear_attention, tensors)
    assert read.dtype == dtype
    assert state.dtype == torch.float32
    assert all(tensor.isfinite().all() for tensor in (read, state, *gradients))
    again, _ = linear_attention(*tensors[:4], state)  # what came out goes in
    assert again.dtype == dtype


def test_float32_decay_and_state_beside_half_precision_have_float32_gradients():
    tensors = inputs(15, 8, 8, "channel", dtype=torch.float16)
    tensors = (*tensors[:3], *(t.detach().float().requires_grad_() for t in tensors[3:]))
    gradients = with_gradients(linear_attention, tensors)[2:]
    assert [g.dtype for g in gradients] == [t.dtype for t in tensors]


@pytest.mark.parametrize("size", [1e-4, 1e3])
def test_tiny_and_huge_scores_scale_the_read(size):
    query, key, value, log_decay, _ = inputs(20, 8, 8, "channel")
    plain, state = linear_attention(query, key, value, log_decay)
    scaled, same = linear_attention(query * size, key, value, log_decay)
    torch.testing.assert_close(scaled, plain * size, rtol=1e-12, atol=1e-12 * size)
    assert torch.equal(state, same)


def test_a_gradient_from_one_result_alone_is_that_of_the_reference():
    tensors = inputs(20, 8, 5, "channel")
    for output in (0, 1):
        ours, theirs = (
            torch.autograd.grad(f(*tensors)[output].square().sum(), tensors, allow_unused=True)
            for f in (linear_attention, token_by_token)
        )
        theirs = [
            torch.zeros_like(t) if g is None else g for g, t in zip(theirs, tensors, strict=True)
        ]
        assert_all_close(ours, theirs)


def test_two_runs_give_the_same_bits():
    tensors = inputs(40, 8, 8, "channel", 2)
    first, second = (with_gradients(linear_attention, tensors) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("batch", [(2,), (0, 2)], ids=str)
def test_no_tokens_read_nothing_and_leave_the_state(decay, batch):
    tensors = inputs(0, 4, 3, decay, *batch)
    read, state, *gradients = with_gradients(linear_attention, tensors)
    assert read.shape == (*batch, 0, 3)
    assert torch.equal(state, tensors[4])
    sent = rows(*batch, 4, 3, seed=10)
    assert torch.equal(gradients[-1], sent)


def test_views_are_read_where_they_are():
    packed = rows(1, 20, 3, 2, 16)
    query, key, value = (part.transpose(1, 2) for part in packed.unbind(2))
    separate = [tensor.contiguous() for tensor in (query, key, value)]
    assert torch.equal(linear_attention(query, key, value)[0], linear_attention(*separate)[0])


def test_every_kernel_has_a_tile_on_every_chip_and_all_have_the_same_chunk():
    kernels = {name for name, _ in states.TILES}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        chunks = {
            tile_choice.tile(states.TILES, name, width, width, dtype, memory)["query_block_size"]
            for name in kernels
            for width in (1, 64, 128, 256)
            for memory in (101_376, 166_912, 232_448)
        }
        assert len(chunks) == 1


GOOD = torch.zeros(2, 5, 8)
STATE = torch.zeros(2, 8, 8)
WRONG_INPUTS = {
    "query must be float64.*got int32": ((GOOD.int(), GOOD, GOOD), {}),
    "key must have the shape of query, .2, 5, 8., got .2, 6, 8.": (
        (GOOD, torch.zeros(2, 6, 8), torch.zeros(2, 6, 8)),
        {},
    ),
    "key must have the shape of query.*key.expand": ((GOOD, GOOD[:1], GOOD[:1]), {}),
    "value must have one row for each key": ((GOOD, GOOD, GOOD[:, :3]), {}),
    "from 1 to 256, got 257": ((torch.zeros(5, 257),) * 3, {}),
    "log_decay must be a torch tensor, got float": ((GOOD, GOOD, GOOD, -0.5), {}),
    "log_decay must have the dtype of query, float32, or float32, got float16": (
        (GOOD, GOOD, GOOD, GOOD[..., 0].half()),
        {},
    ),
    "log_decay must have shape .2, 5., one number a token, or .2, 5, 8.*got .2,.": (
        (GOOD, GOOD, GOOD, GOOD[:, 0, 0]),
        {},
    ),
    "log_decay must have a last stride of 1": (
        (GOOD, GOOD, GOOD, torch.zeros(2, 8, 5).mT),
        {},
    ),
    "initial_state must have shape .2, 8, 8., got .2, 8, 7.": (
        (GOOD, GOOD, GOOD, None, STATE[..., :7]),
        {},
    ),
    "initial_state must have the dtype of query": ((GOOD, GOOD, GOOD, None, STATE.double()), {}),
    "query on cpu.*log_decay on meta": ((GOOD, GOOD, GOOD, GOOD.to("meta")), {}),
    "scale must be a positive finite number, got -1": ((GOOD, GOOD, GOOD), {"scale": -1}),
}


@pytest.mark.parametrize("message", WRONG_INPUTS)
def test_wrong_input_is_named_before_any_launch(message):
    arguments, options = WRONG_INPUTS[message]
    with pytest.raises((TypeError, ValueError), match=message):
        linear_attention(*arguments, **options)


ONE = torch.zeros(2, 8)
WRONG_STEPS = {
    "query must be .*got .2, 257.": ((torch.zeros(2, 257),) * 3 + (None, STATE), {}),
    "key must have the shape of query, .2, 8., got .2, 7.": ((ONE, ONE[:, :7], ONE, None, STATE)),
    "value must have shape .2, 'E'., got .1, 8.": ((ONE, ONE, ONE[:1], None, STATE)),
    "state must have shape .2, 8, 8., got .8, 8.": ((ONE, ONE, ONE, None, STATE[0])),
    "state must be a torch tensor, got NoneType": ((ONE, ONE, ONE, None, None)),
    "log_decay must have shape .2,., one number a head": ((ONE, ONE, ONE, ONE[:, :3], STATE)),
    "value must have the dtype of query.*got": ((ONE.half(), ONE.half(), ONE, None, STATE)),
    "state requires a gradient.*torch.no_grad": (
        (ONE, ONE, ONE, None, STATE.clone().requires_grad_())
    ),
}


@pytest.mark.parametrize("message", WRONG_STEPS)
def test_wrong_step_is_named_before_any_launch(message):
    arguments = WRONG_STEPS[message]
    arguments = arguments[0] if isinstance(arguments[0], tuple) else arguments
    with pytest.raises((TypeError, ValueError), match=message):
        linear_attention_step(*arguments)


def test_step_leaves_the_old_state_and_keeps_its_dtype():
    state = rows(3, 8, 5, dtype=torch.float32).detach()
    before = state.clone()
    query, key, value = (rows(3, n, dtype=torch.float16, seed=n).detach() for n in (8, 8, 5))
    read, new_state = linear_attention_step(query, key, value, None, state)
    assert torch.equal(state, before)
    assert (read.dtype, new_state.dtype) == (torch.float16, torch.float32)


def test_second_derivative_is_refused():
    tensors = inputs(5, 4, 4, None)[:3]
    (gradient,) = torch.autograd.grad(
        linear_attention(*tensors)[0].square().sum(), tensors[:1], create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
