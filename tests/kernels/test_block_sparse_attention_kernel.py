"""What block_sparse_attention promises beyond closeness: its lists, its tiles, clear errors."""

import importlib
import math
from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl
from attnlib.kernels import BlockLists, block_lists, block_sparse_attention, tile_choice
from attnlib.kernels.bands import edges_of
from attnlib.kernels.block_lists import every_head
from attnlib.kernels.block_sparse_attention_proof import (
    PROOF,
    operations,
    random_table,
    reference,
)
from attnlib.kernels.block_sparse_tiles import (
    TILES,
    edges_in_list,
    listed_count,
    listed_start,
)
from attnlib.kernels.peers import flex_read
from attnlib.kernels.proof import Case
from torch.nn.attention.flex_attention import flex_attention

module = importlib.import_module("attnlib.kernels.block_sparse_attention")
proof = importlib.import_module("attnlib.kernels.block_sparse_attention_proof")


def rows(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(shape, generator=generator, dtype=torch.float64)
    return numbers.to(dtype).requires_grad_()


def three(*shape, dtype=torch.float64):
    return tuple(rows(*shape, dtype=dtype, seed=seed) for seed in range(3))


def table_of(*written):
    return torch.tensor([[mark == "1" for mark in line] for line in written])


def with_gradients(function, tensors, **options):
    read = function(*tensors, **options)
    sent = rows(*read.shape, dtype=read.dtype, seed=9).detach()
    return read, *torch.autograd.grad(read, tensors, sent)


def test_worked_example_by_hand():
    query = torch.ones(17, 1, dtype=torch.float64)
    key = torch.tensor([0.0, math.log(3)], dtype=torch.float64).repeat_interleave(16)[:, None]
    value = torch.tensor([1.0, 5.0], dtype=torch.float64).repeat_interleave(16)[:, None]
    options = {"blocks": table_of("10", "11"), "block_size": 16, "scale": 1}
    read = block_sparse_attention(query, key, value, **options)
    # Rows 0 to 15 read the first block alone. Row 16 weighs 16 keys 1 and 16 keys 3.
    expected = torch.tensor([1.0] * 16 + [(16 * 1 + 48 * 5) / 64], dtype=torch.float64)[:, None]
    torch.testing.assert_close(read, expected, rtol=1e-14, atol=0)
    causal = block_sparse_attention(query, key, value, **options, is_causal=True)
    # Of the second block it now sees one key.
    assert causal[16].item() == pytest.approx((16 * 1 + 3 * 5) / 19, rel=1e-14)


def test_lists_of_a_table_by_hand():
    lists = block_lists(table_of("1010", "0111"))
    assert lists.key_counts.tolist() == [2, 3]
    assert lists.key_blocks[0, :2].tolist() == [0, 2]
    assert lists.key_blocks[1, :3].tolist() == [1, 2, 3]
    assert lists.query_counts.tolist() == [1, 1, 2, 1]
    assert [lists.query_blocks[j, 0].item() for j in range(4)] == [0, 1, 0, 1]
    assert lists.query_blocks[2].tolist() == [0, 1]
    assert {tensor.dtype for tensor in lists.tensors()} == {torch.int32}
    assert torch.equal(lists.table(), table_of("1010", "0111"))


def test_gradcheck():
    tensors = rows(2, 17, 1), rows(1, 15, 1, seed=1), rows(1, 15, 1, seed=2)
    blocks = torch.stack([table_of("1", "1"), table_of("1", "0")])
    attention = lambda *t: block_sparse_attention(  # noqa: E731
        *t, blocks, block_size=16, is_causal=True, query_offset=2
    )
    assert torch.autograd.gradcheck(attention, tensors, fast_mode=True)


@pytest.mark.parametrize("tile", [(16, 32), (32, 16), (64, 64)], ids=str)
def test_size_of_the_tile_does_not_change_the_result(monkeypatch, tile):
    tensors = rows(40, 8), rows(50, 8, seed=1), rows(50, 8, seed=2)
    options = {"blocks": table_of("1"), "block_size": 64, "is_causal": True, "query_offset": 7}
    exact = with_gradients(lambda *t, **o: reference(*t, o), tensors, **options)
    monkeypatch.setattr(tile_choice, "INTERPRETED_TILE", (*tile, 4, 1))
    found = with_gradients(block_sparse_attention, tensors, **options)
    for one, expected in zip(found, exact, strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-12, atol=1e-14)


@triton.jit
def kernel_that_lists_tiles(
    found_ptr,
    list_ptr,
    list_count,
    start,
    stop,
    band,
    count,
    block: tl.constexpr,
    tile: tl.constexpr,
    partial: tl.constexpr,
):
    edges = edges_of(start, stop, band, count, block)
    entries = edges_in_list(list_ptr, list_count, edges, block)
    for number in range(0, listed_count(entries, block, tile, partial)):
        tile_start = listed_start(list_ptr, entries, number, block, tile, partial)
        tl.store(found_ptr + number, tile_start)


@pytest.mark.parametrize("band", [(-90, 70), (-90, 0), (-90, -40), (0, 70), (21, 70)], ids=str)
def test_listed_full_and_partial_tiles_are_what_a_table_of_the_band_says(band):
    queries, keys, rows_a_tile, block, tile = 90, 70, 32, 16, 8
    i, j = torch.arange(queries)[:, None], torch.arange(keys)
    table = (i + band[0] <= j) & (j <= i + band[1])
    listed = [0, 1, 3, 4]
    for start in range(0, queries, rows_a_tile):
        stop = min(start + rows_a_tile, queries)
        expected = {True: [], False: []}
        for number in listed:
            seen = table[start:stop, number * block : (number + 1) * block]
            if seen.any():
                full = seen.all() and seen.shape[1] == block
                expected[not full] += [number * block, number * block + tile]
        for partial in (False, True):
            found = torch.full((12,), -1, dtype=torch.int64)
            arguments = found, torch.tensor(listed, dtype=torch.int32), 4, start, stop, band, keys
            kernel_that_lists_tiles[(1,)](*arguments, block=block, tile=tile, partial=partial)
            assert found[found >= 0].tolist() == expected[partial], (start, partial)


def test_edges_are_found_in_a_list_longer_than_what_is_looked_at_together():
    listed = torch.arange(0, 1200, 2, dtype=torch.int32)
    found = torch.full((1300,), -1, dtype=torch.int64)
    arguments = found, listed, 600, 9000, 9016, (-(10**5), 0), 10**5
    for partial, expected in [(False, range(0, 8992, 32)), (True, [8992])]:
        found.fill_(-1)
        kernel_that_lists_tiles[(1,)](*arguments, block=16, tile=16, partial=partial)
        assert found[found >= 0].tolist() == list(expected)


def test_tiles_that_are_not_listed_are_never_read():
    query, key, value = (tensor.detach() for tensor in three(40, 8))
    blocks = table_of("101", "101", "001")
    for tensor in (key, value):
        tensor[16:32] = torch.nan
    read, *gradients = with_gradients(
        block_sparse_attention,
        [tensor.requires_grad_() for tensor in (query, key, value)],
        blocks=blocks,
        block_size=16,
    )
    assert all(found.isfinite().all() for found in (read, *gradients))
    assert not gradients[1][16:32].any()


def test_nothing_behind_the_tensors_is_read():
    whole = [tensor.detach().clone() for tensor in three(60, 8)]
    for tensor in whole:
        tensor[21:] = torch.nan
    views = [tensor[:21].requires_grad_() for tensor in whole]
    blocks = table_of("11", "11")
    for found in with_gradients(block_sparse_attention, views, blocks=blocks, block_size=16):
        assert found.isfinite().all()


def test_what_follows_the_last_entry_of_a_list_is_not_read():
    tensors, table = three(20, 8), table_of("10", "01")
    lists = block_lists(table)
    key_blocks, query_blocks = lists.key_blocks.clone(), lists.query_blocks.clone()
    key_blocks[:, 1], query_blocks[:, 1] = 10**6, -(10**6)
    garbage = replace(lists, key_blocks=key_blocks, query_blocks=query_blocks)
    expected = with_gradients(block_sparse_attention, tensors, blocks=table, block_size=16)
    found = with_gradients(block_sparse_attention, tensors, blocks=garbage, block_size=16)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_future_token_changes_no_bit_of_the_past():
    tensors = three(60, 8)
    options = {"blocks": table_of("10", "11"), "block_size": 32, "is_causal": True}
    before = block_sparse_attention(*tensors, **options)
    changed = [torch.cat([tensor[:45], tensor[45:] + 1.0]) for tensor in tensors]
    after = block_sparse_attention(*changed, **options)
    assert torch.equal(before[:45], after[:45])
    assert not torch.equal(before[45:], after[45:])


def test_lists_in_place_of_their_table_give_the_same_bits_and_are_not_made_again(monkeypatch):
    tensors = three(2, 20, 8)
    table = torch.stack([table_of("11", "01"), table_of("00", "10")])
    lists = block_lists(table)
    expected = with_gradients(block_sparse_attention, tensors, blocks=table, block_size=16)
    monkeypatch.setattr(module, "block_lists", None)
    found = with_gradients(block_sparse_attention, tensors, blocks=lists, block_size=16)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_batch_entries_and_heads_read_their_own_table_and_key_head():
    query, key, value = rows(2, 2, 15, 8), rows(2, 1, 30, 8, seed=1), rows(2, 1, 30, 3, seed=2)
    table = torch.stack([table_of(written) for written in ("10", "11", "01", "00")])
    table = table.view(2, 2, 1, 2)
    read = block_sparse_attention(query, key, value, table, block_size=16)
    for batch in range(2):
        for head in range(2):
            own = query[batch, head], key[batch, 0], value[batch, 0], table[batch, head]
            alone = block_sparse_attention(*own, block_size=16)
            assert torch.equal(read[batch, head], alone)


def test_a_shared_list_is_not_copied():
    lists = block_lists(table_of("110", "011", "101"))
    for tensor, given in zip(
        every_head(lists, torch.empty(5, 2, 7, 40, 8)), lists.tensors(), strict=True
    ):
        assert tensor.shape[:2] == (10, 7)
        assert tensor.stride()[:2] == (0, 0)
        assert tensor.data_ptr() == given.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_empty_list_reads_exactly_zero_and_sends_back_zero(dtype):
    tensors = three(20, 8, dtype=dtype)
    blocks = table_of("11", "00")
    read, *gradients = with_gradients(block_sparse_attention, tensors, blocks=blocks, block_size=16)
    assert read.dtype == dtype
    assert read[:16].all()
    assert not read[16:].any()
    assert gradients[0][:16].any()
    assert not gradients[0][16:].any()


@pytest.mark.parametrize("queries, keys", [(0, 20), (20, 0), (0, 0), (20, 1), (1, 1)])
def test_length_zero_and_one(queries, keys):
    tensors = rows(2, queries, 4), rows(2, keys, 4, seed=1), rows(2, keys, 3, seed=2)
    blocks = torch.ones(-(-queries // 16), -(-keys // 16), dtype=torch.bool)
    read, *gradients = with_gradients(block_sparse_attention, tensors, blocks=blocks, block_size=16)
    expected = tensors[2].expand(2, queries, 3) if keys == 1 else torch.zeros(2, queries, 3)
    torch.testing.assert_close(read, expected.to(read.dtype), rtol=1e-15, atol=0)
    assert [g.shape for g in gradients] == [t.shape for t in tensors]
    assert not gradients[0].abs().gt(1e-14).any()  # one key: nothing to choose


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_up_to_1e4_stay_finite_and_weights_sum_to_one(dtype):
    query = torch.linspace(-100, 100, 20, dtype=dtype)[:, None].requires_grad_()
    key = torch.linspace(-100, 100, 40, dtype=dtype)[:, None].requires_grad_()
    value = torch.ones(40, 1, dtype=dtype, requires_grad=True)
    read, *gradients = with_gradients(
        block_sparse_attention, (query, key, value), blocks=table_of("101", "010"), block_size=16
    )
    torch.testing.assert_close(read.float(), torch.ones(20, 1))
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("memory", [101_376, 166_912, 232_448])
def test_every_width_has_a_tile_on_every_chip(memory):
    for width in (1, 64, 65, 128, 256):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            assert tile_choice.fits(TILES, width, width, dtype, memory)


def test_lists_that_change_between_forward_and_backward_are_refused():
    lists = block_lists(table_of("11", "01"))
    read = block_sparse_attention(*three(20, 4), lists, block_size=16)
    lists.query_blocks[0, 0] = 99
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        read.sum().backward()


def test_second_derivative_is_refused():
    tensors = three(5, 4)
    read = block_sparse_attention(*tensors, table_of("1"), block_size=16)
    (gradient,) = torch.autograd.grad(read.square().sum(), tensors[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


GOOD = torch.zeros(2, 20, 8)
TABLE = table_of("11", "01")
WRONG_INPUTS = {
    "query must be a torch tensor, got list": (([[0.0]], GOOD, GOOD, TABLE), {}),
    "key must have the dtype of query, float32, got float16": (
        (GOOD, GOOD.half(), GOOD, TABLE),
        {},
    ),
    "key must have the width of query": ((GOOD, GOOD[..., :4], GOOD, TABLE), {}),
    "value must have a last stride of 1": ((GOOD, GOOD, torch.zeros(2, 8, 20).mT, TABLE), {}),
    "blocks must be a bool tensor or BlockLists, got list": ((GOOD,) * 3 + ([[True]],), {}),
    "blocks must be bool.*got int64": ((GOOD,) * 3 + (TABLE.long(),), {}),
    r"blocks must have shape \(..., query blocks, key blocks\)": ((GOOD,) * 3 + (TABLE[0],), {}),
    r"blocks must have shape \(2, 2, 2\).*20 keys in blocks of 16 and 16.*got \(2, 1\)": (
        (GOOD,) * 3 + (TABLE[:, :1],),
        {},
    ),
    r"broadcast to it over batch and heads.*got \(3, 2, 2\)": (
        (GOOD,) * 3 + (TABLE.expand(3, 2, 2),),
        {},
    ),
    r"got \(1, 1, 2, 2\)": ((GOOD,) * 3 + (TABLE[None, None],), {}),
    r"blocks must have shape \(2, 1, 1\).*got \(2, 2\)": (
        (GOOD,) * 3 + (block_lists(TABLE),),
        {"block_size": 32},
    ),
    "query on cpu.*blocks on meta": ((GOOD,) * 3 + (TABLE.to("meta"),), {}),
    "CUDA device or the CPU": (tuple(t.to("meta") for t in (GOOD, GOOD, GOOD, TABLE)), {}),
    "block_size must be 16, 32, 64 or 128.*got 8": ((GOOD,) * 3 + (TABLE,), {"block_size": 8}),
    r"block_size must be.*got \(16, 48\)": ((GOOD,) * 3 + (TABLE,), {"block_size": (16, 48)}),
    r"block_size must be.*got 16.0": ((GOOD,) * 3 + (TABLE,), {"block_size": 16.0}),
    "key_mask must be a bool tensor": ((GOOD,) * 3 + (TABLE,), {"key_mask": torch.ones(20)}),
    "scale must be a positive finite number, got 0": ((GOOD,) * 3 + (TABLE,), {"scale": 0}),
    "scale must be a positive finite number, got 1e-46": ((GOOD,) * 3 + (TABLE,), {"scale": 1e-46}),
    "scale must be a positive.*got 100000000000...": ((GOOD,) * 3 + (TABLE,), {"scale": 10**400}),
    "is_causal must be True or False, got .False.": (
        (GOOD,) * 3 + (TABLE,),
        {"is_causal": "False"},
    ),
    "query_offset must be an int, got float": ((GOOD,) * 3 + (TABLE,), {"query_offset": 1.0}),
}


@pytest.mark.parametrize("message", WRONG_INPUTS)
def test_wrong_input_is_named_before_any_launch(message):
    arguments, options = WRONG_INPUTS[message]
    with pytest.raises((TypeError, ValueError), match=message):
        block_sparse_attention(*arguments, **{"block_size": 16} | options)


def numbers(*values):
    return torch.tensor(values, dtype=torch.int32)


WRONG_LISTS = {
    "key_blocks must be an int32 tensor, got int64": {"key_blocks": torch.zeros(2, 2).long()},
    "key_counts must be an int32 tensor, got list": {"key_counts": [2, 1]},
    "query_counts must be on the device of key_blocks, cpu, got meta": {
        "query_counts": numbers(1, 2).to("meta")
    },
    r"key_blocks must have shape \(..., blocks, list\), got \(2,\)": {"key_blocks": numbers(0, 1)},
    r"key_counts must have one number for each list, \(2,\), got \(3,\)": {
        "key_counts": numbers(1, 1, 1)
    },
    "query_blocks must have the batch axes and heads of key_blocks": {
        "query_blocks": numbers([[0, 1], [0, 1]]),
        "query_counts": numbers([1, 2]),
    },
    "key_counts must be from 0 to 2, the length of a list, got 1 to 3": {
        "key_counts": numbers(3, 1)
    },
    "query_counts must be from 0 to 2.*got -1 to 2": {"query_counts": numbers(-1, 2)},
    "key_blocks must be block numbers from 0 to 1, got 0 to 2": {
        "key_blocks": numbers([0, 2], [1, 0])
    },
    "query_blocks must be block numbers from 0 to 1, got -1 to 1": {
        "query_blocks": numbers([-1, 1], [0, 1])
    },
    "key_blocks must ascend within a list": {"key_blocks": numbers([1, 0], [1, 0])},
    "key_blocks must ascend within a list, no": {"key_blocks": numbers([1, 1], [1, 0])},
    "query_blocks must list the same tiles as key_blocks": {"query_counts": numbers(2, 2)},
}


@pytest.mark.parametrize("message", WRONG_LISTS)
def test_wrong_lists_are_named(message):
    right = block_lists(TABLE)
    assert right.query_counts.tolist() == [1, 2]
    with pytest.raises(ValueError, match=message):
        replace(right, **WRONG_LISTS[message])


def test_lists_that_were_written_to_are_refused():
    lists = block_lists(TABLE)
    lists.key_blocks[0, 0] = 99
    with pytest.raises(ValueError, match="blocks was written to after its lists were checked"):
        block_sparse_attention(GOOD, GOOD, GOOD, lists, block_size=16)


def test_lists_made_in_inference_mode_can_be_used():
    with torch.inference_mode():
        lists = block_lists(TABLE)
        assert block_sparse_attention(GOOD, GOOD, GOOD, lists, block_size=16).shape == GOOD.shape


def test_a_table_that_is_no_table_has_no_lists():
    assert isinstance(block_lists(TABLE), BlockLists)
    with pytest.raises(TypeError, match="blocks must be bool"):
        block_lists(TABLE.float())


def test_timed_tables_keep_the_share_that_is_asked_for():
    table = random_table(64, 0.25, is_causal=False)
    assert table.sum(-1).tolist() == [16] * 64
    causal = random_table(64, 0.25, is_causal=True)
    assert causal.sum(-1).tolist() == [-(-row // 4) for row in range(1, 65)]
    assert not causal.triu(1).any()
    assert random_table(8, 1.0, is_causal=True).equal(torch.ones(8, 8).tril() > 0)


def test_operations_are_counted_over_the_listed_pairs_that_are_seen():
    query = torch.empty(3, 40, 8)
    options = {"blocks": table_of("110", "010", "111"), "block_size": 16, "is_causal": True}
    pairs = 16 * 17 // 2 + 16 * 17 // 2 + 8 * 32 + 8 * 9 // 2
    assert operations(query, query, query, options)["forward"] == 2 * 3 * pairs * 16


@pytest.mark.parametrize("share, is_causal", [(0.5, False), (0.5, True), (1.0, True)])
def test_peers_give_the_numbers_of_the_reference(monkeypatch, share, is_causal):
    uncompiled = lambda *problem: {"FlexAttention": flex_read(flex_attention, *problem)}  # noqa: E731
    monkeypatch.setattr(proof, "flex_peer", uncompiled)
    tensors = [t.detach() for t in three(1, 2, 256, 8, dtype=torch.float32)]
    blocks = block_lists(random_table(2, share, is_causal))
    case = Case(
        "256 keys", (*tensors, {"blocks": blocks, "block_size": 128, "is_causal": is_causal})
    )
    exact = reference(*case.arguments)
    named = PROOF.peers(case)
    assert ("flash_attention" in named) == (share == 1.0)
    for name in {"SDPA, math", "FlexAttention", "flash_attention"} & set(named):
        torch.testing.assert_close(named[name](*case.arguments), exact, rtol=1e-5, atol=1e-5)
