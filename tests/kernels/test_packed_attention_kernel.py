"""What packed_attention promises beyond closeness: sequences apart, its lists, clear errors."""

import importlib
import math

import pytest
import torch
from attnlib.kernels import flash_attention, packed_attention, tile_choice
from attnlib.kernels.packed_attention_blocks import blocks_of, packing_of
from attnlib.kernels.packed_attention_proof import (
    PROOF,
    operations,
    reference,
    starts_of,
)
from attnlib.kernels.peers import flex_read
from attnlib.kernels.proof import Case
from torch.nn.attention.flex_attention import flex_attention

proof = importlib.import_module("attnlib.kernels.packed_attention_proof")


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
    query = torch.ones(5, 1, dtype=torch.float64)
    key = torch.tensor([[0.0], [math.log(3)], [0.0], [0.0], [math.log(2)]], dtype=torch.float64)
    value = torch.tensor([[1.0], [5.0], [7.0], [3.0], [9.0]], dtype=torch.float64)
    starts = torch.tensor([0, 2, 5])
    read = packed_attention(query, key, value, query_starts=starts, scale=1)
    # Weights 1 : 3 in the first sequence, 1 : 1 : 2 in the second.
    expected = [(1 + 15) / 4] * 2 + [(7 + 3 + 18) / 4] * 3
    torch.testing.assert_close(read[:, 0].tolist(), expected, rtol=1e-14, atol=0)
    causal = packed_attention(query, key, value, query_starts=starts, scale=1, is_causal=True)
    torch.testing.assert_close(causal[:, 0].tolist(), [1.0, 4.0, 7.0, 5.0, 7.0], rtol=1e-14, atol=0)
    last = packed_attention(query, key, value, query_starts=starts, scale=1, window=1)
    assert torch.equal(last, value)


def test_first_query_stands_beside_the_first_key_where_there_are_more_keys():
    query, key = torch.zeros(2, 1), torch.zeros(5, 1)
    value = torch.tensor([[1.0], [2.0], [3.0], [10.0], [20.0]])
    starts = {"query_starts": torch.tensor([0, 1, 2]), "key_starts": torch.tensor([0, 3, 5])}
    read = packed_attention(query, key, value, **starts, is_causal=True)
    assert read[:, 0].tolist() == [1.0, 10.0]  # aligned at the last key it would be 2 and 15


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"window": 9}], ids=str)
def test_each_sequence_reads_what_it_reads_alone(options):
    lengths = (17, 1, 40)
    tensors = three(2, sum(lengths), 8)
    starts = starts_of(*lengths)
    found = with_gradients(packed_attention, tensors, query_starts=starts, **options)
    sent = rows(*found[0].shape, seed=9).detach()
    for first, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        own = [t[:, first:stop].detach().requires_grad_() for t in tensors]
        read = flash_attention(*own, **options)
        alone = read, *torch.autograd.grad(read, own, sent[:, first:stop])
        for packed, expected in zip(found, alone, strict=True):
            torch.testing.assert_close(packed[:, first:stop], expected, rtol=1e-12, atol=1e-14)


def test_a_sequence_never_reads_its_neighbors():
    tensors = [tensor.detach() for tensor in three(90, 8)]
    starts = starts_of(20, 63, 7)  # one key less than a tile has
    for tensor in tensors[1:]:
        tensor[:20] = torch.nan
        tensor[83:] = torch.nan
    tensors = [tensor.requires_grad_() for tensor in tensors]
    sent = torch.zeros(90, 8, dtype=torch.float64)
    sent[20:83] = 1.0
    read = packed_attention(*tensors, query_starts=starts)
    gradients = torch.autograd.grad(read, tensors, sent)
    assert read[20:83].isfinite().all()
    assert read[:20].isnan().all()
    assert all(gradient[20:83].isfinite().all() for gradient in gradients)


def test_future_token_changes_no_bit_of_the_past():
    tensors = three(60, 8)
    options = {"query_starts": starts_of(10, 50), "is_causal": True}
    before = packed_attention(*tensors, **options)
    changed = [torch.cat([t[:45], t[45:] + 1.0]) for t in tensors]
    after = packed_attention(*changed, **options)
    assert torch.equal(before[:45], after[:45])
    assert not torch.equal(before[45:], after[45:])


def test_gradcheck():
    tensors = rows(2, 5, 1), rows(1, 6, 1, seed=1), rows(1, 6, 1, seed=2)
    starts = {"query_starts": starts_of(2, 3), "key_starts": starts_of(4, 2)}
    attention = lambda *t: packed_attention(*t, **starts, is_causal=True)  # noqa: E731
    assert torch.autograd.gradcheck(attention, tensors, fast_mode=True)


@pytest.mark.parametrize("tile", [(16, 32), (32, 16)], ids=str)
def test_size_of_the_tile_does_not_change_the_result(monkeypatch, tile):
    tensors = three(53, 8)
    options = {"query_starts": starts_of(33, 20), "window": 18}
    exact = with_gradients(lambda *t, **o: reference(*t, o), tensors, **options)
    monkeypatch.setattr(tile_choice, "INTERPRETED_TILE", (*tile, 4, 1))
    found = with_gradients(packed_attention, tensors, **options)
    for one, expected in zip(found, exact, strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-12, atol=1e-14)


def test_list_of_blocks_by_hand():
    starts = starts_of(5, 2, 4)
    full = blocks_of(starts, starts, (-5, 5), 3)
    assert full.tolist() == [[0, 0], [0, 3], [2, 0], [2, 3], [1, 0]]  # by the keys that are seen
    causal = blocks_of(starts, starts, (-5, 0), 3)
    assert causal.tolist() == [[0, 3], [2, 3], [0, 0], [2, 0], [1, 0]]  # 5, 4, 3, 3, 2 of them
    assert blocks_of(starts_of(0, 0), starts_of(5, 5), (-5, 0), 3).shape == (0, 2)


def test_work_is_listed_for_rows_that_exist_and_for_no_padding():
    lengths = (1000, 1, 0, 130, 128)
    starts = starts_of(*lengths)
    rows_of_all = torch.empty(sum(lengths), 4)
    packing = packing_of(rows_of_all, rows_of_all, starts, None, True, None)
    blocks = packing.query_blocks(128)
    assert len(blocks) == 8 + 1 + 0 + 2 + 1  # padded to the longest it would be 5 x 8
    assert len(set(map(tuple, blocks.tolist()))) == len(blocks)
    first_key_blocks = {(s, b) for s, b in packing.key_blocks(128).tolist() if b == 0}
    assert first_key_blocks == {(0, 0), (1, 0), (3, 0), (4, 0)}
    assert packing.key_blocks(512).tolist()[:2] == [[0, 0], [0, 512]]  # 1000 see the first, 488
    assert packing.query_blocks(512).tolist()[:2] == [[0, 512], [0, 0]]  # the last sees 1000


def test_empty_sequences_and_no_sequence_at_all():
    tensors = three(2, 12, 4)
    with_empty = torch.tensor([0, 0, 7, 7, 12, 12])
    read = with_gradients(packed_attention, tensors, query_starts=with_empty)
    expected = with_gradients(packed_attention, tensors, query_starts=starts_of(7, 5))
    assert all(torch.equal(a, b) for a, b in zip(read, expected, strict=True))
    none = three(2, 0, 4)
    for starts in (torch.tensor([0]), torch.tensor([0, 0, 0])):
        read, *gradients = with_gradients(packed_attention, none, query_starts=starts)
        assert read.shape == (2, 0, 4)
        assert all(gradient.shape == (2, 0, 4) for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_queries_without_keys_read_exactly_zero_and_send_back_zero(dtype):
    tensors = rows(9, 4, dtype=dtype), rows(5, 4, dtype=dtype, seed=1), rows(5, 3, dtype=dtype)
    starts = {"query_starts": starts_of(4, 5), "key_starts": starts_of(0, 5)}
    read, *gradients = with_gradients(packed_attention, tensors, **starts)
    assert read.dtype == dtype
    assert not read[:4].any()
    assert read[4:].any()
    assert not gradients[0][:4].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_up_to_1e4_stay_finite_and_weights_sum_to_one(dtype):
    query = torch.linspace(-100, 100, 40, dtype=dtype)[:, None].requires_grad_()
    value = torch.ones(40, 1, dtype=dtype, requires_grad=True)
    tensors = query, query.detach().clone().requires_grad_(), value
    read, *gradients = with_gradients(
        packed_attention, tensors, query_starts=starts_of(25, 15), is_causal=True
    )
    torch.testing.assert_close(read.float(), torch.ones(40, 1))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_nothing_behind_the_tensors_is_read():
    whole = [tensor.detach().clone() for tensor in three(60, 8)]
    for tensor in whole:
        tensor[21:] = torch.nan
    views = [tensor[:21].requires_grad_() for tensor in whole]
    for found in with_gradients(packed_attention, views, query_starts=starts_of(8, 13)):
        assert found.isfinite().all()


def test_starts_may_change_after_the_call():
    tensors, starts = three(12, 4), starts_of(7, 5)
    sent = torch.ones(12, 4, dtype=torch.float64)
    expected = torch.autograd.grad(packed_attention(*tensors, query_starts=starts), tensors, sent)
    read = packed_attention(*tensors, query_starts=starts)
    starts += 100
    found = torch.autograd.grad(read, tensors, sent)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_second_derivative_is_refused():
    tensors = three(5, 4)
    read = packed_attention(*tensors, query_starts=starts_of(5))
    (gradient,) = torch.autograd.grad(read.square().sum(), tensors[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


GOOD = torch.zeros(2, 20, 8)
STARTS = torch.tensor([0, 8, 20])
WRONG_INPUTS = {
    "query must be a torch tensor, got list": (([[0.0]], GOOD, GOOD), {}),
    "key must have the dtype of query, float32, got float16": ((GOOD, GOOD.half(), GOOD), {}),
    r"query must have shape \(heads, rows of all sequences, width\).*got \(1, 2, 20, 8\)": (
        (GOOD[None],) * 3,
        {},
    ),
    "query_starts must be an int32 or int64 tensor, got list": (
        (GOOD,) * 3,
        {"query_starts": [0, 20]},
    ),
    "query_starts must be an int32 or int64 tensor, got float32": (
        (GOOD,) * 3,
        {"query_starts": STARTS.float()},
    ),
    r"query_starts must have shape \(sequences \+ 1,\), got \(1, 3\)": (
        (GOOD,) * 3,
        {"query_starts": STARTS[None]},
    ),
    r"query_starts must have shape \(sequences \+ 1,\), got \(0,\)": (
        (GOOD,) * 3,
        {"query_starts": STARTS[:0]},
    ),
    "query_starts must begin with 0, got 8": ((GOOD,) * 3, {"query_starts": STARTS[1:]}),
    "query_starts must end with the 20 queries, got 8": (
        (GOOD,) * 3,
        {"query_starts": STARTS[:2]},
    ),
    r"query_starts must not descend, got 9 before 8 \(entries 1 and 2\)": (
        (GOOD,) * 3,
        {"query_starts": torch.tensor([0, 9, 8, 20])},
    ),
    r"query_starts must not descend, got 9223372036854775807 before -2 \(entries": (
        (GOOD,) * 3,
        {"query_starts": torch.tensor([0, 2**63 - 1, -2, 20])},
    ),
    "query_starts must be on a CUDA device or the CPU, got meta": (
        (GOOD,) * 3,
        {"query_starts": STARTS.to("meta")},
    ),
    "key_starts must end with the 20 keys, got 19": (
        (GOOD,) * 3,
        {"key_starts": torch.tensor([0, 8, 19])},
    ),
    "key_starts must start as many sequences as query_starts, 2, got 1": (
        (GOOD,) * 3,
        {"key_starts": torch.tensor([0, 20])},
    ),
    "key_starts must be given.*got 10 keys and 20 queries": (
        (GOOD, GOOD[:, :10], GOOD[:, :10]),
        {},
    ),
    "query must be on a CUDA device or the CPU, got meta": ((GOOD.to("meta"),) * 3, {}),
    "scale must be a positive finite number, got 0": ((GOOD,) * 3, {"scale": 0}),
    "is_causal must be True or False, got 1": ((GOOD,) * 3, {"is_causal": 1}),
    "window must be at least 1, got 0": ((GOOD,) * 3, {"window": 0}),
    "window must be an int, got float": ((GOOD,) * 3, {"window": 4.0}),
}


@pytest.mark.parametrize("message", WRONG_INPUTS)
def test_wrong_input_is_named_before_any_launch(message):
    arguments, options = WRONG_INPUTS[message]
    with pytest.raises((TypeError, ValueError), match=message):
        packed_attention(*arguments, **{"query_starts": STARTS} | options)


def test_operations_are_counted_over_the_pairs_within_sequences():
    query = torch.empty(3, 12, 8)
    options = {"query_starts": starts_of(7, 5), "is_causal": True}
    assert operations(query, query, query, options)["forward"] == 2 * 3 * (28 + 15) * 16
    options = {"query_starts": starts_of(7, 5), "key_starts": starts_of(2, 9)}
    key = torch.empty(3, 11, 8)
    assert operations(query, key, key, options)["backward"] == 2 * 3 * (14 + 45) * 40


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("is_causal", [False, True])
def test_flex_attention_as_a_peer_gives_the_numbers_of_the_reference(monkeypatch, is_causal):
    uncompiled = lambda *problem: {  # noqa: E731
        "FlexAttention": flex_read(flex_attention, *problem)
    }
    monkeypatch.setattr(proof, "flex_peer", uncompiled)
    tensors = [t.detach() for t in three(2, 256, 8, dtype=torch.float32)]
    options = {"query_starts": starts_of(100, 0, 156), "is_causal": is_causal}
    case = Case("256 tokens", (*tensors, options))
    named = PROOF.peers(case)
    assert set(named) == {"torch varlen_attn", "FlexAttention"}
    read = named["FlexAttention"](*case.arguments)
    torch.testing.assert_close(read, reference(*case.arguments), rtol=1e-5, atol=1e-5)
