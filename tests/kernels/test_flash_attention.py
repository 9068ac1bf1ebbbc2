"""What flash_attention promises beyond closeness: tiles, exact zeros, the past, clear errors."""

import importlib
import math

import pytest
import torch
import triton
import triton.language as tl
from attnlib.kernels import flash_attention, tile_choice
from attnlib.kernels.flash_attention_proof import pairs_seen, reference

module = importlib.import_module("attnlib.kernels.flash_attention")
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
    read = flash_attention(query, key, value)
    # Row 0 weighs 1 : 3, row 1 weighs 1 : 9.
    expected = torch.tensor([[1.0, 6.0], [0.4, 7.2]], dtype=torch.float64)
    torch.testing.assert_close(read, expected, rtol=1e-14, atol=0)
    causal = flash_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(causal, torch.stack([value[0], expected[1]]))


def test_gradcheck():
    tensors = rows(2, 3, 4), rows(1, 5, 4, seed=1), rows(1, 5, 2, seed=2)
    attention = lambda *t: flash_attention(*t, is_causal=True, query_offset=1)  # noqa: E731
    assert torch.autograd.gradcheck(attention, tensors, fast_mode=True)


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True, "query_offset": 7}, {"window": 21}], ids=str
)
def test_size_of_the_tile_does_not_change_the_result(monkeypatch, tile, options):
    tensors = rows(70, 8), rows(77, 8, seed=1), rows(77, 8, seed=2)
    exact = with_gradients(lambda *t, **o: reference(*t, o), tensors, **options)
    monkeypatch.setattr(tile_choice, "INTERPRETED_TILE", (*tile, 4, 1))
    for found, expected in zip(
        with_gradients(flash_attention, tensors, **options), exact, strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@triton.jit
def kernel_that_lists_tiles(
    found_ptr, start, stop, band, count, size: tl.constexpr, partial: tl.constexpr
):
    edges = module.edges_of(start, stop, band, count, size)
    for number in range(0, module.tile_count(edges, size, partial)):
        tl.store(found_ptr + number, module.tile_start(edges, number, size, partial))


def tiles_visited(start, stop, band, count, size, partial):
    found = torch.full((count + 1,), -1, dtype=torch.int64)
    kernel_that_lists_tiles[(1,)](found, start, stop, band, count, size=size, partial=partial)
    return found[found >= 0].tolist()


BANDS = [
    (-50, 37),
    (-50, 0),
    (-50, 11),
    (-50, -20),
    (-4, 0),
    (-9, 3),
    (5, 30),
    (-50, -50),
    (37, 37),
]


@pytest.mark.parametrize("band", BANDS, ids=str)
def test_full_partial_and_skipped_tiles_are_what_a_table_of_the_band_says(band):
    queries, keys, query_size, key_size = 50, 37, 16, 8
    i, j = torch.arange(queries)[:, None], torch.arange(keys)
    table = (i + band[0] <= j) & (j <= i + band[1])
    for start in range(0, queries, query_size):
        stop = min(start + query_size, queries)
        expected = {True: [], False: []}
        for key_start in range(0, keys, key_size):
            tile = table[start:stop, key_start : key_start + key_size]
            if tile.any():
                expected[not tile.all() or tile.shape[1] < key_size].append(key_start)
        for partial in (False, True):
            found = tiles_visited(start, stop, band, keys, key_size, partial)
            assert found == expected[partial], (start, partial)


def test_keys_that_a_tile_skips_are_never_read():
    query, key, value = (tensor.detach() for tensor in three(200, 8))
    for tensor in (key, value):
        tensor[:64], tensor[192:] = torch.nan, torch.nan
    read = flash_attention(query[:60], key, value, window=30, query_offset=130)
    assert read[:60].isfinite().all()  # positions 130 ... 189 see the keys 101 ... 189


def test_future_token_changes_no_bit_of_the_past():
    tensors = three(2, 150, 16)
    before = with_gradients(flash_attention, tensors, is_causal=True)
    changed = [tensor.detach().clone() for tensor in tensors]
    for tensor in changed:
        tensor[:, 100:] += 1.0
    after = flash_attention(*changed, is_causal=True)
    assert torch.equal(before[0][:, :100], after[:, :100])
    assert not torch.equal(before[0][:, 100:], after[:, 100:])


def test_two_runs_give_the_same_bits():
    tensors = rows(4, 100, 8), rows(2, 100, 8, seed=1), rows(2, 100, 8, seed=2)
    first = with_gradients(flash_attention, tensors, is_causal=True)
    second = with_gradients(flash_attention, tensors, is_causal=True)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_heads_of_a_group_read_their_own_key_head():
    query, key, value = rows(4, 5, 8), rows(2, 6, 8, seed=1), rows(2, 6, 3, seed=2)
    read = flash_attention(query, key, value)
    for head in range(4):
        alone = flash_attention(query[head], key[head // 2], value[head // 2])
        assert torch.equal(read[head], alone)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_empty_support_reads_exactly_zero_and_sends_back_zero(dtype):
    tensors = three(2, 1, 63, 16, dtype=dtype)
    key_mask = torch.ones(2, 63, dtype=torch.bool)
    key_mask[1] = False
    read, *gradients = with_gradients(flash_attention, tensors, key_mask=key_mask)
    assert read.dtype == dtype
    assert read[0].all()
    assert not read[1].any()
    for gradient in gradients:
        assert gradient[0].any()
        assert not gradient[1].any()


def test_hidden_keys_change_nothing_even_nan():
    query, key, value = three(2, 2, 70, 8)
    key_mask = torch.arange(70) % 3 > torch.tensor([[0], [1]])
    clean = with_gradients(flash_attention, (query, key, value), key_mask=key_mask)
    hidden = ~key_mask[:, None, :, None]
    spoiled = [t.detach().masked_fill(hidden, torch.nan).requires_grad_() for t in (key, value)]
    found = with_gradients(flash_attention, (query, *spoiled), key_mask=key_mask)
    assert all(torch.equal(a, b) for a, b in zip(found, clean, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_scores_up_to_1e4_stay_finite_and_weights_sum_to_one(dtype):
    query = torch.linspace(-100, 100, 30, dtype=dtype)[:, None].requires_grad_()
    key = torch.linspace(-100, 100, 100, dtype=dtype)[:, None].requires_grad_()
    value = torch.ones(100, 1, dtype=dtype, requires_grad=True)
    read, *gradients = with_gradients(flash_attention, (query, key, value))
    torch.testing.assert_close(read.float(), torch.ones(30, 1))
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("queries, keys", [(0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("heads", [(2,), (2, 0), (0, 2)], ids=str)
def test_length_zero_reads_zero_and_has_a_gradient(queries, keys, heads):
    tensors = rows(*heads, queries, 4), rows(*heads, keys, 4), rows(*heads, keys, 3)
    read, *gradients = with_gradients(flash_attention, tensors, is_causal=True)
    assert read.shape == (*heads, queries, 3)
    assert not read.any()
    for gradient, tensor in zip(gradients, tensors, strict=True):
        assert gradient.shape == tensor.shape
        assert not gradient.any()


def test_views_are_read_where_they_are():
    packed = rows(2, 20, 3, 4, 16)
    query, key, value = (part.transpose(1, 2) for part in packed.unbind(2))
    folded = [module.batch_and_heads(tensor) for tensor in (query, key, value)]
    assert [a.data_ptr() for a in folded] == [a.data_ptr() for a in (query, key, value)]
    assert all(tensor.stride(-2) == 3 * 4 * 16 for tensor in folded)


def test_operations_are_counted_over_the_pairs_that_are_seen():
    assert pairs_seen(4, 4, {"is_causal": True}) == 10
    assert pairs_seen(4, 4, {"window": 2}) == 7
    assert pairs_seen(2, 5, {}) == 10


def test_every_width_has_a_tile_on_every_chip():
    for memory in (101_376, 166_912, 232_448):
        for width in (1, 64, 65, 128, 256):
            for dtype in (torch.float32, torch.float16, torch.bfloat16):
                assert tile_choice.fits(module.TILES, width, width, dtype, memory)


def test_a_chip_too_small_for_any_tile_is_named():
    assert not tile_choice.fits(module.TILES, 128, 128, torch.bfloat16, 65_536)
    with pytest.raises(ValueError, match=r"no tile of 128 columns.*bfloat16.*65536 bytes"):
        tile_choice.tile(module.TILES, "forward", 128, 64, torch.bfloat16, 65_536)


GOOD = torch.zeros(2, 5, 8)
WRONG_INPUTS = {
    "query must be float64.*got int32": ((GOOD.int(), GOOD, GOOD), {}),
    "query must be a torch tensor, got list": (([[0.0]], GOOD, GOOD), {}),
    "key must have the dtype of query, float32, got float16": ((GOOD, GOOD.half(), GOOD), {}),
    "value must have shape.*got .5, 8.": ((GOOD, GOOD, GOOD[0]), {}),
    "query must have shape": ((GOOD[0, 0], GOOD[0, 0], GOOD[0, 0]), {}),
    "from 1 to 256, got 257": ((torch.zeros(5, 257),) * 3, {}),
    "from 1 to 256, got 0": ((torch.zeros(5, 0),) * 3, {}),
    "key must have the width of query, 8, got 4": ((GOOD, GOOD[..., :4], GOOD), {}),
    "value must have one row for each key": ((GOOD, GOOD, GOOD[:, :3]), {}),
    "a multiple of the heads of key, got 2 query heads and 3": (
        (GOOD, torch.zeros(3, 5, 8), torch.zeros(3, 5, 8)),
        {},
    ),
    "got 2 query heads and 0 key heads": ((GOOD, GOOD[:0], GOOD[:0]), {}),
    "key must have the batch axes of query": (
        (torch.zeros(2, 1, 5, 8), torch.zeros(3, 1, 5, 8), torch.zeros(3, 1, 5, 8)),
        {},
    ),
    "value must have a last stride of 1.*got 5": ((GOOD, GOOD, torch.zeros(2, 8, 5).mT), {}),
    "query on cpu, key on meta": ((GOOD, GOOD.to("meta"), GOOD), {}),
    "key_mask on meta": (
        (GOOD,) * 3,
        {"key_mask": torch.ones(5, dtype=torch.bool, device="meta")},
    ),
    "CUDA device or the CPU": ((GOOD.to("meta"),) * 3, {}),
    "key_mask must be a bool tensor.*got float32": ((GOOD,) * 3, {"key_mask": torch.ones(5)}),
    r"key_mask of shape \(4,\) does not broadcast": (
        (GOOD,) * 3,
        {"key_mask": torch.ones(4, dtype=torch.bool)},
    ),
    "scale must be a positive finite number, got 0": ((GOOD,) * 3, {"scale": 0}),
    "scale must be a positive finite number, got 1e-46": ((GOOD,) * 3, {"scale": 1e-46}),
    "scale must be a positive.*got 100000000000...": ((GOOD,) * 3, {"scale": 10**400}),
    "is_causal must be True or False, got .False.": ((GOOD,) * 3, {"is_causal": "False"}),
    "window must be at least 1, got 0": ((GOOD,) * 3, {"window": 0}),
    "query_offset must be an int, got float": ((GOOD,) * 3, {"query_offset": 1.0}),
}


@pytest.mark.parametrize("message", WRONG_INPUTS)
def test_wrong_input_is_named_before_any_launch(message):
    arguments, options = WRONG_INPUTS[message]
    with pytest.raises((TypeError, ValueError), match=message):
        flash_attention(*arguments, **options)


def test_cpu_tensors_without_the_interpreter_are_told_how_to_get_it(monkeypatch):
    from attnlib.kernels import launch

    monkeypatch.setattr(launch, "interpreted", lambda kernel: False)
    with pytest.raises(ValueError, match="set TRITON_INTERPRET=1 before triton"):
        flash_attention(GOOD, GOOD, GOOD)


def test_second_derivative_is_refused():
    tensors = three(5, 4)
    (gradient,) = torch.autograd.grad(
        flash_attention(*tensors).square().sum(), tensors[:1], create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
