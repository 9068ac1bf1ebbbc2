"""MoBA: each query its own block and the best past ones, and the fast form equals the dense one."""

import pytest
import torch

from attnlib.attend import attend
from attnlib.counting import largest_tensor
from attnlib.read.mixture_of_blocks import (
    chosen_blocks,
    dense_moba_attention,
    gate_scores,
    mean_keys,
    moba_attention,
)


def draw(queries, keys, lead=(2, 2), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(*lead, length, width, generator=generator, dtype=torch.double).requires_grad_()
        for length, width in ((queries, 6), (keys, 6), (keys, 5))
    ]


def assert_same_read_and_gradients(got, wanted, inputs):
    assert torch.allclose(got, wanted, rtol=0, atol=1e-12)
    probe = torch.linspace(-1, 1, wanted.numel(), dtype=wanted.dtype).view_as(wanted)
    slopes = [torch.autograd.grad((read * probe).sum(), inputs) for read in (got, wanted)]
    for ours, theirs in zip(*slopes, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", [1, 15, 63, 100, 257])
@pytest.mark.parametrize(
    "options",
    [{}, {"query_offset": 5, "scale": 0.3}, {"is_causal": False}],
    ids=["causal", "offset", "all blocks"],
)
def test_the_read_by_blocks_gives_the_read_and_gradients_of_attend(length, options):
    inputs = draw(length, length + 2)
    options = {"block_size": 8, "top_k": min(3, -(-(length + 2) // 8)), **options}
    got = moba_attention(*inputs, **options)
    assert_same_read_and_gradients(got, dense_moba_attention(*inputs, **options), inputs)


def chosen_by_hand(query, key, block_size, top_k):
    """The rule in loops: own block, then the past blocks in order of q . mean(k)."""
    table = []
    for i in range(len(query)):
        own = i // block_size
        means = [key[b * block_size : (b + 1) * block_size].mean(0) for b in range(own)]
        best = sorted(range(own), key=lambda b: -float(query[i] @ means[b]))[: top_k - 1]
        table.append([b == own or b in best for b in range(-(-len(key) // block_size))])
    return torch.tensor(table)


@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
def test_a_query_reads_its_own_block_and_the_best_past_ones(top_k):
    query, key, _ = (x[0, 0].detach() for x in draw(14, 14))
    table = chosen_blocks(query, key, block_size=4, top_k=top_k)
    assert torch.equal(table, chosen_by_hand(query, key, 4, top_k))
    begun = torch.arange(14) // 4 + 1
    assert torch.equal(table.sum(-1), begun.clamp(max=top_k))


def test_a_gate_score_is_the_mean_score_of_the_blocks_keys():
    query, key, _ = draw(5, 11)
    scores = query @ key.mT
    wanted = torch.stack([scores[..., s : s + 4].mean(-1) for s in (0, 4, 8)], -1)
    assert torch.allclose(gate_scores(query, key, block_size=4), wanted)
    assert mean_keys(key, 4).shape[-2] == 3


def test_with_all_blocks_it_is_full_attention_and_with_one_the_own_block():
    inputs = draw(21, 21)
    full = moba_attention(*inputs, block_size=4, top_k=6)
    assert_same_read_and_gradients(full, attend(*inputs, is_causal=True), inputs)

    def own(b, h, q_idx, kv_idx):
        return q_idx // 4 == kv_idx // 4

    alone = moba_attention(*inputs, block_size=4, top_k=1)
    assert_same_read_and_gradients(alone, attend(*inputs, support=own, is_causal=True), inputs)


def test_a_loud_key_is_found_far_away_and_diluted_by_its_block():
    query, key = torch.zeros(2, 1, 1, 64, 4).unbind(0)
    query[..., 63, 0] = 1.0
    key[..., 5, 0] = 8.0
    near = chosen_blocks(query, key, block_size=8, top_k=2)[0, 0, 63]
    assert near.nonzero().flatten().tolist() == [0, 7]
    assert gate_scores(query, key, block_size=8)[0, 0, 63, 0] == 1.0
    assert gate_scores(query, key, block_size=16)[0, 0, 63, 0] == 0.5


def test_no_matrix_of_all_pairs_is_made():
    query, key, value = (torch.randn(1, 512, 8) for _ in range(3))
    options = {"block_size": 32, "top_k": 3}
    made = largest_tensor(lambda: moba_attention(query, key, value, **options))
    assert made <= 512 * 32 < 512 * 512


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"block_size": 4, "top_k": 4}, ValueError, "top_k must be at most the number of blocks"),
        ({"block_size": 4, "top_k": 0}, ValueError, "top_k must be at least 1, got 0"),
        ({"block_size": 0, "top_k": 1}, ValueError, "block_size must be at least 1, got 0"),
        ({"block_size": 2.0, "top_k": 1}, TypeError, "block_size must be an int, got float"),
        ({"block_size": 4, "top_k": 2, "query_offset": -1}, ValueError, "query_offset"),
    ],
)
def test_wrong_options_are_named(options, kind, message):
    with pytest.raises(kind, match=message):
        moba_attention(*draw(12, 12), **options)
