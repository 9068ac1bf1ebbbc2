"""A vision model whose layers see the grid through any support."""

from functools import partial

import pytest
import torch

from attnlib.models.grid_vision import (
    LAYOUTS,
    GridVision,
    SupportedAttention,
    displacement_numbers,
    gates,
    grid_layers,
)
from attnlib.models.multi_head import MultiHeadAttention
from attnlib.patterns.grid import blocks, halo, neighborhood
from attnlib.read.heads import merge_heads, split_heads
from attnlib.score.changes import bias
from attnlib.support import Support, from_mask
from attnlib.tasks.textures import TextureBorders
from attnlib.training import classification, train
from attnlib.weight.softmax_attention import softmax_attention


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def layer_of(support=None, grid=(4, 4), relative=False):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        options = {"grid": grid, "support": support, "relative": relative}
        return SupportedAttention(6, 2, **options).double()


def model_of(layout, seed=0, **options):
    layers = grid_layers(layout, 2, width=18, heads=9, grid=(8, 8))
    return GridVision((8, 8), 1, 3, layers, width=18, seed=seed, **options)


@pytest.mark.parametrize(
    "support", [None, blocks((4, 4), 2, shift=1), halo((4, 4), 2, 1), neighborhood((4, 4), 3)]
)
@pytest.mark.parametrize("relative", [False, True])
def test_a_layer_is_softmax_attention_over_its_support(support, relative):
    layer, x = layer_of(support, relative=relative), draw(3, 16, 6, seed=1)
    change = None
    if relative:
        with torch.no_grad():
            layer.bias.copy_(draw(2, 49, seed=2))
        change = bias(layer.bias[:, layer.displacement])
    query, key, value = (
        split_heads(to(x), 2) for to in (layer.to_query, layer.to_key, layer.to_value)
    )
    read = softmax_attention(query, key, value, support=support, score_mod=change)
    out, weights = layer(x, return_weights=True)
    torch.testing.assert_close(out, layer.to_output(merge_heads(read)), rtol=0, atol=1e-12)
    torch.testing.assert_close(merge_heads(weights @ value), merge_heads(read))


def test_displacements_have_one_number_each_whatever_the_place():
    numbers = displacement_numbers((2, 3)).view(2, 3, 2, 3)
    assert numbers[0, 0, 1, 1] == numbers[0, 1, 1, 2] != numbers[0, 1, 1, 0]
    assert sorted(numbers.unique().tolist()) == list(range(15))
    assert numbers[0, 0, 0, 1] == 8 and numbers[0, 1, 0, 0] == 6


def test_nothing_crosses_the_border_of_a_block_without_a_halo():
    x = draw(1, 16, 6).requires_grad_()
    (slope,) = torch.autograd.grad(layer_of(blocks((4, 4), 2))(x)[0, 0].sum(), x)
    touched = slope[0].abs().sum(-1).view(4, 4) > 0
    assert touched[:2, :2].all() and touched.sum() == 4
    (slope,) = torch.autograd.grad(layer_of(halo((4, 4), 2, 1))(x)[0, 0].sum(), x)
    assert (slope[0].abs().sum(-1).view(4, 4) > 0).sum() == 9


def test_the_four_layouts_have_the_same_parameters_but_for_gates_and_centers():
    counts = {name: sum(p.numel() for p in model_of(name).parameters()) for name in LAYOUTS}
    assert counts["plain"] == counts["windows"] == counts["neighborhood"]
    assert counts["gated"] == counts["plain"] + 2 * 9 * 4


def test_the_same_seed_gives_the_same_parameters_outside_attention():
    plain, gated, other = model_of("plain"), model_of("gated"), model_of("plain", seed=1)
    assert torch.equal(plain.places, gated.places)
    assert torch.equal(plain.blocks[1].perceptron[0].weight, gated.blocks[1].perceptron[0].weight)
    first, second = (model.blocks[0].attention.to_value.weight for model in (plain, gated))
    assert torch.equal(first, second)
    assert not torch.equal(plain.places, other.places)


def test_every_second_layer_of_windows_is_shifted():
    first, second = (block.attention for block in model_of("windows").blocks)
    assert torch.equal(first.outside == 0, from_blocks(0))
    assert torch.equal(second.outside == 0, from_blocks(2))


def from_blocks(shift):
    place = torch.arange(64)
    block = torch.stack(((place // 8 + 4 - shift) // 4, (place % 8 + 4 - shift) // 4))
    return (block[:, :, None] == block[:, None, :]).all(0)


def test_logits_are_for_the_image_or_for_each_token():
    images = torch.rand(2, 1, 8, 8)
    assert model_of("neighborhood")(images).shape == (2, 3)
    logits, weights = model_of("gated", readout="token")(images, return_weights=True)
    assert logits.shape == (2, 64, 3) and weights.shape == (2, 2, 9, 64, 64)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 9, 64))


def test_any_operator_with_a_support_drops_in():
    operator = partial(softmax_attention, support=neighborhood((8, 8), 3))
    make = partial(MultiHeadAttention, 18, 2, operator=operator)
    assert GridVision((8, 8), 2, 3, [make], width=18)(torch.rand(2, 1, 16, 16)).shape == (2, 3)


def test_gates_are_read_layer_by_layer():
    torch.testing.assert_close(
        gates(model_of("gated")), torch.full((2, 9), 0.731), atol=1e-3, rtol=0
    )
    with pytest.raises(ValueError, match="model must have a GatedPositionalAttention"):
        gates(model_of("plain"))


def test_a_model_with_a_halo_learns_textures_in_a_few_steps():
    task, grid = TextureBorders(cells=12), (12, 12)
    make = partial(SupportedAttention, 16, 2, grid=grid, support=halo(grid, 2, 1), relative=True)
    model = GridVision(grid, 2, 2, [make], width=16, readout="token")
    history = train(model, task.batches(8, 0), steps=40, learning_rate=1e-2, progress=False)
    assert history.accuracy[-10:].mean() > task.chance + 0.08
    assert classification(model, task.batch(2, 0))[0].isfinite()


def test_wrong_inputs_are_named():
    with pytest.raises(ValueError, match="layout must be one of plain, gated"):
        grid_layers("window", 2, width=18, heads=9, grid=(8, 8))
    with pytest.raises(ValueError, match=r"images must have shape \(batch, 1, 8, 8\)"):
        model_of("plain")(torch.rand(2, 1, 8, 9))
    with pytest.raises(ValueError, match="readout must be one of image, token"):
        model_of("plain", readout="pixel")
    with pytest.raises(ValueError, match="heads must divide width 6, got 4"):
        SupportedAttention(6, 4, grid=(4, 4))
    with pytest.raises(ValueError, match=r"x must have 4 \* 4 tokens"):
        layer_of()(draw(1, 15, 6))
    with pytest.raises(ValueError, match="attn_mask must be None"):
        layer_of()(draw(1, 16, 6), attn_mask=torch.ones(16, 16, dtype=torch.bool))
    nobody = from_mask(torch.eye(16, dtype=torch.bool).logical_and(torch.arange(16) != 3))
    with pytest.raises(ValueError, match=r"support must let every place see a key, .* place 3"):
        layer_of(nobody)
    assert isinstance(nobody, Support)
