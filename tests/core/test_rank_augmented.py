"""The two halves of rank-augmented attention, and the convolutions on the grid of tokens."""

import pytest
import torch

from attnlib.models.depthwise import DepthwiseConvolution
from attnlib.models.local_concentration import LocalConcentration
from attnlib.models.rank_augmented import RankAugmentedAttention
from attnlib.read.rank_augmented import (
    dense_rank_augmented_attention,
    key_shares,
    key_value_buffer,
    rank_augmented_attention,
)
from attnlib.weight.feature_maps.elementwise import elu_plus_one


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def test_shares_have_mean_one_and_follow_the_mean_query():
    sink, source = elu_plus_one(normal(6, 4)), elu_plus_one(normal(9, 4, seed=1))
    shares = key_shares(sink, source)
    close(shares.mean(), torch.ones(()).double())
    scores = sink.mean(0) @ source.T / 2
    close(shares, 9 * scores.softmax(-1))


def test_equal_shares_are_plain_linear_attention():
    query, value = normal(5, 4), normal(7, 3, seed=2)
    key = normal(1, 4, seed=1).expand(7, 4)
    close(rank_augmented_attention(query, key, value), value.mean(0).expand(5, 3))


def test_the_buffer_is_the_weighted_sum_of_outer_products():
    source, value = elu_plus_one(normal(7, 4)), normal(7, 3, seed=1)
    shares = normal(7, seed=2).exp()
    wanted = sum(shares[j] * torch.outer(source[j], value[j]) for j in range(7))
    close(key_value_buffer(source, value, shares), wanted)


@pytest.mark.parametrize("length", [1, 15, 63, 100, 257])
def test_linear_and_dense_agree(length):
    inputs = normal(2, 3, length, 4), normal(2, 3, length, 4, seed=1), normal(2, 3, length, 5)
    close(rank_augmented_attention(*inputs), dense_rank_augmented_attention(*inputs))


def test_the_gate_can_raise_the_rank_of_the_read():
    layer = RankAugmentedAttention(8, 2).double()
    x = normal(1, 30, 2) @ normal(2, 8, seed=1)  # tokens in a plane
    read = layer.to_output.weight.new_zeros(1, 30, 8)
    layer.to_output.register_forward_pre_hook(lambda _, inputs: read.copy_(inputs[0].detach()))
    layer(x)
    gated = torch.linalg.matrix_rank(read[0])
    value_rank = torch.linalg.matrix_rank(layer.to_value(x)[0])
    assert value_rank == 2
    assert gated > 4


def test_the_layer_multiplies_what_is_read_and_what_is_near_by_its_gate():
    layer, x = RankAugmentedAttention(4, 1, grid=(3, 4)).double(), normal(2, 12, 4)
    value = layer.to_value(x)
    read = dense_rank_augmented_attention(layer.to_query(x), layer.to_key(x), value)
    close(layer(x), layer.to_output((read + layer.near(value)) * layer.to_gate(x)))


def test_the_layer_gives_its_weights():
    layer = RankAugmentedAttention(8, 2, grid=(3, 4)).double()
    out, weights = layer(normal(2, 12, 8), return_weights=True)
    assert out.shape == (2, 12, 8)
    close(weights.sum(-1), torch.ones(2, 2, 12).double())


@pytest.mark.parametrize("size", [3, 5, 7])
def test_a_depthwise_convolution_sees_neighbors_on_the_grid_and_its_own_channel(size):
    layer = DepthwiseConvolution(4, (9, 10), size).double()
    x = normal(1, 90, 4)
    moved = x.clone()
    moved[0, 4 * 10 + 5, 2] += 1  # row 4, column 5
    seen = (layer(moved) - layer(x))[0].unflatten(0, (9, 10)).abs() > 1e-12
    assert not seen[..., [0, 1, 3]].any()
    rows, columns = seen[..., 2].nonzero(as_tuple=True)
    reach = size // 2
    assert (rows.min(), rows.max()) == (4 - reach, 4 + reach)
    assert (columns.min(), columns.max()) == (5 - reach, 5 + reach)


def test_local_concentration_reaches_two_kernels_far():
    layer = LocalConcentration(2, (15, 15), size=3).double().eval()
    x = normal(1, 225, 2)
    moved = x.clone()
    moved[0, 7 * 15 + 7] += 1
    seen = ((layer(moved) - layer(x))[0].unflatten(0, (15, 15)).abs() > 1e-12).any(-1)
    rows, _ = seen.nonzero(as_tuple=True)
    assert (rows.min(), rows.max()) == (5, 9)


def test_wrong_input_names_the_argument():
    with pytest.raises(ValueError, match=r"x must have shape \(batch, 3 \* 4, width\)"):
        DepthwiseConvolution(4, (3, 4))(torch.randn(1, 11, 4))
    with pytest.raises(ValueError, match="size must be odd, got 4"):
        DepthwiseConvolution(4, (3, 4), size=4)
    with pytest.raises(TypeError, match="grid must be a pair"):
        LocalConcentration(4, 7)
    with pytest.raises(ValueError, match="heads must divide width 8, got 3"):
        RankAugmentedAttention(8, 3)
    with pytest.raises(ValueError, match="key must have the width of query"):
        rank_augmented_attention(normal(3, 4), normal(3, 5), normal(3, 4))


def test_a_row_whose_sum_vanishes_reads_zero():
    far = torch.full((1, 3, 4), -60.0, requires_grad=True)
    value = torch.ones(1, 3, 2)
    read = rank_augmented_attention(far, far, value)
    assert (read == 0).all()
    assert torch.equal(dense_rank_augmented_attention(far, far, value), read)
    assert torch.autograd.grad(read.sum(), far)[0].isfinite().all()


@pytest.mark.parametrize(("queries", "keys"), ((0, 3), (3, 0), (0, 0)))
def test_a_read_of_nothing_still_has_gradients(queries, keys):
    query, key, value = (normal(2, length, 4).requires_grad_() for length in (queries, keys, keys))
    read = rank_augmented_attention(query, key, value)
    assert torch.equal(read, torch.zeros(2, queries, 4, dtype=torch.float64))
    for slope in torch.autograd.grad(read.sum(), (query, key, value)):
        assert (slope == 0).all()
