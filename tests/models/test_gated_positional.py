"""Convolutions as attention, and heads whose gate lets them leave their place."""

import pytest
import torch
from torch.nn.functional import conv2d, pad

from attnlib.atlas import get
from attnlib.attend import attend
from attnlib.models.depthwise import to_grid, to_tokens
from attnlib.models.gated_positional import (
    GatedPositionalAttention,
    convolution_as_attention,
    gated_positional_weights,
    kernel_offsets,
    nonlocality,
    position_scores,
    positional_read,
    quadratic_embedding,
)
from attnlib.read.heads import split_heads
from attnlib.score.changes import bias
from attnlib.weight.softmax_attention import softmax_attention


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def layer_of(grid=(4, 5), width=18, heads=9, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GatedPositionalAttention(width, heads, grid=grid, **options).double()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("grid", [(6, 7), (1, 9), (3, 2)])
def test_saturated_heads_are_a_convolution_with_replicated_edges(size, grid):
    image, weight = draw(2, 3, *grid), draw(4, 3, size, size, seed=1)
    before, after = (size - 1) // 2, size // 2
    wanted = conv2d(pad(image, (before, after, before, after), mode="replicate"), weight)
    got = convolution_as_attention(weight, grid=grid)(to_tokens(image))
    torch.testing.assert_close(to_grid(got, grid), wanted, rtol=0, atol=1e-12)


def test_inside_the_grid_it_is_the_convolution_whatever_the_padding():
    image, weight = draw(1, 2, 6, 6), draw(3, 2, 3, 3, seed=1)
    got = to_grid(convolution_as_attention(weight, grid=(6, 6))(to_tokens(image)), (6, 6))
    wanted = conv2d(image, weight, padding=1)
    torch.testing.assert_close(got[..., 1:-1, 1:-1], wanted[..., 1:-1, 1:-1], rtol=0, atol=1e-12)
    assert (got - wanted).abs().amax() > 0.1  # zeros at the border are another convolution


def test_zero_padding_is_reached_by_padding_the_tokens():
    image, weight = draw(1, 2, 4, 4), draw(3, 2, 3, 3, seed=1)
    padded = pad(image, (1, 1, 1, 1))
    got = to_grid(convolution_as_attention(weight, grid=(6, 6))(to_tokens(padded)), (6, 6))
    torch.testing.assert_close(
        got[..., 1:-1, 1:-1], conv2d(image, weight, padding=1), rtol=0, atol=1e-12
    )


def test_the_error_of_a_blunt_head_falls_as_exp_of_minus_locality():
    image, weight = draw(1, 2, 6, 6), draw(2, 2, 3, 3, seed=1)
    wanted = conv2d(pad(image, (1, 1, 1, 1), mode="replicate"), weight)
    errors = []
    for locality in (4.0, 8.0, 12.0):
        layer = convolution_as_attention(weight, grid=(6, 6), locality=locality).requires_grad_(
            False
        )
        errors.append(float((to_grid(layer(to_tokens(image)), (6, 6)) - wanted).abs().mean()))
    slopes = torch.tensor(errors).log().diff() / 4
    torch.testing.assert_close(slopes, -torch.ones(2), rtol=0.05, atol=0)


def test_offsets_are_those_of_conv2d_in_its_order():
    assert kernel_offsets(2).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert kernel_offsets(3)[:4].tolist() == [[-1, -1], [-1, 0], [-1, 1], [0, -1]]


def test_the_quadratic_score_falls_with_the_distance_from_the_center():
    centers = torch.tensor([[0.0, 1.0], [-1.0, 2.0]]).double()
    scores = position_scores(quadratic_embedding(centers, 2.0), (4, 5)).view(2, 4, 5, 4, 5)
    for head, query, key in ((0, (1, 1), (3, 4)), (1, (2, 0), (0, 3))):
        displacement = torch.tensor(key) - torch.tensor(query) - centers[head]
        wanted = -2.0 * (displacement.square().sum() - centers[head].square().sum())
        torch.testing.assert_close(scores[(head, *query, *key)], wanted)


@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (1, 7), (8, 8)])
def test_the_positional_read_along_rows_and_columns_is_the_dense_one(grid):
    value, embedding = draw(2, 4, grid[0] * grid[1], 3), draw(4, 3, seed=1)
    embedding.requires_grad_()
    scores = position_scores(embedding, grid)
    blank = torch.zeros(2, 4, value.shape[-2], 1).double()
    wanted = attend(blank, blank, value, score_mod=bias(scores))
    got = positional_read(value, embedding, grid)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    grads = [torch.autograd.grad(read.square().sum(), embedding)[0] for read in (got, wanted)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-10)


def test_the_layer_reads_with_the_weights_of_the_dense_form_and_rows_sum_to_one():
    layer, x = layer_of(), draw(2, 20, 18, seed=1)
    with torch.no_grad():
        layer.gate.copy_(draw(9, seed=2))
    out, weights = layer(x, return_weights=True)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 9, 20).double())
    value = split_heads(layer.to_value(x), 9)
    read = (weights @ value).transpose(1, 2).flatten(-2)
    torch.testing.assert_close(out, layer.to_output(read), rtol=0, atol=1e-12)
    assert torch.equal(layer(x), out)


def test_gates_run_from_content_alone_to_place_alone():
    query, key = draw(2, 4, 6, 3), draw(2, 4, 6, 3, seed=1)
    embedding, open_gate = draw(4, 3, seed=2), torch.full((4,), 50.0).double()
    content = gated_positional_weights(query, key, embedding, -open_gate, (2, 3))
    eye = torch.eye(6).double().expand(2, 4, 6, 6)
    torch.testing.assert_close(content, softmax_attention(query, key, eye))
    place = gated_positional_weights(query, key, embedding, open_gate, (2, 3))
    wanted = position_scores(embedding, (2, 3)).softmax(-1).expand_as(place)
    torch.testing.assert_close(place, wanted)


def test_it_begins_as_the_paper_says_and_knows_its_centers():
    layer = layer_of(locality=0.7)
    assert torch.equal(layer.gate, torch.ones(9).double())
    torch.testing.assert_close(layer.centers, kernel_offsets(3).double())
    torch.testing.assert_close(layer.embedding[:, 0], torch.full((9,), -0.7).double())
    weights = layer.position_scores().softmax(-1)
    peak = weights[:, 1 * 5 + 1].argmax(-1)  # the query in row 1, column 1 of a 4 x 5 grid
    assert peak.tolist() == [row * 5 + column for row in range(3) for column in range(3)]


def test_without_the_convolutional_start_no_place_is_preferred():
    weights = layer_of(convolutional=False).position_scores().softmax(-1)
    assert weights.max() < 0.1 and layer_of().position_scores().softmax(-1).max() > 0.5


def test_gradients_reach_gates_and_centers():
    layer = layer_of()
    layer(draw(1, 20, 18)).square().sum().backward()
    assert (layer.gate.grad != 0).all() and (layer.embedding.grad != 0).all()


def test_the_gradient_is_the_numerical_one():
    layer, x = layer_of((2, 2), 4, 4), draw(1, 4, 4).requires_grad_()

    def read(x, gate, embedding):
        return torch.func.functional_call(layer, {"gate": gate, "embedding": embedding}, (x,))

    parameters = (layer.gate, layer.embedding)
    leaves = (p.detach().clone().requires_grad_() for p in parameters)
    assert torch.autograd.gradcheck(read, (x, *leaves))


def test_nonlocality_is_the_mean_distance_that_is_read_over():
    same = torch.eye(6).double()
    assert nonlocality(same, (2, 3)) == 0
    right = torch.zeros(6, 6).double()
    right[torch.arange(6), torch.tensor([1, 2, 2, 4, 5, 5])] = 1
    torch.testing.assert_close(nonlocality(right, (2, 3)), torch.tensor(4 / 6).double())
    stacked = torch.stack((same, right))
    torch.testing.assert_close(nonlocality(stacked, (2, 3)), torch.tensor([0, 4 / 6]).double())


def test_far_keys_have_finite_scores_and_gradients():
    layer = layer_of((1, 100), locality=1.0)
    x = (1e3 * draw(1, 100, 18)).requires_grad_()
    layer(x).sum().backward()
    assert x.grad.isfinite().all() and layer.embedding.grad.isfinite().all()


@pytest.mark.parametrize(
    "options, says",
    [
        ({"heads": 6}, "heads must be a square number"),
        ({"heads": 0}, "heads must be at least 1"),
        ({"width": 20}, "heads must divide width 20, got 9"),
        ({"grid": (0, 5)}, "grid must be at least 1"),
        ({"locality": 0.0}, "locality must be positive and finite, got 0.0"),
        ({"locality": float("inf")}, "locality must be positive and finite"),
    ],
)
def test_sizes_that_do_not_fit_are_named(options, says):
    with pytest.raises(ValueError, match=says):
        layer_of(**options)


def test_wrong_inputs_are_named():
    with pytest.raises(TypeError, match="grid must be a pair"):
        layer_of(grid=20)
    with pytest.raises(ValueError, match=r"x must have 4 \* 5 tokens"):
        layer_of()(draw(1, 21, 18))
    with pytest.raises(ValueError, match="attn_mask must be None"):
        layer_of()(draw(1, 20, 18), attn_mask=torch.ones(20, 20, dtype=torch.bool))
    with pytest.raises(ValueError, match="weight must have shape"):
        convolution_as_attention(draw(4, 3, 3, 2), grid=(4, 5))
    with pytest.raises(TypeError, match="weight must be a floating-point tensor"):
        convolution_as_attention(torch.ones(4, 3, 3, 3, dtype=torch.int64), grid=(4, 5))


def test_both_are_in_the_atlas():
    assert get("convit-gpsa").function is GatedPositionalAttention
    assert get("cordonnier-2020").function is convolution_as_attention
