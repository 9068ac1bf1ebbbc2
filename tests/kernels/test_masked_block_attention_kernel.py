"""What masked_block_attention promises beyond closeness: masks, skipped tiles, clear errors."""

import importlib
import math

import pytest
import torch
from attnlib.kernels import (
    block_sparse_attention,
    masked_block_attention,
    tile_choice,
    tiled_support,
)
from attnlib.kernels.masked_block_attention_proof import (
    PROOF,
    bytes_moved,
    causal,
    documents,
    every,
    every_per_head,
    nothing,
    operations,
    reference,
    window,
)
from attnlib.kernels.masked_block_attention_tiles import TILES
from attnlib.kernels.peers import flex_read
from attnlib.kernels.proof import Case
from torch.nn.attention.flex_attention import flex_attention

proof = importlib.import_module("attnlib.kernels.masked_block_attention_proof")


def rows(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(shape, generator=generator, dtype=torch.float64)
    return numbers.to(dtype).requires_grad_()


def three(*shape, dtype=torch.float64):
    return tuple(rows(*shape, dtype=dtype, seed=seed) for seed in range(3))


def tiled(*predicates, queries=20, keys=20, block_size=16, **sizes):
    return tiled_support(*predicates, queries=queries, keys=keys, block_size=block_size, **sizes)


def with_gradients(function, tensors, *arguments, **options):
    read = function(*tensors, *arguments, **options)
    sent = rows(*read.shape, dtype=read.dtype, seed=9).detach()
    return read, *torch.autograd.grad(read, tensors, sent)


def test_worked_example_by_hand():
    query = torch.ones(2, 1, dtype=torch.float64)
    key = torch.tensor([[0.0], [math.log(3)], [0.0], [math.log(2)]], dtype=torch.float64)
    value = torch.tensor([[1.0], [5.0], [7.0], [9.0]], dtype=torch.float64)
    first = tiled(every(2), queries=2, keys=4)  # query 0 sees keys 0 and 2, query 1 keys 1 and 3
    read = masked_block_attention(query, key, value, first, scale=1)
    expected = torch.tensor([[(1 + 7) / 2], [(3 * 5 + 2 * 9) / 5]], dtype=torch.float64)
    torch.testing.assert_close(read, expected, rtol=1e-14, atol=0)
    both = tiled(every(2), causal, queries=2, keys=4)  # intersected: one key each
    assert torch.equal(masked_block_attention(query, key, value, both, scale=1), value[:2])


def test_gradcheck():
    tensors = rows(2, 3, 1), rows(1, 5, 1, seed=1), rows(1, 5, 1, seed=2)
    support = tiled(every_per_head, window(4), queries=3, keys=5, heads=2)
    attention = lambda *t: masked_block_attention(*t, support)  # noqa: E731
    assert torch.autograd.gradcheck(attention, tensors, fast_mode=True)


@pytest.mark.parametrize("tile", [(16, 16), (32, 64), (64, 32)], ids=str)
def test_size_of_the_tile_does_not_change_the_result(monkeypatch, tile):
    tensors = rows(70, 8), rows(80, 8, seed=1), rows(80, 8, seed=2)
    predicates = window(50), every(3)
    support = tiled(*predicates, queries=70, keys=80, block_size=64)
    exact = with_gradients(reference, tensors, {"predicates": predicates})
    monkeypatch.setattr(tile_choice, "INTERPRETED_TILE", (*tile, 4, 1))
    found = with_gradients(masked_block_attention, tensors, support)
    for one, expected in zip(found, exact, strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-12, atol=1e-13)


def test_blocks_as_predicates_give_what_block_sparse_attention_gives():
    tensors = three(48, 8)
    table = torch.tensor([[1, 0, 1], [1, 1, 0], [0, 1, 1]]) > 0
    blocks = lambda b, h, q_idx, kv_idx: table[q_idx // 16, kv_idx // 16]  # noqa: E731
    for predicates, options in [((blocks,), {}), ((blocks, causal), {"is_causal": True})]:
        support = tiled(*predicates, queries=48, keys=48)
        expected = with_gradients(
            block_sparse_attention, tensors, blocks=table, block_size=16, **options
        )
        found = with_gradients(masked_block_attention, tensors, support)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-14)


def test_tiles_that_are_skipped_are_never_read():
    tensors = [tensor.detach() for tensor in three(48, 8)]
    table = torch.tensor([[1, 0, 1], [1, 0, 1], [0, 0, 1]]) > 0
    for tensor in tensors[1:]:
        tensor[16:32] = torch.nan
    tensors = [tensor.requires_grad_() for tensor in tensors]
    blocks = lambda b, h, q_idx, kv_idx: table[q_idx // 16, kv_idx // 16]  # noqa: E731
    support = tiled(blocks, every(2), queries=48, keys=48)
    read, *gradients = with_gradients(masked_block_attention, tensors, support)
    assert all(found.isfinite().all() for found in (read, *gradients))
    assert not gradients[1][16:32].any()


def test_nothing_behind_the_tensors_is_read():
    whole = [tensor.detach().clone() for tensor in three(60, 8)]
    for tensor in whole:
        tensor[21:] = torch.nan
    views = [tensor[:21].requires_grad_() for tensor in whole]
    for predicates in [(), (causal,)]:
        support = tiled(*predicates, queries=21, keys=21)
        for found in with_gradients(masked_block_attention, views, support):
            assert found.isfinite().all()


def test_what_follows_the_last_entry_of_a_list_is_not_read():
    tensors, support = three(48, 8), tiled(causal, window(20), queries=48, keys=48)
    expected = with_gradients(masked_block_attention, tensors, support)
    garbage = tiled(causal, window(20), queries=48, keys=48)
    for lists in (garbage.by_query, garbage.by_key):
        beyond = torch.arange(lists.blocks.shape[-1]) >= lists.counts[..., 1:]
        assert beyond.any()
        lists.blocks[beyond], lists.masks[beyond] = 10**6, -(10**6)
    object.__setattr__(garbage, "made_as", garbage.versions())
    found = with_gradients(masked_block_attention, tensors, garbage)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_hidden_token_changes_no_bit_of_those_that_do_not_see_it():
    tensors = three(60, 8)
    support = tiled(causal, every(2), queries=60, keys=60, block_size=32)
    before = masked_block_attention(*tensors, support)
    changed = [tensor.clone() for tensor in tensors]
    for tensor in changed[1:]:
        tensor.data[40] += 1.0
    differs = (masked_block_attention(changed[0], *changed[1:], support) != before).any(-1)
    assert differs.nonzero().flatten().tolist() == list(range(40, 60, 2))


def test_batch_entries_and_heads_read_their_own_lists_and_masks():
    query, key, value = rows(2, 2, 20, 8), rows(2, 1, 30, 8, seed=1), rows(2, 1, 30, 3, seed=2)
    own = lambda b, h, q_idx, kv_idx: (q_idx + kv_idx + h) % (b + 2) == 0  # noqa: E731
    support = tiled(own, queries=20, keys=30, batch=2, heads=2)
    assert support.lead == (2, 2)
    read = masked_block_attention(query, key, value, support)
    for b in range(2):
        for h in range(2):
            alone = tiled(lambda _, __, i, j, b=b, h=h: own(b, h, i, j), queries=20, keys=30)
            expected = masked_block_attention(query[b, h], key[b, 0], value[b, 0], alone)
            assert torch.equal(read[b, h], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_empty_support_reads_exactly_zero_and_sends_back_zero(dtype):
    tensors = three(20, 8, dtype=dtype)
    support = tiled(lambda b, h, q_idx, kv_idx: (q_idx < 7) & (kv_idx >= 0))
    read, *gradients = with_gradients(masked_block_attention, tensors, support)
    assert read.dtype == dtype
    assert read[:7].all()
    assert not read[7:].any()
    assert not gradients[0][7:].any()
    empty, *zeros = with_gradients(masked_block_attention, tensors, tiled(nothing))
    assert not any(tensor.any() for tensor in (empty, *zeros))


@pytest.mark.parametrize("queries, keys", [(0, 20), (20, 0), (0, 0), (20, 1), (1, 1)])
def test_length_zero_and_one(queries, keys):
    tensors = rows(2, queries, 4), rows(2, keys, 4, seed=1), rows(2, keys, 3, seed=2)
    support = tiled(queries=queries, keys=keys)
    read, *gradients = with_gradients(masked_block_attention, tensors, support)
    expected = tensors[2].expand(2, queries, 3) if keys == 1 else torch.zeros(2, queries, 3)
    torch.testing.assert_close(read, expected.to(read.dtype), rtol=1e-15, atol=0)
    assert [g.shape for g in gradients] == [t.shape for t in tensors]
    assert not gradients[0].abs().gt(1e-14).any()  # one key: nothing to choose


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_up_to_1e4_stay_finite_and_weights_sum_to_one(dtype):
    query = torch.linspace(-100, 100, 20, dtype=dtype)[:, None].requires_grad_()
    key = torch.linspace(-100, 100, 40, dtype=dtype)[:, None].requires_grad_()
    value = torch.ones(40, 1, dtype=dtype, requires_grad=True)
    support = tiled(every(3), keys=40)
    read, *gradients = with_gradients(masked_block_attention, (query, key, value), support)
    torch.testing.assert_close(read.float(), torch.ones(20, 1))
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("memory", [101_376, 166_912, 232_448])
def test_every_width_has_a_tile_on_every_chip(memory):
    for width in (1, 64, 65, 128, 256):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            assert tile_choice.fits(TILES, width, width, dtype, memory)


@pytest.mark.parametrize("part", ["masks", "by_key"])
def test_support_that_was_written_to_is_refused(part):
    support = tiled(causal)
    read = masked_block_attention(*three(20, 4), support)
    tensor = support.masks if part == "masks" else support.by_key.blocks
    tensor[0] = 1
    with pytest.raises(ValueError, match="support was written to after its lists were checked"):
        masked_block_attention(*three(20, 4), support)
    with pytest.raises(ValueError, match="support was written to after its lists were checked"):
        read.sum().backward()


def test_support_made_in_inference_mode_can_be_used():
    with torch.inference_mode():
        support = tiled(causal)
        assert masked_block_attention(*three(20, 4), support).shape == (20, 4)


def test_second_derivative_is_refused():
    tensors = three(20, 4)
    read = masked_block_attention(*tensors, tiled(causal))
    (gradient,) = torch.autograd.grad(read.square().sum(), tensors[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


GOOD = torch.zeros(2, 20, 8)
WRONG_INPUTS = {
    "query must be a torch tensor, got list": (([[0.0]], GOOD, GOOD, tiled(causal)), {}),
    "key must have the dtype of query": ((GOOD, GOOD.half(), GOOD, tiled(causal)), {}),
    "support must be a TiledSupport.*got function": ((GOOD, GOOD, GOOD, causal), {}),
    "support must be of the 20 queries and 20 keys, got one of 20 and 21": (
        (GOOD, GOOD, GOOD, tiled(causal, keys=21)),
        {},
    ),
    "support must be of 1 batch entries and 2 heads, or of one for all, got 1 and 3": (
        (GOOD, GOOD, GOOD, tiled(every_per_head, heads=3)),
        {},
    ),
    "support must be of 1 batch entries and 2 heads.*got 2 and 1": (
        (GOOD, GOOD, GOOD, tiled(lambda b, h, i, j: (i + j + b) > 3, batch=2)),
        {},
    ),
    "all arguments must be on one device": (
        (*(t.to("meta") for t in (GOOD, GOOD, GOOD)), tiled(causal)),
        {},
    ),
    "scale must be a positive finite number, got 0": (
        (GOOD, GOOD, GOOD, tiled(causal)),
        {"scale": 0},
    ),
}


@pytest.mark.parametrize("message", WRONG_INPUTS)
def test_wrong_input_is_named_before_any_launch(message):
    arguments, options = WRONG_INPUTS[message]
    with pytest.raises((TypeError, ValueError), match=message):
        masked_block_attention(*arguments, **options)


def test_operations_are_counted_over_the_pairs_that_are_seen():
    query = torch.empty(3, 40, 8)
    options = {"predicates": (causal, documents(30, 10)), "block_size": 16}
    pairs = 30 * 31 // 2 + 10 * 11 // 2
    assert operations(query, query, query, options)["forward"] == 2 * 3 * pairs * 16
    masks = 4 * 16 * int(tiled(*options["predicates"], queries=40, keys=40).partial.sum())
    plain = 4 * (4 * 3 * 40 * 8 + 3 * 40)
    assert bytes_moved(query, query, query, options)["forward"] == plain + masks


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_peers_give_the_numbers_of_the_reference(monkeypatch):
    uncompiled = lambda *problem: {"FlexAttention": flex_read(flex_attention, *problem)}  # noqa: E731
    monkeypatch.setattr(proof, "flex_peer", uncompiled)
    tensors = [t.detach() for t in three(1, 2, 128, 8, dtype=torch.float32)]
    case = Case("128 keys", (*tensors, {"predicates": (causal, every(3)), "block_size": 64}))
    exact = reference(*case.arguments)
    named = PROOF.peers(case)
    for name in ("SDPA, math", "FlexAttention"):
        torch.testing.assert_close(named[name](*case.arguments), exact, rtol=1e-5, atol=1e-5)
