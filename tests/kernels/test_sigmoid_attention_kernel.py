"""What sigmoid_attention promises beyond closeness: its bias, the tails, the past, clear errors."""

import importlib
import math

import pytest
import torch
import triton
import triton.language as tl
from attnlib.kernels import sigmoid_attention, tile_choice
from attnlib.kernels.dense_forms import band_support
from attnlib.kernels.proof import Case
from attnlib.kernels.sigmoid_attention_proof import PROOF, check_table_fits, pairs_seen, reference

module = importlib.import_module("attnlib.kernels.sigmoid_attention")
TILES = [(16, 32), (32, 16), (64, 64)]


def rows(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(shape, generator=generator, dtype=torch.float64)
    return numbers.to(dtype).requires_grad_()


def three(*shape, dtype=torch.float64):
    return tuple(rows(*shape, dtype=dtype, seed=seed) for seed in range(3))


def with_gradients(function, tensors, **options):
    read = function(*tensors, **options)
    sent = rows(*read.shape, dtype=read.dtype, seed=9).detach()
    return read, *torch.autograd.grad(read, tensors, sent)


def test_worked_example_by_hand():
    query = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    key = torch.tensor([[0.0], [math.log(3)]], dtype=torch.float64)
    value = torch.tensor([[4.0, 0.0], [0.0, 8.0]], dtype=torch.float64)
    # sigmoid(log a) = a / (1 + a). Bias 0: row 0 weighs 1/2 and 3/4, row 1 weighs 1/2 and 9/10.
    read = sigmoid_attention(query, key, value, bias=0.0)
    expected = torch.tensor([[2.0, 6.0], [2.0, 7.2]], dtype=torch.float64)
    torch.testing.assert_close(read, expected, rtol=1e-14, atol=0)
    # Default bias -log 2: a is halved, so 1/3 and 3/5, then 1/3 and 9/11.
    halved = sigmoid_attention(query, key, value)
    expected = torch.tensor([[4 / 3, 24 / 5], [4 / 3, 72 / 11]], dtype=torch.float64)
    torch.testing.assert_close(halved, expected, rtol=1e-14, atol=0)
    causal = sigmoid_attention(query, key, value, is_causal=True)
    expected[0] = torch.tensor([2.0, 0.0])  # row 0 sees one key: bias -log 1, weight 1/2
    torch.testing.assert_close(causal, expected, rtol=1e-14, atol=0)


def test_gradients_of_the_worked_example_by_hand():
    query, key, value = (torch.tensor([[x]], dtype=torch.float64) for x in (1.0, math.log(3), 2.0))
    tensors = [tensor.requires_grad_() for tensor in (query, key, value)]
    read = sigmoid_attention(*tensors)  # one key: bias -log 1 = 0, p = 3/4, p (1 - p) = 3/16
    found = torch.autograd.grad(read, tensors, torch.full_like(read, 5.0))
    expected = 3 / 16 * 10 * math.log(3), 3 / 16 * 10, 3 / 4 * 5
    for gradient, number in zip(found, expected, strict=True):
        assert gradient.item() == pytest.approx(number, rel=1e-14)


@pytest.mark.parametrize("keys", [1, 7, 257])
def test_scores_of_zero_weigh_n_over_n_plus_1_together(keys):
    query, key = torch.zeros(3, 4, dtype=torch.float64), rows(keys, 4).detach()
    read = sigmoid_attention(query, key, torch.ones(keys, 1, dtype=torch.float64))
    torch.testing.assert_close(read, torch.full_like(read, keys / (keys + 1)))


def test_gradcheck():
    tensors = rows(2, 3, 4), rows(1, 5, 4, seed=1), rows(1, 5, 2, seed=2)
    attention = lambda *t: sigmoid_attention(*t, is_causal=True, query_offset=1)  # noqa: E731
    assert torch.autograd.gradcheck(attention, tensors, fast_mode=True)


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True, "query_offset": 7}, {"window": 18}], ids=str
)
def test_size_of_the_tile_does_not_change_the_result(monkeypatch, tile, options):
    tensors = rows(70, 8), rows(77, 8, seed=1), rows(77, 8, seed=2)
    exact = with_gradients(lambda *t, **o: reference(*t, o), tensors, **options)
    monkeypatch.setattr(tile_choice, "INTERPRETED_TILE", (*tile, 4, 1))
    for found, expected in zip(
        with_gradients(sigmoid_attention, tensors, **options), exact, strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@triton.jit
def kernel_that_takes_sigmoids(exponent_ptr, weight_ptr, slope_ptr, size: tl.constexpr):
    places = tl.arange(0, size)
    weights, slope = module.sigmoid_and_slope(tl.load(exponent_ptr + places))
    tl.store(weight_ptr + places, weights)
    tl.store(slope_ptr + places, slope)


@pytest.mark.filterwarnings("error")  # numpy would warn of an overflow
@pytest.mark.parametrize("dtype, error", [(torch.float64, 3e-14), (torch.float32, 5e-7)], ids=str)
def test_weight_and_slope_keep_their_digits_in_both_tails(dtype, error):
    exponent = torch.linspace(-100, 100, 1024, dtype=dtype)
    exponent[-2:] = torch.tensor([-14_427.0, 14_427.0])  # scores of -1e4 and 1e4, in base 2
    weights, slope = torch.empty_like(exponent), torch.empty_like(exponent)
    kernel_that_takes_sigmoids[(1,)](exponent, weights, slope, size=1024)
    exact = torch.sigmoid(math.log(2) * exponent.double())
    complement = torch.sigmoid(-math.log(2) * exponent.double())
    for found, expected in [(weights, exact), (slope, exact * complement)]:
        # In float64 log(2) x is rounded by up to 70 2^-53, and so is its exponential.
        torch.testing.assert_close(found.double(), expected, rtol=error, atol=1e-300)


def test_hidden_score_weighs_exactly_zero():
    exponent = torch.full((16,), -torch.inf)
    weights, slope = torch.ones(16), torch.ones(16)
    kernel_that_takes_sigmoids[(1,)](exponent, weights, slope, size=16)
    assert not weights.any()
    assert not slope.any()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_scores_up_to_1e4_stay_finite_and_count_the_keys_they_are_sure_of(dtype):
    query = torch.tensor([[-100.0], [100.0]], dtype=dtype).requires_grad_()
    key = torch.linspace(-100, 100, 100, dtype=dtype)[:, None].requires_grad_()
    value = torch.ones(100, 1, dtype=dtype, requires_grad=True)
    read, *gradients = with_gradients(sigmoid_attention, (query, key, value))
    torch.testing.assert_close(read.float(), torch.full((2, 1), 50.0))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_future_token_changes_no_bit_of_the_past():
    tensors = three(2, 150, 16)
    before = with_gradients(sigmoid_attention, tensors, is_causal=True)
    changed = [tensor.detach().clone() for tensor in tensors]
    for tensor in changed:
        tensor[:, 100:] += 1.0
    after = sigmoid_attention(*changed, is_causal=True)
    assert torch.equal(before[0][:, :100], after[:, :100])
    assert not torch.equal(before[0][:, 100:], after[:, 100:])


@pytest.mark.parametrize("bias", [None, -5.0])
def test_prefix_and_a_last_query_alone_read_the_same(bias):
    query, key, value = (tensor.detach() for tensor in three(2, 150, 16))
    options = {"is_causal": True, "bias": bias}
    whole = sigmoid_attention(query, key, value, **options)
    prefix = (tensor[:, :100] for tensor in (query, key, value))
    part = sigmoid_attention(*prefix, **options)
    torch.testing.assert_close(part, whole[:, :100], rtol=1e-13, atol=1e-15)
    last = sigmoid_attention(query[:, -1:], key, value, query_offset=149, **options)
    torch.testing.assert_close(last, whole[:, -1:], rtol=1e-13, atol=1e-15)


def test_padding_and_windows_are_counted_so_zero_scores_weigh_n_over_n_plus_1():
    query, key, value = torch.zeros(2, 1, 70, 4), rows(2, 1, 70, 4).float(), torch.ones(2, 1, 70, 1)
    key_mask = torch.arange(70) % 3 > torch.tensor([[0], [1]])
    options = {"is_causal": True, "query_offset": 2, "window": 20}
    read = sigmoid_attention(query, key.detach(), value, key_mask=key_mask, **options)
    seen = band_support(query, key, key_mask=key_mask, **options).sum(-1, keepdim=True)
    torch.testing.assert_close(read, seen / (seen + 1))
    assert len(seen.unique()) > 7


def test_parts_of_the_keys_add_up():
    query, key, value = (tensor.detach() for tensor in three(2, 130, 16))
    whole = sigmoid_attention(query, key, value, bias=-2.0)
    parts = [sigmoid_attention(query, key[:, p], value[:, p], bias=-2.0) for p in HALVES]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-13, atol=1e-14)


HALVES = slice(0, 47), slice(47, 130)


def test_keys_that_a_tile_skips_are_never_read():
    query, key, value = (tensor.detach() for tensor in three(200, 8))
    for tensor in (key, value):
        tensor[:64], tensor[192:] = torch.nan, torch.nan
    read = sigmoid_attention(query[:60], key, value, window=30, query_offset=130)
    assert read.isfinite().all()  # positions 130 ... 189 see the keys 101 ... 189


def test_two_runs_give_the_same_bits():
    tensors = rows(4, 100, 8), rows(2, 100, 8, seed=1), rows(2, 100, 8, seed=2)
    first = with_gradients(sigmoid_attention, tensors, is_causal=True)
    second = with_gradients(sigmoid_attention, tensors, is_causal=True)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_heads_of_a_group_read_their_own_key_head():
    query, key, value = rows(4, 5, 8), rows(2, 6, 8, seed=1), rows(2, 6, 3, seed=2)
    read = sigmoid_attention(query, key, value)
    for head in range(4):
        alone = sigmoid_attention(query[head], key[head // 2], value[head // 2])
        assert torch.equal(read[head], alone)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_empty_support_reads_exactly_zero_and_sends_back_zero(dtype):
    tensors = three(2, 1, 63, 16, dtype=dtype)
    key_mask = torch.ones(2, 63, dtype=torch.bool)
    key_mask[1] = False
    read, *gradients = with_gradients(sigmoid_attention, tensors, key_mask=key_mask, bias=3.0)
    assert read.dtype == dtype
    assert read[0].all()
    assert not read[1].any()
    for gradient in gradients:
        assert gradient[0].any()
        assert not gradient[1].any()


def test_hidden_keys_change_nothing_even_nan():
    query, key, value = three(2, 2, 70, 8)
    key_mask = torch.arange(70) % 3 > torch.tensor([[0], [1]])
    clean = with_gradients(sigmoid_attention, (query, key, value), key_mask=key_mask)
    hidden = ~key_mask[:, None, :, None]
    spoiled = [t.detach().masked_fill(hidden, torch.nan).requires_grad_() for t in (key, value)]
    found = with_gradients(sigmoid_attention, (query, *spoiled), key_mask=key_mask)
    assert all(torch.equal(a, b) for a, b in zip(found, clean, strict=True))


@pytest.mark.parametrize("queries, keys", [(0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("heads", [(2,), (2, 0), (0, 2)], ids=str)
def test_length_zero_reads_zero_and_has_a_gradient(queries, keys, heads):
    tensors = rows(*heads, queries, 4), rows(*heads, keys, 4), rows(*heads, keys, 3)
    read, *gradients = with_gradients(sigmoid_attention, tensors, is_causal=True)
    assert read.shape == (*heads, queries, 3)
    assert not read.any()
    for gradient, tensor in zip(gradients, tensors, strict=True):
        assert gradient.shape == tensor.shape
        assert not gradient.any()


def test_the_inputs_and_one_number_a_row_are_kept_for_the_gradient():
    tensors = three(3, 2, 30, 8)
    saved = sigmoid_attention(*tensors).grad_fn.next_functions[0][0].saved_tensors
    *inputs, shift = [kept for kept in saved if kept is not None]
    assert [kept.data_ptr() for kept in inputs] == [tensor.data_ptr() for tensor in tensors]
    assert shift.shape == (3, 30)


def test_work_is_counted_over_the_pairs_that_are_seen():
    assert pairs_seen(4, 4, {"is_causal": True}) == 10
    assert pairs_seen(4, 4, {"window": 2}) == 7
    query, key = torch.zeros(3, 4, 16), torch.zeros(3, 5, 16)
    case = query, key, torch.zeros(3, 5, 8), {}
    assert PROOF.operations(*case)["forward"] == 3 * 4 * 5 * 2 * (16 + 8)
    assert PROOF.bytes_moved(*case)["forward"] == 4 * 3 * (4 * (16 + 8) + 5 * (16 + 8))


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"bias": 0.5, "scale": 0.3}], ids=str)
def test_dense_peer_computes_what_the_reference_computes(monkeypatch, options):
    monkeypatch.setattr(torch, "compile", lambda function, **how: function)
    case = Case("", (*three(2, 2, 20, 8), options))
    named = PROOF.peers(case)
    read = named["torch.sigmoid, compiled"](*case.arguments)
    torch.testing.assert_close(read, PROOF.reference(*case.arguments))


def test_dense_peer_is_stopped_where_its_table_does_not_fit(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**9, 10**9))
    query = torch.empty(4, 16, 8192, 128, device="meta", dtype=torch.bfloat16)
    monkeypatch.setattr(torch.Tensor, "device", torch.device("cuda"))
    with pytest.raises(ValueError, match="four tables of 9 GB do not fit in the 1 GB left"):
        check_table_fits(query, query)


def test_every_width_has_a_tile_on_every_chip():
    for memory in (101_376, 166_912, 232_448):
        for width in (1, 64, 65, 128, 256):
            for dtype in (torch.float32, torch.float16, torch.bfloat16):
                assert tile_choice.fits(module.TILES, width, width, dtype, memory)


GOOD = torch.zeros(2, 5, 8)
WRONG_INPUTS = {
    "query must be float64.*got int32": ((GOOD.int(), GOOD, GOOD), {}),
    "query must be a torch tensor, got list": (([[0.0]], GOOD, GOOD), {}),
    "key must have the dtype of query, float32, got float16": ((GOOD, GOOD.half(), GOOD), {}),
    "value must have shape.*got .5, 8.": ((GOOD, GOOD, GOOD[0]), {}),
    "from 1 to 256, got 257": ((torch.zeros(5, 257),) * 3, {}),
    "key must have the width of query, 8, got 4": ((GOOD, GOOD[..., :4], GOOD), {}),
    "value must have one row for each key": ((GOOD, GOOD, GOOD[:, :3]), {}),
    "a multiple of the heads of key, got 2 query heads and 3": (
        (GOOD, torch.zeros(3, 5, 8), torch.zeros(3, 5, 8)),
        {},
    ),
    "key must have the batch axes of query": (
        (torch.zeros(2, 1, 5, 8), torch.zeros(3, 1, 5, 8), torch.zeros(3, 1, 5, 8)),
        {},
    ),
    "value must have a last stride of 1.*got 5": ((GOOD, GOOD, torch.zeros(2, 8, 5).mT), {}),
    "query on cpu, key on meta": ((GOOD, GOOD.to("meta"), GOOD), {}),
    "CUDA device or the CPU": ((GOOD.to("meta"),) * 3, {}),
    "key_mask must be a bool tensor.*got float32": ((GOOD,) * 3, {"key_mask": torch.ones(5)}),
    r"key_mask of shape \(4,\) does not broadcast": (
        (GOOD,) * 3,
        {"key_mask": torch.ones(4, dtype=torch.bool)},
    ),
    "bias must be a number, got Tensor": ((GOOD,) * 3, {"bias": torch.zeros(1)}),
    "bias must be a number, got bool": ((GOOD,) * 3, {"bias": True}),
    "bias must be a finite number, got inf": ((GOOD,) * 3, {"bias": math.inf}),
    "scale must be a positive finite number, got 0": ((GOOD,) * 3, {"scale": 0}),
    "scale must be a positive finite number, got 1e-46": ((GOOD,) * 3, {"scale": 1e-46}),
    "scale must be a positive.*got 100000000000...": ((GOOD,) * 3, {"scale": 10**400}),
    "is_causal must be True or False, got .False.": ((GOOD,) * 3, {"is_causal": "False"}),
    "bias must be a finite number, got 1e.39": ((GOOD,) * 3, {"bias": 1e39}),
    "window must be at least 1, got 0": ((GOOD,) * 3, {"window": 0}),
    "query_offset must be an int, got float": ((GOOD,) * 3, {"query_offset": 1.0}),
}


@pytest.mark.parametrize("message", WRONG_INPUTS)
def test_wrong_input_is_named_before_any_launch(monkeypatch, message):
    monkeypatch.setattr(module, "forward_kernel", None)  # a launch would be an AttributeError
    arguments, options = WRONG_INPUTS[message]
    with pytest.raises((TypeError, ValueError), match=message):
        sigmoid_attention(*arguments, **options)


def test_cpu_tensors_without_the_interpreter_are_told_how_to_get_it(monkeypatch):
    from attnlib.kernels import launch

    monkeypatch.setattr(launch, "interpreted", lambda kernel: False)
    with pytest.raises(ValueError, match="set TRITON_INTERPRET=1 before triton"):
        sigmoid_attention(GOOD, GOOD, GOOD)


def test_second_derivative_is_refused():
    tensors = three(5, 4)
    (gradient,) = torch.autograd.grad(
        sigmoid_attention(*tensors).square().sum(), tensors[:1], create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
