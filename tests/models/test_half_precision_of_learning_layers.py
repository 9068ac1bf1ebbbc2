"""Layers whose memory learns, and heads that are chosen, run in half precision as in single."""

import pytest
import torch

from attnlib.models.mixtures.mixture_of_heads import ConvertedHeads
from attnlib.models.multi_head import MultiHeadAttention
from attnlib.models.test_time_layer import NormedTTTLayer, TTTLayer
from attnlib.models.titans_layers import MemoryAsContext, MemoryAsGate, MemoryAsLayer

LAYERS = {
    "context": lambda: MemoryAsContext(16, 2, segment=4),
    "gate": lambda: MemoryAsGate(16, 2, window=4, depth=2),
    "layer": lambda: MemoryAsLayer(16, 2, window=4),
    "TTT": lambda: TTTLayer(16, 2, mini_batch=4),
    "TTT with its norm": lambda: NormedTTTLayer(16, 2, mini_batch=4),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_that_learns_takes_half_precision(name, dtype):
    torch.manual_seed(0)
    layer, x = LAYERS[name](), torch.randn(2, 9, 16)
    wanted = layer(x)
    found = layer.to(dtype)(x.to(dtype))
    assert found.dtype == dtype
    assert (found.float() - wanted).norm() < 0.1 * wanted.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_queries_of_equal_length_are_chosen_without_nan(dtype):
    torch.manual_seed(0)
    attention = MultiHeadAttention(32, 4)
    with torch.no_grad():
        attention.to_query.weight[24:] = attention.to_query.weight[16:24]
    converted = ConvertedHeads(attention, shared=2, active=1).to(dtype)
    read = converted(3 * torch.randn(1, 100, 32).to(dtype))
    assert read.isfinite().all()
    read.float().mean().backward()
    assert all(x.grad.isfinite().all() for x in converted.parameters() if x.grad is not None)
