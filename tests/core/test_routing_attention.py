"""Routing attention equals its dense definition, and its centroids follow the tokens."""

import pytest
import torch

from attnlib import attend
from attnlib.models import DecoderLM
from attnlib.models.local_and_routed import LocalAndRoutedHeads
from attnlib.read.routing_attention import (
    RoutingAttention,
    dense_routing_attention,
    routing_attention,
    taken_places,
)
from attnlib.read.spherical_k_means import (
    affinity,
    cluster_sizes,
    first_centroids,
    moved_centroids,
    nearest_centroid,
    on_sphere,
)
from attnlib.score import alibi

LENGTHS = [1, 15, 63, 100, 257]


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def clustered(length=60, groups=4, width=8, spread=0.1):
    """Tokens round `groups` directions far apart, in turn: token i belongs to i mod groups."""
    centers = first_centroids(draw(200, width), groups)
    return centers[torch.arange(length) % groups] + spread * draw(length, width, seed=1), centers


def assert_same_read_and_gradients(ours, dense, inputs):
    probe = torch.linspace(-1, 1, dense.numel(), dtype=dense.dtype).view_as(dense)
    assert torch.allclose(ours, dense, rtol=0, atol=1e-12)
    slopes = [torch.autograd.grad((read * probe).sum(), inputs) for read in (ours, dense)]
    for mine, wanted in zip(*slopes, strict=True):
        assert torch.allclose(mine, wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize("length", LENGTHS)
def test_the_causal_read_with_shared_keys_equals_the_dense_definition(length):
    shared, value = (draw(2, 2, length, 6, seed=s).requires_grad_() for s in (0, 1))
    options = {
        "centroids": on_sphere(draw(2, 5, 6, seed=2)),
        "top_k": -(-length // 3),
        "is_causal": True,
        "score_mod": alibi(2),
    }
    ours = routing_attention(shared, shared, value, **options)
    dense = dense_routing_attention(shared, shared, value, **options)
    assert_same_read_and_gradients(ours, dense, (shared, value))


def test_where_each_token_is_in_one_cluster_it_is_attention_inside_the_cluster():
    tokens, centers = clustered()
    value = draw(60, 3, seed=2)
    kind = torch.arange(60) % 4
    same = attend(
        on_sphere(tokens),
        on_sphere(tokens),
        value,
        support=lambda b, h, i, j: kind[i] == kind[j],
        is_causal=True,
    )
    ours = routing_attention(tokens, tokens, value, centroids=centers, top_k=15, is_causal=True)
    assert torch.allclose(ours, same, atol=1e-12)


def test_one_centroid_that_takes_all_tokens_is_full_attention():
    query, key, value = (draw(2, 3, 20, 4, seed=s) for s in range(3))
    ours = routing_attention(query, key, value, centroids=draw(1, 4, seed=3), top_k=20)
    assert torch.allclose(ours, attend(on_sphere(query), on_sphere(key), value), atol=1e-12)


def test_a_token_that_no_centroid_takes_reads_zero():
    tokens, centers = clustered()
    read = routing_attention(tokens, tokens, draw(60, 3), centroids=centers[:3], top_k=15)
    alone = torch.arange(60) % 4 == 3
    assert not read[alone].any()
    assert read[~alone].abs().amax(-1).min() > 0


def test_later_tokens_decide_which_tokens_are_taken():
    tokens, value = draw(12, 4), draw(12, 3, seed=1)
    options = {"centroids": draw(1, 4, seed=2), "top_k": 4, "is_causal": True}
    base = routing_attention(tokens, tokens, value, **options)
    changed = tokens.clone()
    changed[6:] = 5 * options["centroids"] + 0.01 * draw(6, 4, seed=3)
    moved = routing_attention(changed, changed, value, **options) - base
    assert moved[:6].abs().max() > 0.1


def test_centroids_find_the_planted_directions():
    tokens, centers = clustered(length=400, spread=0.3)
    centroids = on_sphere(centers + 1.5 * draw(4, 8, seed=5))
    before = (centroids * centers).sum(-1).min()
    for _ in range(50):
        centroids = moved_centroids(centroids, tokens, decay=0.8)
    assert (centroids * centers).sum(-1).min() > 0.98 * 8 > before
    assert torch.equal(nearest_centroid(tokens, centroids), torch.arange(400) % 4)


def test_an_empty_cluster_stays_where_it_is():
    tokens, centers = clustered()
    centroids = torch.cat((centers, -centers.sum(0, keepdim=True)))
    centroids = on_sphere(centroids)
    assert cluster_sizes(tokens, centroids)[4] == 0
    moved = moved_centroids(centroids, tokens, decay=0.5)
    assert torch.equal(moved[4], centroids[4])
    assert (moved[:4] - centroids[:4]).abs().amax(-1).min() > 0


def test_centroids_of_each_head_and_of_all_heads_move_by_their_tokens():
    tokens = draw(3, 2, 30, 8)
    each = moved_centroids(first_centroids(tokens[0], 4), tokens, decay=0.5)
    one = moved_centroids(first_centroids(tokens[0], 4)[1], tokens[:, 1], decay=0.5)
    assert torch.allclose(each[1], one, atol=1e-12)


def test_zero_vectors_have_no_direction_and_stay_finite():
    tokens = torch.zeros(10, 4, dtype=torch.float64, requires_grad=True)
    read = routing_attention(tokens, tokens, draw(10, 3), centroids=draw(2, 4), top_k=5)
    read.sum().backward()
    assert read.isfinite().all() and tokens.grad.isfinite().all()
    assert not on_sphere(tokens).any()


def test_first_centroids_are_one_of_each_kind():
    tokens, _ = clustered(spread=0.05)
    centroids = first_centroids(tokens, 4)
    assert nearest_centroid(tokens, centroids)[:4].unique().numel() == 4


def test_scores_are_fewest_with_as_many_centroids_as_the_root_of_the_tokens():
    for length in (64, 256, 1024):
        groups = round(length**0.5)
        places = taken_places(draw(length, 4), draw(groups, 4, seed=1), length // groups)
        pairs = places.shape[0] * places.shape[1] ** 2
        assert pairs == length**1.5
        assert affinity(draw(length, 4), draw(groups, 4)).numel() == length**1.5


def test_a_model_moves_its_centroids_in_training_only_and_each_layer_its_own():
    operator = RoutingAttention(8, heads=2, groups=4, top_k=8, decay=0.5)
    model = DecoderLM(10, width=16, heads=2, operator=operator, position="sinusoidal")
    start = operator.centroids.clone()
    tokens = torch.randint(10, (3, 20), generator=torch.Generator().manual_seed(0))
    layers = [block.attention.operator for block in model.blocks]
    model.eval()(tokens)
    assert all(torch.equal(layer.centroids, start) for layer in layers)
    model.train()(tokens).sum().backward()
    assert all(not torch.equal(layer.centroids, start) for layer in layers)
    assert not torch.equal(layers[0].centroids, layers[1].centroids)
    assert "blocks.0.attention.operator.centroids" in model.state_dict()


def test_local_heads_see_their_window_and_routed_heads_their_cluster():
    query, key, value = (draw(1, 4, 20, 8, seed=s) for s in range(3))
    both = LocalAndRoutedHeads(8, heads=4, local_heads=1, window=3, groups=2, top_k=6).double()
    read = both.eval()(query, key, value, is_causal=True)
    near = attend(query, key, value, support=lambda b, h, i, j: (j <= i) & (i - j < 3))
    assert torch.allclose(read[:, :1], near[:, :1], atol=1e-12)
    far = both.routing(query[:, 1:], key[:, 1:], value[:, 1:], is_causal=True)
    assert torch.equal(read[:, 1:], far)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"top_k": 13}, "top_k"),
        ({"top_k": 0}, "top_k"),
        ({"centroids": torch.zeros(2, 3, dtype=torch.float64)}, "centroids"),
        ({"centroids": torch.zeros(0, 4, dtype=torch.float64)}, "centroids"),
        ({"centroids": torch.zeros(3, 2, 4, dtype=torch.float64)}, "centroids"),
        ({"centroids": torch.zeros(2, 4)}, "centroids"),
        ({"centroids": None}, "centroids"),
    ],
)
def test_wrong_input_is_refused_by_name(change, name):
    x = draw(2, 12, 4)
    options = {"centroids": draw(2, 4), "top_k": 6} | change
    with pytest.raises((ValueError, TypeError), match=name):
        routing_attention(x, x, x, **options)


def test_more_groups_than_tokens_and_a_decay_above_one_are_refused():
    with pytest.raises(ValueError, match="groups"):
        first_centroids(draw(3, 4), 4)
    with pytest.raises(ValueError, match="decay"):
        moved_centroids(draw(2, 4), draw(3, 4), decay=1.5)
    with pytest.raises(ValueError, match="heads"):
        LocalAndRoutedHeads(8, heads=2, local_heads=2, window=3, groups=2, top_k=6)
