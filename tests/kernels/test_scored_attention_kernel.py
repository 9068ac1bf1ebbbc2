"""What scored_attention promises beyond closeness: order, sink, biases, the past, clear errors."""

import importlib
import math
import warnings

import pytest
import torch
import triton
import triton.language as tl
from attnlib.kernels import flash_attention, gates, scored_attention, tile_choice
from attnlib.kernels.proof import Case
from attnlib.kernels.scored_attention_gradient import far_together
from attnlib.kernels.scored_attention_proof import PROOF, reference

from attnlib.attend import attend
from attnlib.score import changes

module = importlib.import_module("attnlib.kernels.scored_attention")
functions = importlib.import_module("attnlib.kernels.scored_attention_changes")
tiles = importlib.import_module("attnlib.kernels.scored_attention_tiles")


def rows(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(shape, generator=generator, dtype=torch.float64)
    return numbers.to(dtype).requires_grad_()


def three(*shape, dtype=torch.float64):
    return tuple(rows(*shape, dtype=dtype, seed=seed) for seed in range(3))


def all_changes(heads, dtype=torch.float64, reach=3):
    return {
        "sink_logit": rows(heads, dtype=dtype, seed=5),
        "softcap": 2.0,
        "alibi_slopes": rows(heads, dtype=dtype, seed=6).detach().abs(),
        "relative_bias": rows(heads, 2 * reach + 1, dtype=dtype, seed=7),
    }


def with_gradients(function, tensors, **options):
    """What is read, and the gradients of the tensors and of the tables that want one."""
    read = function(*tensors, **options)
    sent = rows(*read.shape, dtype=read.dtype, seed=9).detach()
    tables = [options.get(name) for name in ("sink_logit", "relative_bias")]
    wanted = (*tensors, *(table for table in tables if table is not None))
    return read, *torch.autograd.grad(read, wanted, sent)


def exactly(*tensors, sink_logit=None, alibi_slopes=None, relative_bias=None, **options):
    return reference(*tensors, sink_logit, alibi_slopes, relative_bias, options)


def test_worked_example_by_hand():
    # One head, one query of score 0 to both keys. Key 1 stands at the position of the query.
    query, key = torch.zeros(1, 1, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
    value = torch.tensor([[12.0, 0.0], [0.0, 12.0]], dtype=torch.float64)
    log = lambda *x: torch.tensor(x, dtype=torch.float64).log()  # noqa: E731

    def read(**options):
        return scored_attention(query, key, value, query_offset=1, **options)[0].tolist()

    assert read() == pytest.approx([6, 6], rel=1e-14)
    # A sink of log 2 weighs as much as both keys: 1/4 and 1/4 are left for them.
    assert read(sink_logit=log(2)) == pytest.approx([3, 3], rel=1e-14)
    # A slope of log 3: key 0 is one step away and weighs 1/3 of key 1.
    assert read(alibi_slopes=log(3)) == pytest.approx([3, 9], rel=1e-14)
    # Biases log 5 for distance -1, log 1 for 0, log 9 for 1, which no pair has.
    assert read(relative_bias=log(5, 1, 9)[None]) == pytest.approx([10, 2], rel=1e-14)
    # All of them: 5/3 and 1 beside 2, a sum of 14/3.
    every = {"sink_logit": log(2), "alibi_slopes": log(3), "relative_bias": log(5, 1, 9)[None]}
    assert read(**every) == pytest.approx([12 * 5 / 14, 12 * 3 / 14], rel=1e-14)


def test_gradients_of_the_worked_example_by_hand():
    # q = k = v = 1 and scale 1: s = 1, x = 2 tanh(1 / 2) = c, a sink of the same logit, p = 1 / 2.
    capped = 2 * math.tanh(0.5)
    tensors = [torch.ones(1, 1, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    sink = torch.tensor([capped + 0.25], dtype=torch.float64, requires_grad=True)
    bias = torch.tensor([[0.25]], dtype=torch.float64, requires_grad=True)
    read = scored_attention(*tensors, sink_logit=sink, softcap=2.0, relative_bias=bias, scale=1.0)
    assert read.item() == pytest.approx(0.5, rel=1e-14)
    found = torch.autograd.grad(read, (*tensors, sink, bias), torch.full_like(read, 8.0))
    # g v = 8, delta = 8 / 2 = 4: dL/dx = 1/2 (8 - 4) = 2, and behind the cap (1 - tanh^2) of it.
    behind_cap = 2 * (1 - math.tanh(0.5) ** 2)
    for gradient, number in zip(found, (behind_cap, behind_cap, 4, -2, 2), strict=True):
        assert gradient.item() == pytest.approx(number, rel=1e-14)


def test_no_change_is_flash_attention():
    tensors = rows(1, 70, 8), rows(1, 90, 8, seed=1), rows(1, 90, 4, seed=2)
    options = {"is_causal": True, "query_offset": 20, "window": 30}
    ours = with_gradients(scored_attention, tensors, **options)
    for found, expected in zip(
        ours, with_gradients(flash_attention, tensors, **options), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("offset", [0, 4])
def test_changes_are_those_of_attend_with_a_score_mod(offset):
    query, key, value = three(4, 9, 8)
    bias, slopes = rows(4, 7, seed=7), changes.alibi_slopes(4)
    options = {"is_causal": True, "query_offset": offset}
    for ours, theirs in [
        ({"alibi_slopes": slopes}, changes.alibi(4)),
        ({"relative_bias": bias}, changes.relative_bias(bias)),
        ({"softcap": 1.5}, changes.soft_cap(1.5)),
        (
            {"softcap": 0.5, "alibi_slopes": slopes},
            changes.then(changes.soft_cap(0.5), changes.alibi(4)),
        ),
    ]:
        found = scored_attention(query, key, value, **ours, **options)
        expected = attend(query, key, value, score_mod=theirs, **options)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_sink_is_a_key_of_that_logit_with_the_value_zero():
    query, key, value = (tensor.detach() for tensor in three(2, 20, 8))
    query[..., -1] = 1.0  # the score with a key (0, ..., 0, a / scale) is a
    sink = torch.tensor([0.7, -1.2], dtype=torch.float64)
    first = torch.zeros(2, 1, 8, dtype=torch.float64)
    first[:, 0, -1] = sink * 8**0.5
    zero = torch.zeros(2, 1, 8, dtype=torch.float64)
    longer = flash_attention(query, torch.cat([first, key], 1), torch.cat([zero, value], 1))
    found = scored_attention(query, key, value, sink_logit=sink)
    torch.testing.assert_close(found, longer, rtol=1e-12, atol=1e-14)


def test_sink_of_minus_infinity_is_no_sink():
    tensors = three(2, 70, 8)
    sink = torch.full((2,), -torch.inf, dtype=torch.float64, requires_grad=True)
    read, *gradients, of_sink = with_gradients(
        scored_attention, tensors, sink_logit=sink, is_causal=True, query_offset=-5
    )
    without = with_gradients(scored_attention, tensors, is_causal=True, query_offset=-5)
    assert all(torch.equal(a, b) for a, b in zip((read, *gradients), without, strict=True))
    assert not of_sink.any()


def test_gradcheck():
    tensors = rows(2, 3, 4), rows(1, 5, 4, seed=1), rows(1, 5, 2, seed=2)
    others = all_changes(2, reach=1)
    sink, bias = others.pop("sink_logit"), others.pop("relative_bias")

    def attention(query, key, value, sink, bias):
        tables = {"sink_logit": sink, "relative_bias": bias, **others}
        return scored_attention(query, key, value, **tables, is_causal=True, query_offset=1)

    assert torch.autograd.gradcheck(attention, (*tensors, sink, bias), fast_mode=True)


@pytest.mark.parametrize(
    "tile, options", [((16, 32), {"is_causal": True, "query_offset": 7}), ((32, 16), {})], ids=str
)
def test_size_of_the_tile_does_not_change_the_result(monkeypatch, tile, options):
    tensors = rows(1, 40, 8), rows(1, 47, 8, seed=1), rows(1, 47, 8, seed=2)
    options |= all_changes(1, reach=20)
    exact = with_gradients(exactly, tensors, **options)
    monkeypatch.setattr(tile_choice, "INTERPRETED_TILE", (*tile, 4, 1))
    for found, expected in zip(
        with_gradients(scored_attention, tensors, **options), exact, strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


@triton.jit
def kernel_that_bends(number_ptr, bent_ptr, derivative_ptr, size: tl.constexpr):
    places = tl.arange(0, size)
    bent, derivative = functions.tanh_and_derivative(tl.load(number_ptr + places))
    tl.store(bent_ptr + places, bent)
    tl.store(derivative_ptr + places, derivative)


@pytest.mark.filterwarnings("error")  # numpy would warn of an overflow
@pytest.mark.parametrize("dtype, error", [(torch.float64, 1e-15), (torch.float32, 1e-6)], ids=str)
def test_tanh_and_its_derivative_keep_their_digits(dtype, error):
    number = torch.linspace(-40, 40, 1024, dtype=dtype)
    number[-2:] = torch.tensor([-1e4, 1e4])
    bent, derivative = torch.empty_like(number), torch.empty_like(number)
    kernel_that_bends[(1,)](number, bent, derivative, size=1024)
    exact = number.double()
    torch.testing.assert_close(bent.double(), exact.tanh(), rtol=0, atol=error)
    # 1 - tanh^2 = 4 s (1 - s) with s = sigmoid(2 x); in float64 2 x is rounded by up to 80 2^-53
    expected = 4 * torch.sigmoid(2 * exact) * torch.sigmoid(-2 * exact)
    torch.testing.assert_close(derivative.double(), expected, rtol=100 * error, atol=1e-300)


def test_far_distances_share_the_first_and_the_last_entry():
    along = torch.arange(1.0, 8.0)[None]  # distances -4 ... 2
    assert far_together(along, -4, reach=2).tolist() == [[1 + 2 + 3, 4, 5, 6, 7]]
    assert far_together(along, -4, reach=1).tolist() == [[1 + 2 + 3 + 4, 5, 6 + 7]]
    assert far_together(along, -4, reach=0).tolist() == [[28]]
    assert far_together(along, -2, reach=9)[0].nonzero().flatten().tolist() == list(range(7, 14))
    assert far_together(along, 5, reach=1).tolist() == [[0, 0, 28]]
    assert far_together(along, -50, reach=1).tolist() == [[28, 0, 0]]
    assert far_together(along[:, :0], -3, reach=1).tolist() == [[0, 0, 0]]


def test_only_distances_that_a_row_sees_get_a_gradient():
    tensors, bias = three(1, 20, 8), rows(1, 11, seed=7)
    options = {"relative_bias": bias, "is_causal": True, "window": 3}
    *_, gradient = with_gradients(scored_attention, tensors, **options)
    assert gradient[0].nonzero().flatten().tolist() == [3, 4, 5]  # two keys behind, one, itself


def test_tables_may_be_wider_than_the_query_and_keep_their_dtype():
    tensors = three(2, 2, 20, 16, dtype=torch.float16)
    tables = {"sink_logit": rows(2, seed=5).float(), "relative_bias": rows(2, 7, seed=7).float()}
    tables = {name: table.detach().requires_grad_() for name, table in tables.items()}
    read, *gradients = with_gradients(scored_attention, tensors, **tables)
    assert {t.dtype for t in (read, *gradients[:3])} == {torch.float16}
    assert {t.dtype for t in gradients[3:]} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradient_of_sinks_in_half_precision(dtype):
    tensors = [tensor.detach() for tensor in three(12, 16, 8, dtype=dtype)]
    sink = rows(12, dtype=dtype, seed=5)

    def gradient(function, *arguments):
        *inputs, sink = arguments
        sink.requires_grad_()
        read = function(*inputs, sink_logit=sink)
        return torch.autograd.grad(read, sink, rows(*read.shape, dtype=dtype, seed=9).to(read))[0]

    found = gradient(scored_attention, *tensors, sink.detach())
    exact = gradient(exactly, *(tensor.detach().double() for tensor in (*tensors, sink)))
    assert gates.error_of("sink", found, exact).within(gates.tolerance_of(dtype))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_huge_scores_sinks_and_biases_stay_finite(dtype):
    query = torch.tensor([[-100.0], [100.0]], dtype=dtype).requires_grad_()
    key = torch.linspace(-100, 100, 100, dtype=dtype)[:, None].requires_grad_()
    value = torch.ones(100, 1, dtype=dtype, requires_grad=True)
    bias = torch.tensor([[-1e4, 0.0, 1e4]], dtype=dtype).requires_grad_()
    for sink, expected in [(-1e4, 1.0), (3e4, 0.0)]:
        tables = {"sink_logit": torch.tensor([sink], dtype=dtype).requires_grad_()}
        tables |= {"relative_bias": bias, "alibi_slopes": torch.tensor([50.0], dtype=dtype)}
        for softcap in (None, 30.0):
            read, *gradients = with_gradients(
                scored_attention, (query, key, value), **tables, softcap=softcap
            )
            torch.testing.assert_close(read.float(), torch.full((2, 1), expected))
            assert all(gradient.isfinite().all() for gradient in gradients)


def test_future_token_changes_no_bit_of_the_past():
    tensors = three(2, 150, 16)
    options = all_changes(2) | {"is_causal": True}
    before = scored_attention(*tensors, **options)
    changed = [tensor.detach().clone() for tensor in tensors]
    for tensor in changed:
        tensor[:, 100:] += 1.0
    after = scored_attention(*changed, **options)
    assert torch.equal(after[:, :100], before[:, :100])
    assert not torch.equal(after[:, 100:], before[:, 100:])


def test_keys_that_a_tile_skips_are_never_read():
    query, key, value = (tensor.detach() for tensor in three(1, 200, 8))
    for tensor in (key, value):
        tensor[:, :64], tensor[:, 192:] = torch.nan, torch.nan
    options = all_changes(1) | {"window": 30, "query_offset": 130}
    assert scored_attention(query[:, :60], key, value, **options).isfinite().all()


def test_hidden_keys_change_nothing_even_nan():
    query, key, value = three(2, 1, 70, 8)
    key_mask = torch.arange(70) % 3 > torch.tensor([[0], [1]])
    options = all_changes(1) | {"key_mask": key_mask}
    clean = with_gradients(scored_attention, (query, key, value), **options)
    hidden = ~key_mask[:, None, :, None]
    spoiled = [t.detach().masked_fill(hidden, torch.nan).requires_grad_() for t in (key, value)]
    found = with_gradients(scored_attention, (query, *spoiled), **options)
    assert all(torch.equal(a, b) for a, b in zip(found, clean, strict=True))


@pytest.mark.parametrize(
    "dtype, changed",
    [(torch.float64, True), (torch.float32, False), (torch.float16, True), (torch.bfloat16, True)],
    ids=str,
)
def test_empty_support_reads_exactly_zero_and_sends_back_zero(dtype, changed):
    tensors = three(2, 1, 20, 16, dtype=dtype)
    key_mask = torch.ones(2, 20, dtype=torch.bool)
    key_mask[1] = False
    options = all_changes(1, dtype) if changed else {"alibi_slopes": torch.ones(1, dtype=dtype)}
    read, *gradients = with_gradients(scored_attention, tensors, key_mask=key_mask, **options)
    assert read.dtype == dtype
    assert read[0].all()
    assert not read[1].any()
    for gradient in gradients[:3]:
        assert gradient[0].any()
        assert not gradient[1].any()


@pytest.mark.parametrize("queries, keys", [(0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("heads", [(2,), (2, 0), (0, 2)], ids=str)
def test_length_zero_reads_zero_and_has_a_gradient(queries, keys, heads):
    tensors = rows(*heads, queries, 4), rows(*heads, keys, 4), rows(*heads, keys, 3)
    options = all_changes(heads[-1]) | {"is_causal": True}
    read, *gradients = with_gradients(scored_attention, tensors, **options)
    assert read.shape == (*heads, queries, 3)
    assert not read.any()
    wanted = *tensors, options["sink_logit"], options["relative_bias"]
    for gradient, tensor in zip(gradients, wanted, strict=True):
        assert gradient.shape == tensor.shape
        assert not gradient.any()


def test_two_runs_give_the_same_bits():
    tensors = rows(2, 70, 8), rows(1, 70, 8, seed=1), rows(1, 70, 8, seed=2)
    options = all_changes(2) | {"is_causal": True}
    first = with_gradients(scored_attention, tensors, **options)
    second = with_gradients(scored_attention, tensors, **options)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_heads_read_their_own_key_head_sink_slope_and_biases():
    query, key, value = rows(4, 5, 8), rows(2, 6, 8, seed=1), rows(2, 6, 3, seed=2)
    options = all_changes(4)
    read = scored_attention(query, key, value, **options)
    for head in range(4):
        own = {
            name: option[head : head + 1] if isinstance(option, torch.Tensor) else option
            for name, option in options.items()
        }
        alone = scored_attention(query[head], key[head // 2], value[head // 2], **own)
        assert torch.equal(read[head], alone)


def test_gradient_of_biases_is_computed_only_where_it_is_wanted(monkeypatch):
    gradient = importlib.import_module("attnlib.kernels.scored_attention_gradient")
    monkeypatch.setattr(gradient, "bias_gradient", None)  # a call would be a TypeError
    tensors, options = three(2, 9, 8), all_changes(2)
    options["relative_bias"] = options["relative_bias"].detach()
    read = scored_attention(*tensors, **options)
    torch.autograd.grad(read.sum(), tensors)


def test_work_is_counted_over_the_pairs_that_are_seen():
    tensors = torch.zeros(3, 4, 16), torch.zeros(3, 5, 16), torch.zeros(3, 5, 8)
    case = *tensors, torch.zeros(3), torch.zeros(3), torch.zeros(3, 7), {}
    assert PROOF.operations(*case)["forward"] == 3 * 4 * 5 * 2 * (16 + 8)
    causal = *case[:-1], {"is_causal": True}
    assert PROOF.operations(*causal)["forward"] == 3 * 10 * 2 * (16 + 8)
    tables = 3 + 3 + 3 * 7
    assert PROOF.bytes_moved(*case)["forward"] == 4 * (3 * (4 * 25 + 5 * 24) + tables)


@pytest.mark.parametrize("change", ["sink", "slopes", "cap and biases"])
def test_peers_compute_what_the_reference_computes(monkeypatch, change):
    monkeypatch.setattr(torch, "compile", lambda function, **how: function)
    tensors = [tensor.detach() for tensor in three(2, 4, 20, 16, dtype=torch.float32)]
    tensors[1:] = [tensor[:, :2] for tensor in tensors[1:]]
    sink, slopes, bias, options = None, None, None, {"is_causal": True}
    if change == "sink":
        sink = rows(4, dtype=torch.float32)
    elif change == "slopes":
        slopes = changes.alibi_slopes(4).float()
    else:
        bias, options = rows(4, 7, dtype=torch.float32).detach(), {"softcap": 1.0, "window": 7}
    case = Case("", (*tensors, sink, slopes, bias, options))
    named, exact = PROOF.peers(case), PROOF.reference(*case.arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # uncompiled, FlexAttention says that it is slow
        for name in ("FlexAttention", "SDPA, math") if change == "slopes" else ("FlexAttention",):
            read = named[name](*case.arguments)
            torch.testing.assert_close(read, exact, rtol=1e-5, atol=1e-5)
    assert ("SDPA, math" in named) == (change == "slopes")


def test_every_width_has_a_tile_on_every_chip():
    for table in (tiles.TILES, tiles.TILES_WITH_BIASES):
        for memory in (101_376, 166_912, 232_448):
            for width in (1, 64, 65, 128, 256):
                for dtype in (torch.float32, torch.float16, torch.bfloat16):
                    assert tile_choice.fits(table, width, width, dtype, memory)


GOOD = torch.zeros(2, 5, 8)
TWO = torch.zeros(2)
WRONG_INPUTS = {
    "query must be float64.*got int32": ((GOOD.int(), GOOD, GOOD), {}),
    "key must have the dtype of query, float32, got float16": ((GOOD, GOOD.half(), GOOD), {}),
    "from 1 to 256, got 257": ((torch.zeros(5, 257),) * 3, {}),
    "value must have one row for each key": ((GOOD, GOOD, GOOD[:, :3]), {}),
    "value must have a last stride of 1.*got 5": ((GOOD, GOOD, torch.zeros(2, 8, 5).mT), {}),
    "query on cpu, key on meta": ((GOOD, GOOD.to("meta"), GOOD), {}),
    "sink_logit on meta": ((GOOD,) * 3, {"sink_logit": TWO.to("meta")}),
    "sink_logit must be a torch tensor, got float": ((GOOD,) * 3, {"sink_logit": 1.0}),
    "sink_logit must be float64.*got int64": ((GOOD,) * 3, {"sink_logit": TWO.long()}),
    r"sink_logit must have one number.*shape \(2,\), got \(3,\)": (
        (GOOD,) * 3,
        {"sink_logit": torch.zeros(3)},
    ),
    r"alibi_slopes must have one number.*shape \(2,\), got \(\)": (
        (GOOD,) * 3,
        {"alibi_slopes": torch.tensor(1.0)},
    ),
    r"alibi_slopes must have one number.*shape \(1,\), got \(2,\)": (
        (GOOD[0],) * 3,
        {"alibi_slopes": TWO},
    ),
    "alibi_slopes are fixed.*detach": ((GOOD,) * 3, {"alibi_slopes": rows(2)}),
    r"relative_bias must have shape.*with 2 heads.*got \(2, 4\)": (
        (GOOD,) * 3,
        {"relative_bias": torch.zeros(2, 4)},
    ),
    r"relative_bias must have shape.*got \(1, 5\)": (
        (GOOD,) * 3,
        {"relative_bias": torch.zeros(1, 5)},
    ),
    r"relative_bias must have shape.*got \(2,\)": ((GOOD,) * 3, {"relative_bias": TWO}),
    "softcap must be a number, got Tensor": ((GOOD,) * 3, {"softcap": torch.ones(())}),
    "softcap must be a number, got bool": ((GOOD,) * 3, {"softcap": True}),
    "softcap must be a positive number from 1e-6 to 1e6, got 0": ((GOOD,) * 3, {"softcap": 0}),
    "softcap must be a positive number.*got inf": ((GOOD,) * 3, {"softcap": math.inf}),
    "softcap must be a positive number.*got nan": ((GOOD,) * 3, {"softcap": math.nan}),
    "key_mask must be a bool tensor.*got float32": ((GOOD,) * 3, {"key_mask": torch.ones(5)}),
    "scale must be a positive finite number, got -1": ((GOOD,) * 3, {"scale": -1}),
    "is_causal must be True or False, got 1": ((GOOD,) * 3, {"is_causal": 1}),
    "window must be at least 1, got 0": ((GOOD,) * 3, {"window": 0}),
    "query_offset must be an int, got float": ((GOOD,) * 3, {"query_offset": 1.0}),
    "query_offset must be at most": ((GOOD,) * 3, {"query_offset": 2**31}),
}


@pytest.mark.parametrize("message", WRONG_INPUTS)
def test_wrong_input_is_named_before_any_launch(monkeypatch, message):
    monkeypatch.setattr(module, "forward_kernel", None)  # a launch would be an AttributeError
    arguments, options = WRONG_INPUTS[message]
    with pytest.raises((TypeError, ValueError), match=message):
        scored_attention(*arguments, **options)


def test_second_derivative_is_refused():
    tensors = three(5, 4)
    (gradient,) = torch.autograd.grad(
        scored_attention(*tensors).square().sum(), tensors[:1], create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
