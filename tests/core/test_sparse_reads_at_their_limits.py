"""Sparse reads with bad input, in half precision, and with sizes beyond their sequence."""

import pytest
import torch

from attnlib.models import AllOrHere, LandmarkLM
from attnlib.models.all_or_here import decisions
from attnlib.read.block_sparse import block_sparse_attention, listed_pairs
from attnlib.read.halo_attention import halo_attention
from attnlib.read.hashed_attention import hashed_attention, random_rotations
from attnlib.read.head_spans import head_spans_attention
from attnlib.read.landmark_attention import landmark_attention
from attnlib.read.native_sparse_attention import NativeSparseAttention
from attnlib.read.packed_softmax import packed_softmax_attention
from attnlib.read.routing_attention import RoutingAttention
from attnlib.support import dense


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_a_token_that_is_not_finite_leaves_its_centroids_where_they_are():
    layer = RoutingAttention(4, heads=3, groups=2, top_k=4, decay=0.5)
    before = layer.centroids.clone()
    x = drawn(2, 3, 12, 4, dtype=torch.float32)
    x[0, 0, 0, 0] = torch.nan
    layer(x, x, x)
    assert layer.centroids.isfinite().all()
    assert not torch.equal(layer.centroids[1:], before[1:])


@pytest.mark.parametrize(
    "query", [drawn(2, 2, 12, 4), drawn(2, 3, 12, 5), drawn(3, 12, 4), drawn(2, 3, 12, 4)]
)
def test_centroids_start_at_queries_that_fit_or_not_at_all(query):
    layer = RoutingAttention(4, heads=3, groups=2, top_k=4)
    before = layer.centroids.clone()
    with pytest.raises(ValueError, match=r"query must have shape \(batch, 3, N, 4\)"):
        layer.start_at(query)
    assert torch.equal(layer.centroids, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_hashes_and_clusters_are_chosen_in_single_precision(dtype):
    x = drawn(1, 24, 4).to(dtype)
    x[0, 2] = 0
    rotations = random_rotations(4, 4).to(dtype)
    half, single = (
        hashed_attention(one, one, one, rotations=turned, chunk_size=6)
        for one, turned in ((x, rotations), (x.float(), rotations.float()))
    )
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), single, atol=2e-2, rtol=2e-2)

    layer = RoutingAttention(4, heads=1, groups=2, top_k=12).to(dtype).eval()
    half = layer(x[None], x[None], x[None])
    single = layer.float()(*[x[None].float()] * 3)
    torch.testing.assert_close(half.float(), single, atol=2e-2, rtol=2e-2)


def test_sizes_beyond_the_sequence_change_nothing_and_cost_nothing():
    x = drawn(1, 5, 4)
    rotations = random_rotations(4, 4).double()
    reads = [hashed_attention(x, x, x, rotations=rotations, chunk_size=size) for size in (5, 10**9)]
    assert torch.equal(*reads)
    table = torch.ones(1, 1, dtype=torch.bool)
    reads = [block_sparse_attention(x, x, x, table, block_size=size) for size in (5, 10**9)]
    assert torch.equal(*reads)
    grid = drawn(1, 24, 4)
    reads = [
        halo_attention(grid, grid, grid, grid=(4, 6), block=2, halo=halo) for halo in (6, 10**9)
    ]
    torch.testing.assert_close(*reads)


def test_no_heads_read_nothing():
    nobody = drawn(2, 0, 5, 4)
    assert head_spans_attention(nobody, nobody, nobody).shape == (2, 0, 5, 4)


@pytest.mark.parametrize(
    ("positions", "says"),
    [(torch.tensor([-1]), "not be negative"), (torch.tensor([True]), "1 whole numbers")],
)
def test_a_query_stands_at_a_place(positions, says):
    keys = drawn(1, 12, 4)
    with pytest.raises(ValueError, match=says):
        landmark_attention(
            drawn(1, 1, 4), keys, keys, landmark=drawn(1, 4, 4), block_size=3,
            query_positions=positions,
        )  # fmt: skip


def test_a_table_of_blocks_serves_its_own_sequences():
    tables = torch.stack((torch.eye(2), torch.ones(2, 2))).bool()
    assert dense(listed_pairs(tables[:1, None], 2), 4, 4, batch=3).sum() == 3 * 8
    with pytest.raises((ValueError, IndexError)):
        dense(listed_pairs(tables[:, None], 2), 4, 4, batch=3)
    with pytest.raises(TypeError, match="blocks must be a bool tensor"):
        listed_pairs(tables.float(), 2)


def test_a_refused_call_leaves_the_gates_of_the_last_one():
    layer = AllOrHere(8, 2, window=2)
    layer(drawn(1, 5, 8, dtype=torch.float32))
    gates = decisions(layer).clone()
    with pytest.raises(ValueError):
        layer(drawn(1, 6, 8, dtype=torch.float32), attn_mask=torch.ones(7, 7, dtype=torch.bool))
    assert torch.equal(decisions(layer), gates)


@pytest.mark.parametrize("count", [-1, True, 1.5])
def test_so_many_blocks_cannot_be_retrieved(count):
    model = LandmarkLM(9, block_size=4, width=16, heads=2, layers=1)
    with pytest.raises((TypeError, ValueError), match="top_k"):
        model.retrieve(count)
    model(torch.zeros(1, 8, dtype=torch.long))


@pytest.mark.parametrize(
    "sizes", [{"stride": 3}, {"stride": 0}, {"top_k": 0}, {"window": 0}, {"block_size": 0}]
)
def test_native_sizes_are_checked_when_the_layer_is_made(sizes):
    with pytest.raises(ValueError):
        NativeSparseAttention(8, **sizes)


def test_packed_sequences_have_no_heads():
    x = drawn(4, 4, 2)
    with pytest.raises(ValueError, match="query must have shape"):
        packed_softmax_attention(x, x, x, starts=torch.tensor([0, 3, 4]))
