"""Native sparse attention: summaries choose blocks, and three reads are added under gates."""

import pytest
import torch

from attnlib.attend import attend
from attnlib.models.language import DecoderLM
from attnlib.read.native_sparse_attention import (
    BlockSummary,
    NativeSparseAttention,
    dense_native_sparse_attention,
    mean_rows,
    native_sparse_attention,
    pieces,
    selected_blocks,
    shared_rows,
)
from attnlib.support import window

SIZES = {"summary_size": 8, "stride": 4, "block_size": 8}


def draw(length, keys, heads=2, key_heads=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (heads, length, 6), (key_heads, keys, 6), (key_heads, keys, 5), (heads, length, 3)
    return [
        torch.randn(2, *shape, generator=generator, dtype=torch.double).requires_grad_()
        for shape in shapes
    ]


def means(**options):
    return {"compress_key": mean_rows, "compress_value": mean_rows, **SIZES, **options}


def assert_same_read_and_gradients(got, wanted, inputs):
    assert torch.allclose(got, wanted, rtol=0, atol=1e-12)
    probe = torch.linspace(-1, 1, wanted.numel(), dtype=wanted.dtype).view_as(wanted)
    slopes = [torch.autograd.grad((read * probe).sum(), inputs) for read in (got, wanted)]
    for ours, theirs in zip(*slopes, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", [1, 15, 63, 100, 257])
@pytest.mark.parametrize("heads", [2, 4])
def test_the_fast_form_gives_the_read_and_gradients_of_three_dense_reads(length, heads):
    *inputs, gates = draw(length, length + 2, heads=heads)
    summaries = {
        "compress_key": BlockSummary(6, 8).double(),
        "compress_value": BlockSummary(5, 8).double(),
    }
    top_k = min(4, -(-(length + 2) // 8))
    options = {
        **summaries,
        **SIZES,
        "top_k": top_k,
        "window": 5,
        "enable_gqa": True,
        "gates": gates,
    }
    for place in ({"query_offset": 2}, {"is_causal": False}):
        got = native_sparse_attention(*inputs, **options, **place)
        wanted = dense_native_sparse_attention(*inputs, **options, **place)
        assert_same_read_and_gradients(got, wanted, [*inputs, gates])


def test_a_gate_alone_shows_its_branch():
    query, key, value, gates = (x.detach() for x in draw(40, 40))
    options = means(top_k=5, window=7)

    def only(branch):
        one = torch.zeros_like(gates)
        one[..., branch] = 1.0
        return native_sparse_attention(query, key, value, gates=one, **options)

    assert torch.allclose(only(2), attend(query, key, value, support=window(7)), atol=1e-12)
    assert torch.allclose(only(1), attend(query, key, value, is_causal=True), atol=1e-12)
    summaries = torch.stack([key[..., s : s + 8, :].mean(-2) for s in range(0, 33, 4)], -2)
    of_values = torch.stack([value[..., s : s + 8, :].mean(-2) for s in range(0, 33, 4)], -2)
    last = attend(query[..., 39:, :], summaries, of_values)
    assert torch.allclose(only(0)[..., 39:, :], last, atol=1e-12)
    assert not only(0)[..., :7, :].any()  # no summary is complete before eight keys


def test_pieces_overlap_and_are_complete():
    rows = torch.arange(11.0)[:, None]
    assert pieces(rows, 4, 2)[..., 0].tolist() == [
        [0, 1, 2, 3],
        [2, 3, 4, 5],
        [4, 5, 6, 7],
        [6, 7, 8, 9],
    ]
    assert pieces(rows[:3], 4, 2).shape == (0, 4, 1)


def test_a_summary_shares_its_weight_by_the_strides_it_has_in_each_block():
    shares = shared_rows(16, summary_size=8, stride=4, block_size=8)
    assert shares.tolist() == [[2, 0], [1, 1], [0, 2]]
    same = shared_rows(16, summary_size=4, stride=4, block_size=4)
    assert torch.equal(same, torch.eye(4, dtype=same.dtype))


def test_first_own_and_previous_block_are_always_selected_and_then_the_most_important():
    importance = torch.tensor([0.0, 5.0, 9.0, 7.0, 0.0, 0.0]).expand(24, 6)
    options = {"block_size": 4, "is_causal": True, "query_offset": 0}
    for top_k, row in ((3, {0, 4, 5}), (4, {0, 2, 4, 5}), (5, {0, 2, 3, 4, 5})):
        table = selected_blocks(importance, top_k=top_k, **options)
        assert set(table[23].nonzero().flatten().tolist()) == row
        assert table[:4].sum(-1).eq(1).all() and table[4:8].sum(-1).eq(2).all()


def test_heads_that_share_a_key_head_select_together():
    query, key, value, gates = (x.detach() for x in draw(64, 64, heads=4))
    options = means(top_k=4, window=1, gates=gates, enable_gqa=True)
    together = native_sparse_attention(query, key, value, **options)
    alone = torch.cat(
        [
            native_sparse_attention(
                query[:, h : h + 1],
                key[:, h // 2 : h // 2 + 1],
                value[:, h // 2 : h // 2 + 1],
                **{**options, "gates": gates[:, h : h + 1]},
            )
            for h in range(4)
        ],
        dim=1,
    )
    assert not torch.allclose(together, alone, atol=1e-3)
    key, value = (x.repeat_interleave(2, 1) for x in (key, value))
    query = query[:, ::2].repeat_interleave(2, 1)  # the same query: the same choice either way
    gates = gates[:, ::2].repeat_interleave(2, 1)
    got = native_sparse_attention(query, key[:, ::2], value[:, ::2], **{**options, "gates": gates})
    wanted = native_sparse_attention(query, key, value, **{**options, "gates": gates})
    assert torch.allclose(got, wanted, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"stride": 3}, ValueError, "summary_size must be a multiple of stride = 3, got 8"),
        ({"top_k": 2}, ValueError, "top_k must be at least 3, got 2"),
        ({"top_k": 6}, ValueError, "top_k must be at most the number of blocks, 5, got 6"),
        ({"window": 0}, ValueError, "window must be at least 1, got 0"),
        ({"gates": torch.ones(2, dtype=torch.double)}, ValueError, r"gates must have shape \(2, 2"),
        ({"gates": torch.ones(3)}, TypeError, "gates must have the dtype of query"),
    ],
)
def test_wrong_options_are_named(options, kind, message):
    *inputs, gates = draw(40, 40)
    with pytest.raises(kind, match=message):
        native_sparse_attention(*inputs, **means(top_k=3, window=4, gates=gates, **{}) | options)


def test_the_module_drops_into_a_model_and_every_part_learns():
    model = DecoderLM(7, width=16, heads=2, layers=1, operator=NativeSparseAttention)
    tokens = torch.randint(7, (2, 50), generator=torch.Generator().manual_seed(0))
    model(tokens).square().sum().backward()
    parts = dict(model.blocks[0].attention.operator.named_parameters())
    assert len(parts) == 12
    assert all(part.grad is not None and part.grad.any() for part in parts.values())
    assert model(tokens[:, :3]).isfinite().all()
