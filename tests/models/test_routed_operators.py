"""Routed operators that need the width of a head alone drop into the small models."""

import pytest
import torch

from attnlib.models import DecoderLM, VisionTransformer
from attnlib.models.routed_operators import GroupedQueries, RoutedShares
from attnlib.read.mixture_of_groups import dense_mixture_of_groups
from attnlib.read.routing_attention import dense_routing_attention
from attnlib.tasks import Copy
from attnlib.training import train


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("operator", [RoutedShares, GroupedQueries])
def test_a_vision_model_takes_it_and_every_part_learns(operator):
    model = VisionTransformer(8, 4, 3, width=16, operator=operator)
    model(draw(2, 1, 8, 8)).sum().backward()
    slopes = [part.grad for part in model.blocks.parameters()]
    assert all(slope is not None and slope.isfinite().all() for slope in slopes)


def test_a_language_model_with_grouped_queries_trains_and_does_not_see_the_future():
    task = Copy(count=4, symbols=6)
    model = DecoderLM(task.vocabulary, width=16, operator=GroupedQueries, position="learned")
    history = train(model, task.batches(16, 0), steps=30, progress=False)
    assert history.loss[-5:].mean() < history.loss[:5].mean()
    tokens = task.batch(2, 1).tokens
    changed = tokens.clone()
    changed[:, 4:] = 0
    torch.testing.assert_close(model(tokens)[:, :4], model(changed)[:, :4])


def test_they_read_by_the_dense_definitions():
    query, key, value = (draw(2, 3, 11, 8, seed=s) for s in range(3))
    routed, grouped = RoutedShares(8, groups=3).eval(), GroupedQueries(8, groups=3)
    wanted = dense_routing_attention(query, key, value, centroids=routed.centroids, top_k=4)
    torch.testing.assert_close(routed(query, key, value), wanted)
    wanted = dense_mixture_of_groups(query, key, value, routes=grouped.to_route(query))
    torch.testing.assert_close(grouped(query, key, value), wanted)


def test_centroids_move_in_training_mode_alone():
    operator, x = RoutedShares(8, decay=0.5), draw(2, 3, 11, 8)
    start = operator.centroids.clone()
    operator.eval()(x, x, x)
    assert torch.equal(operator.centroids, start)
    operator.train()(x, x, x)
    assert not torch.equal(operator.centroids, start)


@pytest.mark.parametrize("operator", [RoutedShares, GroupedQueries])
def test_no_groups_are_refused(operator):
    with pytest.raises(ValueError, match="groups"):
        operator(8, groups=0)
