"""A head that reads for its own queries alone gives what the dense weighted sum gives."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from attnlib import gated_heads_attention, skipped_heads_attention
from attnlib.read.head_routing import relu_gates, renormalized_gates
from attnlib.read.skipped_heads import skipped_operations


def inputs(length, *, keys=None, heads=4, batch=2, width=8, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    keys = length if keys is None else keys

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    tensors = [normal(batch, heads, n, width) for n in (length, keys, keys)]
    return tensors, normal(batch, length, heads)


GATES = {
    "two of four": lambda scores: renormalized_gates(scores, 2),
    "one of four": lambda scores: renormalized_gates(scores, 1),
    "all": lambda scores: renormalized_gates(scores, 4),
    "relu, some tokens without a head": lambda scores: relu_gates(scores - 0.8),
    "a head that nobody chose": lambda scores: scores.exp() * torch.tensor([1.0, 0, 1, 1]).double(),
    "nobody chose any": torch.zeros_like,
}


@pytest.mark.parametrize("length", [1, 15, 63, 100, 257])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("kind", GATES)
def test_reads_and_gradients_equal_those_of_the_dense_weighted_sum(kind, is_causal, length):
    tensors, scores = inputs(length)
    gates = GATES[kind](scores).detach()
    upstream = torch.randn_like(tensors[2])
    results = []
    for attention in (gated_heads_attention, skipped_heads_attention):
        leaves = [x.clone().requires_grad_() for x in (*tensors, gates)]
        read = attention(*leaves, is_causal=is_causal)
        slopes = torch.autograd.grad((read * upstream).sum(), leaves)
        slopes[3].masked_fill_(gates == 0, 0)  # the dense form has a slope for closed gates too
        results.append((read, *slopes))
    for dense, skipped in zip(*results, strict=True):
        torch.testing.assert_close(skipped, dense, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("is_causal", [False, True])
def test_the_reads_are_zero_exactly_where_nobody_chose_the_head(is_causal):
    tensors, scores = inputs(40)
    gates = renormalized_gates(scores, 2)
    read = skipped_heads_attention(*tensors, gates, is_causal=is_causal)
    assert ((read != 0).any(-1) == (gates.mT != 0)).all()


def test_a_closed_gate_has_no_gradient():
    tensors, scores = inputs(20)
    gates = renormalized_gates(scores, 2).detach().requires_grad_()
    skipped_heads_attention(*tensors, gates, is_causal=True).square().sum().backward()
    assert ((gates.grad != 0) == (gates != 0)).all()


@pytest.mark.parametrize(("length", "keys", "offset"), [(30, 50, 20), (50, 30, 0), (7, 90, 3)])
def test_masks_offsets_and_other_numbers_of_keys_agree_too(length, keys, offset):
    tensors, scores = inputs(length, keys=keys)
    gates = renormalized_gates(scores, 2)
    mask = torch.rand(2, 1, length, keys, generator=torch.Generator().manual_seed(1)) < 0.7
    mask[:, :, 3] = False
    for chunk in (1, 5, 64):
        options = {"attn_mask": mask, "is_causal": True, "query_offset": offset}
        dense = gated_heads_attention(*tensors, gates, **options)
        skipped = skipped_heads_attention(*tensors, gates, chunk=chunk, **options)
        torch.testing.assert_close(skipped, dense, rtol=1e-12, atol=1e-12)
    padding = mask[:, :, :1]
    dense = gated_heads_attention(*tensors, gates, attn_mask=padding)
    skipped = skipped_heads_attention(*tensors, gates, attn_mask=padding)
    torch.testing.assert_close(skipped, dense, rtol=1e-12, atol=1e-12)


def test_a_query_keeps_its_own_place_under_the_causal_mask():
    # Only the last query is chosen: after gathering it is the first, but it sees all keys.
    (query, key, value), _ = inputs(6, heads=1, batch=1)
    gates = torch.zeros(1, 6, 1).double()
    gates[0, 5] = 1
    read = skipped_heads_attention(query, key, value, gates, is_causal=True)
    whole = skipped_heads_attention(query, key, value, gates)
    torch.testing.assert_close(read[0, 0, 5], whole[0, 0, 5])
    assert not torch.allclose(read[0, 0, 5], value[0, 0, 0])


@pytest.mark.parametrize("is_causal", [False, True])
def test_a_skipped_head_costs_no_product(is_causal):
    tensors, _ = inputs(256, heads=8, batch=1, width=16, dtype=torch.float32)
    half = torch.zeros(1, 256, 8)
    half[:, :, ::2] = 1

    def counted(gates):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            skipped_heads_attention(*tensors, gates, is_causal=is_causal)
        return counter.get_total_flops()

    assert counted(half) == counted(torch.ones(1, 256, 8)) / 2
    assert counted(torch.zeros(1, 256, 8)) == 0


def test_operations_are_counted_for_each_chosen_query_and_each_key_it_sees():
    gates = torch.tensor([[[1.0, 0], [1, 1], [0, 0.5]]])  # two heads, three queries
    assert skipped_operations(gates, 3, 5, 7) == 4 * 3 * 2 * (5 + 7)
    assert skipped_operations(gates, 3, 5, 7, is_causal=True) == (1 + 2 * 2 + 3) * 2 * (5 + 7)
    assert skipped_operations(gates[0], 3, 5, 7) == 4 * 3 * 2 * (5 + 7)


def test_gates_that_do_not_fit_are_named():
    tensors, scores = inputs(5)
    for attention in (gated_heads_attention, skipped_heads_attention):
        with pytest.raises(ValueError, match=r"gates must have shape .* \(2, 5, 4\)"):
            attention(*tensors, scores.mT)
        with pytest.raises(TypeError, match="gates must have the dtype of query"):
            attention(*tensors, scores.float())
        with pytest.raises(TypeError, match="gates must be a torch"):
            attention(*tensors, [1.0])
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        skipped_heads_attention(*tensors, scores, chunk=0)
