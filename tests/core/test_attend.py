"""`attend` against sums done by hand and against PyTorch's own attention."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from attnlib import additive_attention, attend, softmax_attention
from attnlib.read import merge_heads, split_heads, weighted_sum
from attnlib.score import additive, dot_product, general
from attnlib.support import causal, document, padding, window
from attnlib.weight import hardmax, softmax, uniform

E = math.e


def tensors(queries=5, keys=7, width=4, value_width=3, heads=2, key_heads=None, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    key_heads = key_heads or heads
    return (
        normal(2, heads, queries, width),
        normal(2, key_heads, keys, width),
        normal(2, key_heads, keys, value_width),
    )


def close(got, wanted):
    return torch.allclose(got, wanted, rtol=1e-12, atol=1e-12)


def test_two_keys_with_scores_zero_and_one_have_weights_one_and_e_over_their_sum():
    query = torch.tensor([[1.0]], dtype=torch.float64)
    key = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    value = torch.tensor([[10.0], [20.0]], dtype=torch.float64)
    read, weights = attend(query, key, value, return_weights=True)
    assert close(weights, torch.tensor([[1, E]], dtype=torch.float64) / (1 + E))
    assert close(read, torch.tensor([[(10 + 20 * E) / (1 + E)]], dtype=torch.float64))


def test_the_scale_is_one_over_the_root_of_the_width():
    query = torch.ones(1, 4, dtype=torch.float64)
    key = torch.stack((torch.zeros(4), torch.full((4,), 0.5))).double()
    _, weights = attend(query, key, key, return_weights=True)  # scores 0 and 4 * 0.5 / sqrt(4)
    assert close(weights, torch.tensor([[1, E]], dtype=torch.float64) / (1 + E))
    _, weights = attend(query, key, key, scale=1.0, return_weights=True)
    assert close(weights, torch.tensor([[1, E**2]], dtype=torch.float64) / (1 + E**2))


def test_causal_rows_read_their_own_past():
    zeros, value = torch.zeros(3, 1).double(), torch.tensor([[1.0], [3.0], [8.0]]).double()
    assert close(
        attend(zeros, zeros, value, is_causal=True), torch.tensor([[1], [2], [4]]).double()
    )


def test_an_offset_shifts_the_causal_rule():
    zeros, value = torch.zeros(3, 1).double(), torch.tensor([[1.0], [3.0], [8.0]]).double()
    read = attend(zeros[:1], zeros, value, is_causal=True, query_offset=1)
    assert close(read, torch.tensor([[2.0]]).double())


@pytest.mark.parametrize(("queries", "keys"), [(5, 7), (7, 5), (6, 6), (1, 1), (257, 100)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_attend_equals_pytorch_with_gradients(queries, keys, is_causal):
    ours = [tensor.requires_grad_() for tensor in tensors(queries, keys)]
    theirs = [tensor.detach().requires_grad_() for tensor in ours]
    got = softmax_attention(*ours, is_causal=is_causal)
    wanted = scaled_dot_product_attention(*theirs, is_causal=is_causal)
    assert close(got, wanted)
    got.square().sum().backward()
    wanted.square().sum().backward()
    assert all(close(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True))


def test_masks_scale_and_grouped_heads_equal_pytorch():
    query, key, value = tensors(heads=6, key_heads=2)
    mask = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(3)) < 0.6
    mask[..., 0] = True
    options = {"attn_mask": mask, "scale": 0.3, "enable_gqa": True}
    wanted = scaled_dot_product_attention(query, key, value, **options)
    assert close(attend(query, key, value, **options), wanted)


def test_the_support_is_the_intersection_of_all_that_limits_it():
    query, key, value = tensors(6, 6)
    mask = torch.ones(6, 6, dtype=torch.bool)
    mask[:, 2] = False
    _, weights = attend(
        query, key, value, support=window(3), attn_mask=mask, is_causal=True, return_weights=True
    )
    i, j = torch.arange(6)[:, None], torch.arange(6)
    assert torch.equal(weights[0, 0] > 0, (j <= i) & (i - j < 3) & (j != 2))


def test_predicates_see_batch_head_and_shifted_query():
    query, key, value = tensors(3, 5)
    lengths, ids = torch.tensor([5, 2]), torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 2, 2]])
    seen = []

    def spy(b, h, q_idx, kv_idx):
        seen.append((b.flatten().tolist(), h.flatten().tolist(), q_idx.flatten().tolist()))
        return kv_idx >= 0

    attend(query, key, value, support=spy, query_offset=2)
    assert seen == [([0, 1], [0, 1], [2, 3, 4])]
    support = padding(lengths) & document(ids)
    _, weights = attend(query, key, value, support=support, query_offset=2, return_weights=True)
    assert weights[0, 0, 0].gt(0).tolist() == [False, False, True, True, True]
    assert weights[1, 0, 0].gt(0).tolist() == [False, True, False, False, False]


def test_leading_dimensions_are_numbered_through():
    query, key, value = (x.unflatten(0, (2, 1)) for x in tensors())
    support = padding(torch.tensor([7, 3]))
    got = attend(query, key, value, support=support)
    flat = attend(*(x.flatten(0, 1) for x in (query, key, value)), support=support)
    assert close(got.flatten(0, 1), flat)


def test_score_read_and_weight_can_be_replaced():
    query, key, value = tensors()
    assert close(attend(query, key, value, weight=uniform)[..., 0, :], value.mean(-2))
    winner = (query @ key.mT).argmax(-1)
    wanted = torch.stack([value[0, 0, j] for j in winner[0, 0]])
    assert close(attend(query, key, value, weight=hardmax)[0, 0], wanted)
    double = attend(query, key, value, read=lambda weights, value: 2 * weighted_sum(weights, value))
    assert close(double, 2 * attend(query, key, value))


def test_uniform_counts_the_keys_of_the_support():
    query, key, value = tensors(4, 4)
    _, weights = attend(query, key, value, weight=uniform, support=causal, return_weights=True)
    assert close(weights[0, 0].diagonal(), 1 / torch.arange(1, 5).double())


def test_weights_are_zero_outside_the_support_and_in_empty_rows():
    scores = torch.tensor([[1e4, 2.0, 3.0], [1.0, 2.0, 3.0]]).double()
    support = torch.tensor([[False, True, True], [False, False, False]])
    for weight in (softmax, uniform, hardmax):
        weights = weight(scores, support)
        assert weights[0, 0] == 0 and weights[0].sum() == 1 and not weights[1].any()


def test_additive_attention_is_a_softmax_over_the_scores_of_each_pair():
    query, key, value = tensors(3, 4, width=2)
    generator = torch.Generator().manual_seed(1)
    matrices = [
        torch.randn(shape, generator=generator).double() for shape in ((5, 2), (5, 2), (5,))
    ]
    W, U, v = matrices
    scores = torch.empty(3, 4, dtype=torch.float64)
    for i in range(3):
        for j in range(4):
            scores[i, j] = v @ torch.tanh(W @ query[0, 0, i] + U @ key[0, 0, j])
    names = ("query_matrix", "key_matrix", "vector")
    got = additive_attention(query, key, value, **dict(zip(names, matrices, strict=True)))
    assert close(got[0, 0], torch.softmax(scores, -1) @ value[0, 0])
    assert close(additive(W, U, v)(query, key)[0, 0], scores)


def test_general_scores_are_a_bilinear_form():
    query, key, _ = tensors()
    matrix = torch.randn(4, 4, generator=torch.Generator().manual_seed(1)).double()
    wanted = torch.einsum("bhid,de,bhje->bhij", query, matrix, key)
    assert close(general(matrix)(query, key), wanted)
    assert close(general(torch.eye(4).double())(query, key), dot_product(query, key, scale=1.0))


def test_heads_are_split_and_merged_without_mixing():
    x = torch.arange(24.0).view(1, 4, 6)
    assert split_heads(x, 2)[0, 1, 0].tolist() == [3.0, 4.0, 5.0]
    assert torch.equal(merge_heads(split_heads(x, 2)), x)
