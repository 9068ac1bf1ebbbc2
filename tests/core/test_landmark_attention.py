"""Landmarks: first blocks share the weight, then the keys of each block do."""

import pytest
import torch

from attnlib.counting import largest_tensor
from attnlib.models.landmark_language import LandmarkHeads, LandmarkLM
from attnlib.read.landmark_attention import (
    dense_landmark_attention,
    landmark_attention,
    landmark_weights,
)
from attnlib.weight.grouped_softmax import grouped_softmax
from attnlib.weight.softmax import softmax

BLOCK = 8


def draw(queries, keys, lead=(2, 2), seed=0):
    """Query, key, value and one landmark a block."""
    generator = torch.Generator().manual_seed(seed)
    lengths = (queries, 6), (keys, 6), (keys, 5), (-(-keys // BLOCK), 6)
    return [
        torch.randn(*lead, length, width, generator=generator, dtype=torch.double).requires_grad_()
        for length, width in lengths
    ]


def assert_same_read_and_gradients(got, wanted, inputs):
    assert torch.allclose(got, wanted, rtol=0, atol=1e-12)
    probe = torch.linspace(-1, 1, wanted.numel(), dtype=wanted.dtype).view_as(wanted)
    options = {"allow_unused": True, "materialize_grads": True}
    slopes = [torch.autograd.grad((x * probe).sum(), inputs, **options) for x in (got, wanted)]
    for ours, theirs in zip(*slopes, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", [1, 15, 63, 100, 257])
@pytest.mark.parametrize("is_causal", [True, False])
def test_retrieved_blocks_give_the_read_and_gradients_of_the_definition(length, is_causal):
    *inputs, landmark = draw(length, length + 2)
    blocks = landmark.shape[-2]
    for top_k in {0, min(2, blocks), blocks}:
        options = {
            "landmark": landmark,
            "block_size": BLOCK,
            "top_k": top_k,
            "is_causal": is_causal,
            "query_offset": 2,
        }
        got = landmark_attention(*inputs, **options)
        wanted = dense_landmark_attention(*inputs, **options)
        assert_same_read_and_gradients(got, wanted, [*inputs, landmark])


def weights_by_hand(query, key, landmark, block_size):
    """The two cases of the definition, pair by pair, for one head."""
    scale = query.shape[-1] ** -0.5
    table = torch.zeros(len(query), len(key), dtype=query.dtype)
    for i in range(len(query)):
        own = i // block_size
        near = [j for j in range(len(key)) if j // block_size == own and j <= i]
        shared = [query[i] @ key[j] for j in near] + [query[i] @ landmark[b] for b in range(own)]
        first = torch.softmax(scale * torch.stack(shared), 0)
        table[i, near] = first[: len(near)]
        for b in range(own):
            inside = torch.softmax(scale * key[b * block_size : (b + 1) * block_size] @ query[i], 0)
            table[i, b * block_size : (b + 1) * block_size] = first[len(near) + b] * inside
    return table


def test_the_weights_are_those_of_the_two_cases_and_sum_to_one():
    query, key, _, landmark = (x[0, 0].detach() for x in draw(27, 27))
    weights = landmark_weights(query, key, landmark, torch.arange(27), block_size=BLOCK)
    assert torch.allclose(weights, weights_by_hand(query, key, landmark, BLOCK), atol=1e-14)
    assert torch.allclose(weights.sum(-1), torch.ones(27, dtype=torch.double))


def test_one_group_is_a_softmax_and_every_group_sums_to_one():
    scores = torch.randn(3, 4, 12, dtype=torch.double)
    support = torch.rand(4, 12) < 0.8
    one = torch.zeros(12, dtype=torch.long)
    assert torch.allclose(grouped_softmax(scores, one, support), softmax(scores, support))
    groups = torch.arange(12) // 4
    sums = grouped_softmax(scores, groups, support).unflatten(-1, (3, 4)).sum(-1)
    assert torch.allclose(sums, support.unflatten(-1, (3, 4)).any(-1).double().expand(3, 4, 3))


def test_a_group_without_support_has_no_weight_and_large_scores_stay_finite():
    scores = torch.tensor([[1e4, -1e4, 1e4, 0.0]], requires_grad=True)
    groups, support = torch.tensor([0, 0, 1, 1]), torch.tensor([True, True, False, False])
    weights = grouped_softmax(scores, groups, support)
    assert weights.tolist() == [[1.0, 0.0, 0.0, 0.0]]
    assert torch.autograd.grad(weights.square().sum(), scores)[0].isfinite().all()


def test_a_landmark_rules_how_much_of_its_block_is_read():
    query, key, value, landmark = (x.detach() for x in draw(24, 24))
    quiet = landmark.clone()
    quiet[..., 0, :] = -1e3 * query[..., 23, :]
    weights = landmark_weights(query, key, quiet, torch.arange(24), block_size=BLOCK)
    assert not weights[..., 23, :8].any() and weights[..., 23, 8:].all()
    retrieved = landmark_attention(query, key, value, landmark=quiet, block_size=BLOCK, top_k=1)[
        ..., 23, :
    ]
    wanted = (weights @ value)[..., 23, :]
    assert torch.allclose(retrieved, wanted, atol=1e-12)


def test_retrieval_makes_no_matrix_of_all_pairs():
    query, key, value = (torch.randn(1, 512, 8) for _ in range(3))
    options = {"landmark": key[:, ::32], "block_size": 32, "top_k": 2}
    made = largest_tensor(lambda: landmark_attention(query, key, value, **options))
    assert made <= 512 * 32


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"block_size": 4}, ValueError, r"landmark must have shape \(2, 2, 3, 6\)"),
        ({"top_k": 3}, ValueError, "top_k must be at most the number of blocks, 2, got 3"),
        ({"top_k": -1}, ValueError, "top_k must be at least 0, got -1"),
        ({"landmark": None}, TypeError, "landmark must be a torch.Tensor"),
        ({"query_positions": torch.arange(3)}, ValueError, "query_positions must be 12 whole"),
    ],
)
def test_wrong_options_are_named(options, kind, message):
    *inputs, landmark = draw(12, 12)
    with pytest.raises(kind, match=message):
        landmark_attention(*inputs, **{"landmark": landmark, "block_size": 8, **options})


def test_groups_that_are_no_numbers_are_refused():
    scores, support = torch.zeros(1, 3), torch.ones(3, dtype=torch.bool)
    with pytest.raises(ValueError, match="groups must be integers from 0, got -1"):
        grouped_softmax(scores, torch.tensor([0, -1, 1]), support)
    with pytest.raises(ValueError, match=r"groups must be integers from 0, got torch\.float32"):
        grouped_softmax(scores, torch.zeros(3), support)


def test_landmarks_of_a_model_see_their_block_and_nothing_later():
    model = LandmarkLM(11, block_size=4, width=16, heads=2, layers=2).double()
    tokens = torch.randint(11, (2, 14), generator=torch.Generator().manual_seed(0))
    whole = model(tokens)
    assert whole.shape == (2, 14, 11)
    for cut in (3, 8, 13):
        assert torch.allclose(model(tokens[:, :cut]), whole[:, :cut], rtol=0, atol=1e-10)
    model.retrieve(3)
    assert torch.allclose(model(tokens), whole, rtol=0, atol=1e-10)  # all the past blocks
    model.retrieve(0)
    assert not torch.allclose(model(tokens)[:, 4:], whole[:, 4:], rtol=0, atol=1e-3)


def test_the_places_of_tokens_and_landmarks_follow_from_the_length():
    heads = LandmarkHeads(4)
    for tokens in range(1, 14):
        marks = -(-tokens // 4)
        query = torch.randn(1, tokens + marks, 6, dtype=torch.double)
        read = heads(query, query, query)
        wanted = landmark_attention(
            query[:, :tokens],
            query[:, :tokens],
            query[:, :tokens],
            landmark=query[:, tokens:],
            block_size=4,
        )
        assert torch.allclose(read[:, :tokens], wanted, rtol=0, atol=1e-12)
