"""What neighborhood_attention promises beyond closeness: windows, borders, tiles, clear errors."""

import importlib
import math
import sys
import warnings

import pytest
import torch

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402
from attnlib.kernels import grid_launch, neighborhood_attention, peers, tile_choice  # noqa: E402
from attnlib.kernels.grid_windows import keys_on_axis, queries_on_axis  # noqa: E402
from attnlib.kernels.neighborhood_attention_proof import (  # noqa: E402
    PROOF,
    Case,
    axis_support,
    grid_support,
    natten_read,
    operations,
    reference,
    rules_of,
    support_of,
)
from torch.nn.attention.flex_attention import flex_attention  # noqa: E402

module = importlib.import_module("attnlib.kernels.neighborhood_attention")
MIXED = {"stride": (2, 1), "dilation": (1, 3), "is_causal": (False, True)}


def rows(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(shape, generator=generator, dtype=torch.float64)
    return numbers.to(dtype).requires_grad_()


def three(*shape, dtype=torch.float64):
    return tuple(rows(*shape, dtype=dtype, seed=seed) for seed in range(3))


def with_gradients(tensors, *arguments, function=neighborhood_attention, **options):
    read = function(*tensors, *arguments, **options)
    sent = rows(*read.shape, dtype=read.dtype, seed=9).detach()
    return read, *torch.autograd.grad(read, tensors, sent)


def windows_of(length, window, **options):
    """The keys that the kernel lets each query of a line see: equal scores, values that tell."""
    nothing = torch.zeros(1, length, 1, dtype=torch.float64)
    value = torch.eye(length, dtype=torch.float64)[None]
    read = neighborhood_attention(nothing, nothing, value, window, **options)[0]
    return [row.nonzero().flatten().tolist() for row in read]


def test_worked_example_by_hand():
    query = torch.ones(1, 4, 1, dtype=torch.float64)
    key = torch.tensor([1.0, 2.0, 1.0, 5.0], dtype=torch.float64).log().view(1, 4, 1)
    value = torch.tensor([4.0, 8.0, 0.0, 16.0], dtype=torch.float64).view(1, 4, 1)
    read = neighborhood_attention(query, key, value, 3).flatten()
    # Places 0 and 1 weigh the keys 0 1 2 as 1 : 2 : 1, places 2 and 3 the keys 1 2 3 as 2 : 1 : 5.
    expected = torch.tensor([5.0, 5.0, 12.0, 12.0], dtype=torch.float64)
    torch.testing.assert_close(read, expected, rtol=1e-14, atol=0)
    causal = neighborhood_attention(query, key, value, 3, is_causal=True).flatten()
    expected = torch.tensor([4.0, 20 / 3, 5.0, 12.0], dtype=torch.float64)
    torch.testing.assert_close(causal, expected, rtol=1e-14, atol=0)


def stretches(width, firsts):
    return [list(range(first, first + width)) for first in firsts]


WINDOWS = {
    "centered, shifted at borders": ((7, 3, {}), stretches(3, [0, 0, 1, 2, 3, 4, 4])),
    "even: one more before": ((7, 4, {}), stretches(4, [0, 0, 0, 1, 2, 3, 3])),
    "groups of 2 follow the right one": (
        (8, 4, {"stride": 2}),
        stretches(4, [0, 0, 1, 1, 3, 3, 4, 4]),
    ),
    "groups of 3, the last one cut": (
        (8, 3, {"stride": 3}),
        stretches(3, [0, 0, 0, 3, 3, 3, 5, 5]),
    ),
    "blocks": ((8, 4, {"stride": 4}), stretches(4, [0] * 4 + [4] * 4)),
    "dilation": (
        (7, 3, {"dilation": 2}),
        [[0, 2, 4], [1, 3, 5], [0, 2, 4], [1, 3, 5], [2, 4, 6], [1, 3, 5], [2, 4, 6]],
    ),
    "causal": (
        (5, 3, {"is_causal": True}),
        [[0], [0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4]],
    ),
    "causal groups of 2 begin with the last one": (
        (6, 3, {"is_causal": True, "stride": 2}),
        [[0], [0, 1], [1, 2], [1, 2, 3], [3, 4], [3, 4, 5]],
    ),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_are_those_written_by_hand(name):
    (length, window, options), expected = WINDOWS[name]
    assert windows_of(length, window, **options) == expected


@pytest.mark.parametrize("length, window", [(9, 5), (12, 7), (7, 7)])
def test_an_odd_window_holds_the_nearest_places(length, window):
    expected = [
        sorted(sorted(range(length), key=lambda key, query=query: abs(query - key))[:window])
        for query in range(length)
    ]
    assert windows_of(length, window) == expected


@triton.jit
def kernel_that_lists_stretches(
    keys_ptr, queries_ptr, length, window: tl.constexpr, stride: tl.constexpr, causal: tl.constexpr
):
    place = tl.arange(0, 16)
    first, stop = keys_on_axis(place, length, window, stride, causal)
    tl.store(keys_ptr + place, first)
    tl.store(keys_ptr + 16 + place, stop)
    first, stop = queries_on_axis(place, length, window, stride, causal)
    tl.store(queries_ptr + place, first)
    tl.store(queries_ptr + 16 + place, stop)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [1, 2, 7, 10])
def test_queries_that_see_a_key_are_the_transposed_table(length, causal):
    places = torch.arange(16)
    for window in range(1, length + 1):
        for stride in range(1, window + 1):
            keys, queries = (torch.empty(2, 16, dtype=torch.int32) for _ in range(2))
            kernel_that_lists_stretches[(1,)](keys, queries, length, window, stride, causal)
            seen, seen_by = (
                ((first[:, None] <= places) & (places < stop[:, None]))[:length, :length]
                for first, stop in (keys, queries)
            )
            assert torch.equal(seen, axis_support(length, window, stride, 1, causal))
            assert torch.equal(seen_by, seen.T)


def test_gradcheck():
    tensors = rows(2, 2, 5, 4), rows(1, 2, 5, 4, seed=1), rows(1, 2, 5, 2, seed=2)
    options = {"stride": (1, 2), "is_causal": (False, True)}
    attention = lambda *t: neighborhood_attention(*t, (2, 3), **options)  # noqa: E731
    assert torch.autograd.gradcheck(attention, tensors, fast_mode=True)


@pytest.mark.parametrize(
    "tile, window, options",
    [((16, 32), (5, 2), MIXED), ((32, 16), (4, 5), {"stride": (2, 1)})],
    ids=str,
)
def test_size_of_the_tile_does_not_change_the_result(monkeypatch, tile, window, options):
    tensors = three(1, 5, 7, 8)
    exact = with_gradients(tensors, {"window": window} | options, function=reference)
    monkeypatch.setattr(tile_choice, "INTERPRETED_TILE", (*tile, 4, 1))
    for found, expected in zip(with_gradients(tensors, window, **options), exact, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("shapes", [((1, 1, 16), (1, 4, 8)), ((1, 16, 1), (1, 16, 1))], ids=str)
def test_shape_of_the_tile_does_not_change_the_result(monkeypatch, shapes):
    tensors = three(1, 5, 4, 8)
    exact = with_gradients(tensors, {"window": (3, 4)}, function=reference)
    monkeypatch.setattr(grid_launch, "tile_shapes", lambda *sizes: shapes)
    for found, expected in zip(with_gradients(tensors, (3, 4)), exact, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_tiles_are_boxes_with_the_least_work():
    plane = (1, 128, 128), (1, 13, 13), (1, 1, 1)
    # 8 x 16 queries see 20 x 28 keys: 5 tiles. A row of 128 would see 13 x 140.
    assert grid_launch.tile_shapes(128, 128, *plane) == ((1, 8, 16), (1, 4, 32))
    line = (1, 1, 4096), (1, 1, 300), (1, 1, 1)
    assert grid_launch.tile_shapes(128, 64, *line) == ((1, 1, 128), (1, 1, 64))
    blocks = (1, 64, 64), (1, 16, 8), (1, 16, 8)
    assert grid_launch.tile_shapes(128, 128, *blocks) == ((1, 16, 8), (1, 16, 8))


def test_window_of_the_whole_grid_is_attention():
    tensors = three(2, 4, 5, 8)
    read = neighborhood_attention(*tensors, (4, 5))
    flat = (tensor.flatten(1, 2) for tensor in tensors)
    expected = torch.nn.functional.scaled_dot_product_attention(*flat).view_as(read)
    torch.testing.assert_close(read, expected, rtol=1e-12, atol=1e-14)


def test_window_of_one_row_reads_each_row_alone():
    tensors = three(1, 3, 9, 8)
    read = neighborhood_attention(*tensors, (1, 5))
    for row in range(3):
        alone = neighborhood_attention(*(tensor[:, row] for tensor in tensors), 5)
        torch.testing.assert_close(read[:, row], alone, rtol=1e-12, atol=1e-14)


def test_dilation_is_attention_within_each_residue():
    tensors = three(1, 7, 8, 8)
    options = {"stride": (1, 2), "is_causal": (True, False)}
    read = neighborhood_attention(*tensors, (3, 2), dilation=(2, 3), **options)
    for down in range(2):
        for right in range(3):
            parts = (tensor[:, down::2, right::3] for tensor in tensors)
            alone = neighborhood_attention(*parts, (3, 2), **options)
            torch.testing.assert_close(read[:, down::2, right::3], alone, rtol=1e-12, atol=1e-14)


def test_places_out_of_sight_change_no_bit_and_get_no_gradient():
    tensors = three(1, 6, 20, 8)
    options = {"is_causal": (False, True)}
    before = neighborhood_attention(*tensors, (3, 5), **options)
    changed = [tensor.detach().clone() for tensor in tensors]
    for tensor in changed:
        tensor[:, 4, 10] += 1.0
    after = neighborhood_attention(*changed, (3, 5), **options)
    differs = (before != after).any(-1)[0]
    expected = torch.zeros(6, 20, dtype=torch.bool)
    expected[3:, 10:15] = True  # rows 3 ... 5 see row 4; columns 10 ... 14 see column 10
    assert torch.equal(differs, expected)
    gradient = torch.autograd.grad(before[:, 0, 12].sum(), tensors[1])[0].any(-1)[0]
    expected = torch.zeros(6, 20, dtype=torch.bool)
    expected[:3, 8:13] = True
    assert torch.equal(gradient, expected)


def test_keys_outside_the_box_of_a_tile_are_never_read():
    query, key, value = (tensor.detach() for tensor in three(1, 300, 8))
    for tensor in (key, value):
        tensor[:, 138:] = torch.nan
    read = neighborhood_attention(query, key, value, 21)
    assert read[:, :128].isfinite().all()  # place 127 sees the keys up to 137


def test_nothing_beside_the_tensor_is_read_or_written():
    around = [torch.full((1, 9, 12, 10), torch.nan, dtype=torch.float64) for _ in range(3)]
    inside = [tensor[:, 1:-1, 1:-1, 1:-1] for tensor in around]
    for tensor, numbers in zip(inside, three(1, 7, 10, 8), strict=True):
        tensor.copy_(numbers.detach())
    options = {"dilation": (1, 2), "stride": (3, 1)}
    views = [tensor.detach().requires_grad_() for tensor in inside]
    copies = [tensor.clone().requires_grad_() for tensor in inside]
    found = with_gradients(views, (3, 4), **options)
    expected = with_gradients(copies, (3, 4), **options)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(tensor.isnan().sum() == 9 * 12 * 10 - 7 * 10 * 8 for tensor in around)


def test_two_runs_give_the_same_bits():
    tensors = three(1, 5, 6, 8)
    first, second = (with_gradients(tensors, (3, 4)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_heads_of_a_group_read_their_own_key_head():
    query, key, value = rows(4, 3, 5, 8), rows(2, 3, 5, 8, seed=1), rows(2, 3, 5, 3, seed=2)
    read = neighborhood_attention(query, key, value, (3, 3))
    for head in range(4):
        shared = slice(head // 2, head // 2 + 1)
        alone = neighborhood_attention(query[head, None], key[shared], value[shared], (3, 3))
        assert torch.equal(read[head, None], alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_scores_up_to_1e4_stay_finite_and_weights_sum_to_one(dtype):
    query = torch.linspace(-100, 100, 60, dtype=dtype).view(1, 60, 1).requires_grad_()
    key = query.detach().clone().requires_grad_()
    value = torch.ones(1, 60, 1, dtype=dtype, requires_grad=True)
    read, *gradients = with_gradients((query, key, value), 8)
    assert read.dtype == dtype
    torch.testing.assert_close(read.float(), torch.ones(1, 60, 1))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_tiny_scores_weigh_all_keys_alike():
    query = torch.full((1, 9, 4), 1e-20, dtype=torch.float32)
    value = rows(1, 9, 4, dtype=torch.float32)
    read = neighborhood_attention(query, query, value, 9)
    torch.testing.assert_close(read, value.mean(1, keepdim=True).expand(1, 9, 4))


def test_one_place_reads_itself():
    query, key, value = three(2, 1, 1, 1, 4)
    read, grad_query, grad_key, grad_value = with_gradients((query, key, value), (1, 1, 1))
    assert torch.equal(read, value)
    assert not grad_query.any() and not grad_key.any() and grad_value.any()


@pytest.mark.parametrize("leading", [(0,), (0, 2), (2, 0)], ids=str)
def test_no_heads_or_no_batch_gives_nothing(leading):
    tensors = three(*leading, 5, 6, 4)
    read, *gradients = with_gradients(tensors, (3, 3))
    assert read.shape == (*leading, 5, 6, 4)
    assert all(gradient.shape == (*leading, 5, 6, 4) for gradient in gradients)


def test_views_are_read_where_they_are():
    packed = rows(2, 5, 6, 3, 4, 16)
    for part in packed.unbind(3):
        folded = grid_launch.batch_heads_and_grid(part.movedim(-2, 1), 2)
        assert folded.data_ptr() == part.data_ptr()
        assert folded.shape == (2, 4, 1, 5, 6, 16)
        assert folded.stride()[3:] == (6 * 3 * 4 * 16, 3 * 4 * 16, 1)


def test_operations_are_counted_over_the_pairs_that_are_seen():
    tensors = [torch.zeros(2, 3, 5, 7, 16)] * 3
    pairs = 2 * 3 * (5 * 3) * (1 + 2 + 3 + 4 * 4)  # a causal axis of 7 places, a window of 4
    options = {"window": (3, 4), "is_causal": (False, True)}
    assert operations(*tensors, options)["forward"] == 4 * 16 * pairs


def test_every_width_has_a_tile_on_every_chip():
    for memory in (101_376, 166_912, 232_448):
        for width in (1, 64, 65, 128, 256):
            for dtype in (torch.float32, torch.float16, torch.bfloat16):
                assert tile_choice.fits(module.TILES, width, width, dtype, memory)


OPTIONS = {
    "a line, causal": ((20,), {"window": 6, "stride": 4, "dilation": 2, "is_causal": True}),
    "a plane": ((6, 9), {"window": (4, 3)} | MIXED),
    "a volume": ((4, 3, 5), {"window": (3, 2, 4), "stride": (1, 1, 3), "dilation": (1, 1, 1)}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_support_that_flex_attention_gets_is_that_of_the_reference(name):
    grid, options = OPTIONS[name]
    i, j = torch.meshgrid(*(torch.arange(math.prod(grid)) for _ in range(2)), indexing="ij")
    assert torch.equal(support_of(grid, rules_of(options))(0, 0, i, j), grid_support(grid, options))


def test_flex_attention_as_a_peer_gives_the_numbers_of_the_reference(monkeypatch):
    monkeypatch.setattr(
        peers,
        "flex_peer",
        lambda *problem: {"FlexAttention": peers.flex_read(flex_attention, *problem)},
    )
    grid, options = OPTIONS["a plane"]
    case = Case("a plane", (*(t.detach() for t in three(2, 2, *grid, 16)), options))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # uncompiled, FlexAttention says that it is slow
        found = PROOF.peers(case)["FlexAttention"](*case.arguments)
    torch.testing.assert_close(found, reference(*case.arguments), rtol=1e-5, atol=1e-5)


def test_natten_as_a_peer_gets_heads_beside_the_width(monkeypatch):
    def na2d(query, key, value, **options):
        assert options == {
            "kernel_size": (4, 3),
            "stride": (2, 1),
            "dilation": (1, 3),
            "is_causal": (False, True),
            "scale": None,
        }
        heads_first = (tensor.movedim(-2, 1) for tensor in (query, key, value))
        return neighborhood_attention(*heads_first, (4, 3), **MIXED).movedim(1, -2)

    package = type("natten", (), {"na1d": None, "na2d": staticmethod(na2d), "na3d": None})
    monkeypatch.setitem(sys.modules, "natten", package)
    arguments = (*(t.detach() for t in three(1, 2, 6, 9, 16)), {"window": (4, 3)} | MIXED)
    torch.testing.assert_close(natten_read(*arguments), reference(*arguments))


GOOD = torch.zeros(2, 5, 6, 8)
WRONG_INPUTS = {
    "query must be float64.*got int32": ((GOOD.int(), GOOD, GOOD, (3, 3)), {}),
    "query must be a torch tensor, got list": (([[0.0]], GOOD, GOOD, (3, 3)), {}),
    "key must have the dtype of query, float32, got": ((GOOD, GOOD.half(), GOOD, (3, 3)), {}),
    "query must have shape .*a grid of 3 axes.*got .2, 5, 6, 8.": ((GOOD,) * 3 + ((1, 1, 1),), {}),
    r"key must have the grid of query, \(5, 6\), got \(5, 5\)": (
        (GOOD, GOOD[:, :, :5], GOOD, (3, 3)),
        {},
    ),
    r"value must have the grid of query, \(5, 6\), got \(2, 5\)": (
        (GOOD, GOOD, GOOD[:, :2].mT.contiguous().mT[:, :, :5], (3, 3)),
        {},
    ),
    "value must have .* as many axes as query": ((GOOD, GOOD, GOOD[None], (3, 3)), {}),
    "key must have the width of query, 8, got 4": ((GOOD, GOOD[..., :4], GOOD, (3, 3)), {}),
    "query must have a width .* from 1 to 256, got 257": (
        (torch.zeros(1, 5, 257),) * 3 + (3,),
        {},
    ),
    "got 2 query heads and 3 key heads": (
        (GOOD, torch.zeros(3, 5, 6, 8), torch.zeros(3, 5, 6, 8), (3, 3)),
        {},
    ),
    "value must have a last stride of 1.*got 6": (
        (GOOD, GOOD, torch.zeros(2, 5, 8, 6).mT, (3, 3)),
        {},
    ),
    "query on cpu, key on meta": ((GOOD, GOOD.to("meta"), GOOD, (3, 3)), {}),
    "window times dilation must fit .*window 7 and dilation 1 on axis 1 of 6 places": (
        (GOOD, GOOD, GOOD, (3, 7)),
        {},
    ),
    "window 3 and dilation 2 on axis 0 of 5 places": (
        (GOOD, GOOD, GOOD, (3, 3)),
        {"dilation": 2},
    ),
    "window 1 and dilation 1 on axis 0 of 0 places": ((GOOD[:, :0],) * 3 + ((1, 1),), {}),
    "stride must be at most the window, got stride 4 and window 3 on axis 1": (
        (GOOD, GOOD, GOOD, (5, 3)),
        {"stride": 4},
    ),
    "window must be for one to three axes, got ..$": ((GOOD, GOOD, GOOD, ()), {}),
    "window must be for one to three axes, got .1, 1, 1, 1.": ((GOOD,) * 3 + ((1,) * 4,), {}),
    "window must be at least 1, got 0": ((GOOD, GOOD, GOOD, (3, 0)), {}),
    "window must be an int, got float": ((GOOD, GOOD, GOOD, (3, 3.0)), {}),
    "window must be an int, got NoneType": ((GOOD, GOOD, GOOD, None), {}),
    "stride must be at least 1, got 0": ((GOOD, GOOD, GOOD, (3, 3)), {"stride": 0}),
    "stride must be one for all axes or one for each of the 2 .*got .1, 1, 1.": (
        (GOOD, GOOD, GOOD, (3, 3)),
        {"stride": (1, 1, 1)},
    ),
    "dilation must be an int, got bool": ((GOOD, GOOD, GOOD, (3, 3)), {"dilation": True}),
    "is_causal must be a bool or a tuple of bools, got 1": (
        (GOOD, GOOD, GOOD, (3, 3)),
        {"is_causal": 1},
    ),
    "scale must be a positive finite number, got": (
        (GOOD, GOOD, GOOD, (3, 3)),
        {"scale": math.inf},
    ),
}


@pytest.mark.parametrize("message", WRONG_INPUTS)
def test_wrong_input_is_named_before_any_launch(message):
    arguments, options = WRONG_INPUTS[message]
    with pytest.raises((TypeError, ValueError), match=message):
        neighborhood_attention(*arguments, **options)


def test_cpu_tensors_without_the_interpreter_are_told_how_to_get_it(monkeypatch):
    from attnlib.kernels import launch

    monkeypatch.setattr(launch, "interpreted", lambda kernel: False)
    with pytest.raises(ValueError, match="set TRITON_INTERPRET=1 before triton"):
        neighborhood_attention(GOOD, GOOD, GOOD, (3, 3))


def test_second_derivative_is_refused():
    tensors = three(1, 5, 4)
    read = neighborhood_attention(*tensors, 3)
    (gradient,) = torch.autograd.grad(read.square().sum(), tensors[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
