"""Aggregated, channel, rectangle and group attention: what each layer promises."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize, softplus

from attnlib.attend import attend
from attnlib.models.aggregated_foveal import AggregatedAttention, ConvolutionalGLU
from attnlib.models.channel_attention import ChannelAttention, channel_attention
from attnlib.models.group_pose import (
    GroupPoseAttention,
    instance_attention,
    same_instance,
    same_type,
    score_counts,
    type_attention,
)
from attnlib.models.rectangle_windows import RectangleWindowAttention, reachable
from attnlib.patterns.grid import axial, blocks, rectangles
from attnlib.read.foveal_attention import fovea, pooled
from attnlib.read.heads import merge_heads, split_heads
from attnlib.score.changes import bias
from attnlib.support import dense

CLOSE = {"rtol": 1e-11, "atol": 1e-11}


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def assert_same_gradients(got, wanted, inputs):
    probe = torch.linspace(-1, 1, wanted.numel(), dtype=wanted.dtype).view_as(wanted)
    slopes = [torch.autograd.grad((read * probe).sum(), inputs) for read in (got, wanted)]
    torch.testing.assert_close(*slopes, **CLOSE)


def perturbed(layer):
    torch.manual_seed(3)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer.double()


def dense_aggregated(layer, x):
    """The layer of the paper, written with `attend` over places and cells together."""
    places, heads = x.shape[1], layer.heads
    coarse = layer.coarse_norm(
        pooled(nn.functional.gelu(layer.to_coarse(x)), layer.grid, layer.pool)
    )
    key, value = (
        torch.cat(pair, -2)
        for pair in zip(layer.keys_and_values(x), layer.keys_and_values(coarse), strict=True)
    )
    support = fovea(layer.grid, layer.window)
    seen = dense(support, places, key.shape[-2])[0, 0]
    unit = normalize(split_heads(layer.to_query(x), heads), dim=-1)
    sharpness = softplus(layer.raw_temperature) * seen.sum(-1, keepdim=True).double().log()

    reach, (rows, columns) = layer.window // 2, layer.grid
    of_offset = torch.zeros(heads, places, key.shape[-2], dtype=x.dtype)
    words = torch.zeros(len(x), heads, places, key.shape[-2], dtype=x.dtype)
    scores_of_words = unit @ layer.offset_words + layer.offset_bias
    for i in range(places):
        for number in range(layer.window**2):
            row = i // columns + number // layer.window - reach
            column = i % columns + number % layer.window - reach
            if 0 <= row < rows and 0 <= column < columns:
                of_offset[:, i, row * columns + column] = layer.score_bias[:, 0, number]
                words[:, :, i, row * columns + column] = scores_of_words[:, :, i, number]
    query = (unit + layer.own_query) * sharpness
    read = attend(query, key, value, support=support, score_mod=bias(of_offset), scale=1.0)
    return layer.to_output(merge_heads(read + words @ value))


@pytest.mark.parametrize(("grid", "window", "pool"), [((4, 6), 3, (2, 3)), ((4, 4), 5, (1, 1))])
def test_aggregated_attention_equals_its_dense_form(grid, window, pool):
    layer = perturbed(AggregatedAttention(8, 2, grid=grid, window=window, pool=pool))
    x = normal(2, math.prod(grid), 8).requires_grad_()
    got, wanted = layer(x), dense_aggregated(layer, x)
    torch.testing.assert_close(got, wanted, **CLOSE)
    assert_same_gradients(got, wanted, [x, *(p for p in layer.parameters())])


def test_fine_and_coarse_weights_of_the_layer_sum_to_one_and_all_places_reach_all():
    layer = perturbed(AggregatedAttention(8, 2, grid=(4, 4), window=3, pool=(2, 2)))
    x = normal(1, 16, 8).requires_grad_()
    out, (fine, coarse) = layer(x, return_weights=True)
    torch.testing.assert_close(fine.sum(-1) + coarse.sum(-1), torch.ones(1, 2, 16).double())
    slope = torch.autograd.grad(out[0, 0].sum(), x)[0]
    assert (slope[0].abs().sum(-1) > 0).all()


def test_the_gate_of_the_convolutional_glu_sees_neighbors_and_nothing_further():
    x = normal(1, 25, 4).requires_grad_()
    slope = torch.autograd.grad(ConvolutionalGLU(4, 6, grid=(5, 5)).double()(x)[0, 12].sum(), x)[0]
    reached = (slope[0].abs().sum(-1) > 0).view(5, 5)
    assert reached[1:4, 1:4].all() and reached.sum() == 9


@pytest.mark.parametrize("places", [1, 15, 63])
def test_channel_attention_is_attend_on_transposed_tensors(places):
    inputs = [normal(2, 3, places, 4, seed=seed).requires_grad_() for seed in range(3)]
    got = channel_attention(*inputs)
    wanted = attend(*(tensor.mT for tensor in inputs), scale=0.5).mT
    torch.testing.assert_close(got, wanted, **CLOSE)
    assert_same_gradients(got, wanted, inputs)


def test_one_layer_of_channel_attention_joins_all_places_and_knows_no_order():
    layer, order = ChannelAttention(8, 2).double(), torch.randperm(30)
    x = normal(1, 30, 8).requires_grad_()
    slope = torch.autograd.grad(layer(x)[0, 7].square().sum(), x)[0]
    assert (slope[0].abs().sum(-1) > 0).all()
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order], **CLOSE)


@pytest.mark.parametrize("shifted", [False, True])
def test_halves_of_the_heads_read_flat_and_tall_rectangles(shifted):
    grid, height, width = (4, 8), 2, 4
    layer = RectangleWindowAttention(
        8, 4, grid=grid, height=height, width=width, shifted=shifted
    ).double()
    x = normal(2, 32, 8).requires_grad_()
    query, key, value = (
        split_heads(project(x), 4) for project in (layer.to_query, layer.to_key, layer.to_value)
    )
    shapes = ((height, width), (width, height))
    reads = [
        attend(
            query[:, half],
            key[:, half],
            value[:, half],
            support=rectangles(grid, *shape, tuple(s // 2 for s in shape) if shifted else 0),
        )
        for half, shape in zip((slice(0, 2), slice(2, 4)), shapes, strict=True)
    ]
    local = layer.convolution(layer.to_value(x))
    wanted = layer.to_output(merge_heads(torch.cat(reads, 1)) + local)
    torch.testing.assert_close(layer(x), wanted, **CLOSE)
    assert_same_gradients(layer(x), wanted, [x])


def reach_counts(shapes, order):
    """How many places each place of a 16 x 16 grid depends on; order: 0 plain, 1 shifted."""
    layers = [
        [
            rectangles((16, 16), *shape, tuple(shift * side // 2 for side in shape))
            for shape in shapes
        ]
        for shift in order
    ]
    return reachable(layers, 256).sum(-1)


def test_two_layers_of_rectangles_reach_further_than_squares_of_the_same_area():
    flat_and_tall = [(2, 8), (8, 2)]
    for order, least in (((0, 1), 0.9), ((1, 0), 1.0), ((0, 0), 1.0)):
        squares, rectangular = reach_counts([(4, 4)], order), reach_counts(flat_and_tall, order)
        # Where a shift cuts a corner off, the square of a later plain layer may reach further.
        assert (rectangular > squares).float().mean() >= least
        assert rectangular.sum() > 2 * squares.sum()
    assert reach_counts([(4, 4)], (0, 0)).eq(16).all()
    assert reach_counts(flat_and_tall, (0, 0)).eq(64).all()


def test_lines_reach_everything_in_two_layers_and_unshifted_blocks_never_do():
    grid, places = (16, 16), 256
    lines = [[axial(grid, 0), axial(grid, 1)]] * 2
    assert reachable(lines, places).all() and not reachable(lines[:1], places).all()
    assert reachable([[blocks(grid, 4)]] * 5, places).sum(-1).eq(16).all()


@pytest.mark.parametrize(("instances", "parts"), [(1, 1), (3, 5), (4, 2)])
@pytest.mark.parametrize(
    ("fast", "support"), [(instance_attention, same_instance), (type_attention, same_type)]
)
def test_group_attention_equals_masked_attention(fast, support, instances, parts):
    inputs = [normal(2, 2, instances * parts, 4, seed=seed).requires_grad_() for seed in range(3)]
    got = fast(*inputs, parts=parts)
    wanted = attend(*inputs, support=support(instances, parts))
    torch.testing.assert_close(got, wanted, **CLOSE)
    assert_same_gradients(got, wanted, inputs)


def test_the_two_supports_hold_as_many_scores_as_the_counts_say():
    instances, parts = 5, 4
    held = sum(
        int(dense(support(instances, parts), 20, 20).sum())
        for support in (same_instance, same_type)
    )
    assert score_counts(instances, parts) == {"full": 400, "grouped": held} and held == 180


def test_both_group_attentions_together_reach_every_token_and_one_does_not():
    layer = GroupPoseAttention(8, 2, parts=3).double()
    x = normal(1, 12, 8).requires_grad_()
    slope = torch.autograd.grad(layer(x)[0, 0].square().sum(), x)[0]
    assert (slope[0].abs().sum(-1) > 0).all()
    alone = x + layer.within(layer.within_norm(x))
    slope = torch.autograd.grad(alone[0, 0].square().sum(), x)[0]
    assert (slope[0, 3:] == 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: AggregatedAttention(8, 3, grid=(4, 4), pool=(2, 2)), "heads must divide"),
        (lambda: AggregatedAttention(8, 2, grid=(4, 4), window=4, pool=(2, 2)), "must be odd"),
        (lambda: AggregatedAttention(8, 2, grid=(4, 4), pool=(3, 2)), "pool must divide"),
        (lambda: ChannelAttention(8, 3), "groups must divide"),
        (
            lambda: channel_attention(normal(4, 2), normal(4, 2), normal(4, 3)),
            "value must have the shape",
        ),
        (
            lambda: RectangleWindowAttention(6, 3, grid=(4, 4), height=2, width=2),
            "heads must be even",
        ),
        (
            lambda: RectangleWindowAttention(8, 2, grid=(4, 8), height=2, width=8),
            "height must divide the grid",
        ),
        (lambda: reachable([[]], 4), "layers must name"),
        (
            lambda: instance_attention(*[normal(2, 7, 4)] * 3, parts=3),
            "parts must divide the 7 tokens",
        ),
        (lambda: same_type(0, 3), "instances must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
