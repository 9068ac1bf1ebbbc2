"""Operators that choose blocks drop into the small models, causal and not."""

import pytest
import torch

from attnlib.models.language import DecoderLM
from attnlib.models.sparse_operators import MeanLandmarks, MixtureOfBlocks, NearBlocks
from attnlib.models.vision import VisionTransformer
from attnlib.read.mixture_of_blocks import moba_attention
from attnlib.read.native_sparse_attention import NativeSparseAttention

OPERATORS = [NearBlocks, MixtureOfBlocks, MeanLandmarks, NativeSparseAttention]
each_operator = pytest.mark.parametrize("operator", OPERATORS)


@each_operator
def test_a_language_model_with_it_does_not_see_the_future(operator):
    model = DecoderLM(9, width=16, layers=1, operator=operator, position="learned").double()
    tokens = torch.randint(9, (2, 40), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 21:] = 0
    got, wanted = model(tokens), model(changed)
    assert torch.allclose(got[:, :21], wanted[:, :21], rtol=0, atol=1e-10)
    assert not torch.allclose(got[:, 22:], wanted[:, 22:], rtol=0, atol=1e-3)
    assert model(tokens[:, :2]).isfinite().all()


@each_operator
def test_a_vision_model_with_it_looks_both_ways(operator):
    torch.manual_seed(0)
    layer = operator(6).double()
    query, key, value = torch.randn(3, 1, 2, 20, 6, dtype=torch.double).unbind(0)
    last = value.clone()
    last[..., 7, :] += 1  # the last key of the first block
    moved = (layer(query, key, last) - layer(query, key, value)).abs().amax(-1) > 1e-9
    assert moved[..., :7].any()
    model = VisionTransformer(8, 4, 3, width=16, operator=operator)
    model(torch.rand(2, 1, 8, 8)).sum().backward()
    assert all(part.grad.isfinite().all() for part in model.blocks.parameters())


def test_a_mixture_of_blocks_is_moba_with_its_sizes():
    query, key, value = torch.randn(3, 1, 2, 40, 6, dtype=torch.double).unbind(0)
    layer = MixtureOfBlocks(6, block_size=4, top_k=2)
    wanted = moba_attention(query, key, value, block_size=4, top_k=2)
    assert torch.equal(layer(query, key, value, is_causal=True), wanted)


@each_operator
def test_sizes_that_are_none_are_named(operator):
    with pytest.raises((ValueError, TypeError), match="block_size"):
        operator(6, block_size=0)(*torch.randn(3, 1, 2, 8, 6).unbind(0))
