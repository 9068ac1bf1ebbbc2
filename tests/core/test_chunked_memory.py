"""The chunked form keeps memory linear in the length, forward and back; the dense does not."""

import functools
import math

import pytest
import torch

from attnlib import chunked_softmax_attention, softmax_attention
from attnlib.counting import largest_tensor
from attnlib.score import relative_bias
from attnlib.support import window

LENGTHS = (128, 256, 512)


def largest_made(attention, length, backward):
    inputs = [torch.ones(1, length, 4, requires_grad=backward) for _ in range(3)]

    def run():
        out = attention(*inputs, is_causal=True)
        if backward:
            out.sum().backward()

    return largest_tensor(run)


def kept_for_backward(attention, length):
    """Elements of all tensors that autograd keeps from the forward pass, each storage once."""
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    inputs = [torch.ones(1, length, 4, requires_grad=True) for _ in range(3)]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        attention(*inputs, is_causal=True)
    return sum(kept.values())


def exponent(counts):
    return math.log2(counts[-1] / counts[0]) / math.log2(LENGTHS[-1] / LENGTHS[0])


chunked = functools.partial(chunked_softmax_attention, chunk=32)


@pytest.mark.parametrize("backward", [False, True])
def test_no_tensor_of_the_chunked_form_grows_faster_than_the_length(backward):
    counts = [largest_made(chunked, length, backward) for length in LENGTHS]
    assert exponent(counts) < 1.1
    assert exponent([largest_made(softmax_attention, n, backward) for n in LENGTHS]) > 1.9


def test_what_the_chunked_form_keeps_for_the_backward_pass_grows_with_the_length():
    assert exponent([kept_for_backward(chunked, length) for length in LENGTHS]) < 1.2
    assert exponent([kept_for_backward(softmax_attention, length) for length in LENGTHS]) > 1.9


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_the_size_of_a_chunk_does_not_change_the_read(chunk):
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, n, 4, generator=generator).double() for n in (33, 17, 17)]
    for is_causal in (False, True):
        got = chunked_softmax_attention(*inputs, is_causal=is_causal, chunk=chunk)
        assert torch.allclose(got, softmax_attention(*inputs, is_causal=is_causal), atol=1e-12)


def test_chunks_that_lie_in_the_future_are_never_scored():
    scored = []

    def spy(score, b, h, q_idx, kv_idx):
        scored.append((q_idx.min().item(), kv_idx.min().item()))
        return score

    inputs = [torch.ones(8, 4)] * 3
    chunked_softmax_attention(*inputs, is_causal=True, chunk=4, score_mod=spy)
    assert sorted(set(scored)) == [(0, 0), (4, 0), (4, 4)]


def test_a_learned_bias_gets_the_same_gradient_in_both_forms():
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 33, 4, generator=generator).double() for _ in range(3)]
    gradients = []
    for attention in (functools.partial(chunked_softmax_attention, chunk=8), softmax_attention):
        table = torch.linspace(-1, 1, 10).double().view(2, 5).requires_grad_()
        read = attention(*inputs, score_mod=relative_bias(table), is_causal=True)
        gradients += torch.autograd.grad(read.square().sum(), table)
    assert torch.allclose(*gradients, atol=1e-12) and gradients[0].abs().max() > 0.1


def test_tiles_without_an_allowed_pair_are_not_computed():
    computed = []

    def count(scores, *where):
        computed.append(scores.shape)
        return scores

    inputs = [torch.ones(1, 64, 4) for _ in range(3)]
    chunked_softmax_attention(*inputs, is_causal=True, score_mod=count, chunk=16)
    assert len(computed) == 10  # of 16 tiles, those on the diagonal and below it
    computed.clear()
    chunked_softmax_attention(*inputs, support=window(16), score_mod=count, chunk=16)
    assert len(computed) == 7  # the diagonal and the one below it


@pytest.mark.parametrize("length", [0, 5])
def test_a_read_of_nothing_still_has_a_gradient_of_zero(length):
    query = torch.ones(1, 5, 4, requires_grad=True)
    key = torch.ones(1, length, 4)
    nobody = torch.zeros(5, length, dtype=torch.bool)
    chunked_softmax_attention(query, key, key, attn_mask=nobody).sum().backward()
    assert query.grad.abs().sum() == 0
