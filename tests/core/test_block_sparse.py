"""Block-sparse attention reads the listed blocks and nothing else, whichever form runs."""

import pytest
import torch

from attnlib.attend import attend
from attnlib.counting import largest_tensor
from attnlib.read import block_sparse as module
from attnlib.read.block_sparse import (
    block_sparse_attention,
    dense_block_sparse_attention,
    listed_blocks,
    listed_pairs,
)
from attnlib.support import window


def draw(queries, keys, lead=(2, 2), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(*lead, length, width, generator=generator, dtype=torch.double).requires_grad_()
        for length, width in ((queries, 6), (keys, 6), (keys, 5))
    ]


def table_for(queries, keys, sizes, lead=(2, 2), share=0.5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (*lead, -(-queries // sizes[0]), -(-keys // sizes[1]))
    return torch.rand(shape, generator=generator) < share


def assert_same_read_and_gradients(got, wanted, inputs, tolerance=1e-12):
    assert torch.allclose(got, wanted, rtol=0, atol=tolerance)
    probe = torch.linspace(-1, 1, wanted.numel(), dtype=wanted.dtype).view_as(wanted)
    slopes = [torch.autograd.grad((read * probe).sum(), inputs) for read in (got, wanted)]
    for ours, theirs in zip(*slopes, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("length", [1, 15, 63, 100, 257])
@pytest.mark.parametrize("is_causal", [False, True])
def test_the_gathered_form_gives_the_read_and_gradients_of_attend(length, is_causal, monkeypatch):
    monkeypatch.setattr(module, "NUMBERS_AT_A_TIME", 5000)  # several runs
    inputs, sizes = draw(length, length + 2), (8, 5)
    blocks = table_for(length, length + 2, sizes)
    options = {"block_size": sizes, "is_causal": is_causal, "query_offset": 2}
    got = block_sparse_attention(*inputs, blocks, **options)
    assert_same_read_and_gradients(
        got, dense_block_sparse_attention(*inputs, blocks, **options), inputs
    )


@pytest.mark.parametrize("length", [31, 50])
def test_the_kernel_gives_the_same_in_the_interpreter(length):
    pytest.importorskip("triton")
    inputs = draw(length, length, lead=(1, 2))
    blocks = table_for(length, length, (16, 16), lead=(2,))
    options = {"block_size": 16, "is_causal": True, "scale": 0.3}
    got = block_sparse_attention(*inputs, blocks, backend="triton", **options)
    assert_same_read_and_gradients(
        got, block_sparse_attention(*inputs, blocks, backend="torch", **options), inputs
    )


def test_a_table_is_a_support_of_attend():
    inputs, sizes = draw(13, 17), (4, 3)
    for lead in ((), (2,), (2, 2), (2, 1), (1, 2)):
        blocks = table_for(13, 17, sizes, lead=lead)
        wanted = attend(*inputs, support=listed_pairs(blocks, sizes))
        got = block_sparse_attention(*inputs, blocks, block_size=sizes)
        assert torch.allclose(got, wanted, rtol=0, atol=1e-12)


def test_the_smallest_table_covers_a_support_and_no_block_is_listed_for_nothing():
    blocks = listed_blocks(window(5), 12, 12, 4)
    assert blocks.int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    assert listed_blocks(window(1), 5, 5, (2, 5)).all()
    inputs = draw(12, 12)
    seen = attend(*inputs, support=window(5))
    both = attend(*inputs, support=lambda *at: window(5)(*at) & listed_pairs(blocks, 4)(*at))
    assert torch.equal(seen, both)


def test_values_of_blocks_that_are_not_listed_are_never_touched():
    query, key, value = (x.detach() for x in draw(16, 16))
    blocks = torch.eye(4, dtype=torch.bool)
    wanted = block_sparse_attention(query, key, value, blocks, block_size=4)
    key[..., 12:, :], value[..., 12:, :] = torch.nan, torch.nan
    got = block_sparse_attention(query, key, value, blocks, block_size=4)
    assert torch.equal(got[..., :12, :], wanted[..., :12, :])


def test_no_matrix_of_all_pairs_is_made():
    query, key, value = (torch.randn(1, 1, 4096, 8) for _ in range(3))
    blocks = listed_blocks(window(64), 4096, 4096, 64)
    made = largest_tensor(lambda: block_sparse_attention(query, key, value, blocks, block_size=64))
    assert made <= 2 * 64 * 4096  # the table's own pairs, not 4096 * 4096


def test_a_row_without_blocks_reads_zero_and_sends_back_zero():
    inputs = draw(8, 8)
    blocks = torch.tensor([[False, False], [True, False]])
    read = block_sparse_attention(*inputs, blocks, block_size=4)
    assert not read[..., :4, :].any() and read[..., 4:, :].all()
    slope = torch.autograd.grad(read.sum(), inputs[0])[0]
    assert not slope[..., :4, :].any()


@pytest.mark.parametrize(
    ("blocks", "block_size", "kind", "message"),
    [
        (torch.ones(3, 3), 4, TypeError, "blocks must be a bool tensor"),
        (torch.ones(2, 3, dtype=torch.bool), 4, ValueError, r"blocks must have shape \(2, 2, 3, 3"),
        (torch.ones(3, 3, dtype=torch.bool), 0, ValueError, "block_size must be at least 1"),
        (torch.ones(3, 3, dtype=torch.bool), 4.0, TypeError, "block_size must be an int"),
        (torch.ones(3, 3, dtype=torch.bool), (4, 4, 4), ValueError, "block_size must be a number"),
        (torch.ones(3, 1, 3, 3, dtype=torch.bool), 4, ValueError, "blocks must have shape"),
    ],
)
def test_wrong_tables_and_sizes_are_named(blocks, block_size, kind, message):
    with pytest.raises(kind, match=message):
        block_sparse_attention(*draw(12, 12), blocks, block_size=block_size)


def test_a_size_the_kernel_does_not_take_is_a_reason():
    pytest.importorskip("triton")
    with pytest.raises(ValueError, match="block sizes 16, 32, 64 and 128, got"):
        block_sparse_attention(
            *draw(12, 12), torch.ones(3, 3, dtype=torch.bool), block_size=4, backend="triton"
        )
