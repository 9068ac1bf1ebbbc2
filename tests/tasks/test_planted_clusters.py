"""Planted clusters: the answer stands at an earlier token of the same kind, near or far."""

import pytest
import torch

from attnlib.tasks.planted_clusters import NoisyClusters, PlantedClusters
from attnlib.tasks.task import IGNORE


@pytest.mark.parametrize("arrangement", ["interleaved", "contiguous"])
def test_every_question_is_answered_by_an_earlier_token_of_its_kind(arrangement):
    task = PlantedClusters(length=24, kinds=4, values=5, shown=2, arrangement=arrangement)
    tokens, targets = task.batch(8, 0)
    kind = task.kind_of(tokens)
    assert tokens.shape == targets.shape == (8, 24) and tokens.max() < task.vocabulary
    assert (kind[..., None] == torch.arange(4)).sum(1).eq(6).all()
    for row, target in zip(tokens.tolist(), targets.tolist(), strict=True):
        known = {}
        for token, wanted in zip(row, target, strict=True):
            own, value = divmod(token, 6)
            if value < 5:
                assert wanted == IGNORE and known.setdefault(own, value) == value
            else:
                assert wanted == known[own]
    assert task.shows(tokens).sum() == 8 * 4 * 2


def test_contiguous_kinds_stand_in_runs_and_interleaved_ones_do_not():
    kind = {
        arrangement: (task := PlantedClusters(arrangement=arrangement)).kind_of(
            task.batch(4, 0).tokens
        )
        for arrangement in ("interleaved", "contiguous")
    }
    changes = {name: (k[:, 1:] != k[:, :-1]).sum(1) for name, k in kind.items()}
    assert changes["contiguous"].eq(11).all()
    assert changes["interleaved"].min() > 100


def test_a_seed_repeats_its_batch():
    task = PlantedClusters()
    assert torch.equal(task.batch(3, 5).tokens, task.batch(3, 5).tokens)
    assert not torch.equal(task.batch(3, 5).tokens, task.batch(3, 6).tokens)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"length": 25, "kinds": 4}, "kinds"),
        ({"length": 24, "kinds": 4, "shown": 6}, "shown"),
        ({"arrangement": "sorted"}, "arrangement"),
    ],
)
def test_wrong_sizes_are_refused_by_name(options, name):
    with pytest.raises(ValueError, match=name):
        PlantedClusters(**options)


@pytest.mark.parametrize("arrangement", ["interleaved", "contiguous"])
def test_noisy_clusters_show_the_value_of_their_kind_with_the_stated_chance(arrangement):
    task = NoisyClusters(arrangement=arrangement)
    tokens, targets = task.batch(200, 0)
    kind = task.kind_of(tokens)
    assert (kind[..., None] == torch.arange(8)).sum(1).eq(8).all()
    for k in range(8):
        of_kind = targets[kind == k].view(200, 8)
        assert of_kind.eq(of_kind[:, :1]).all()
    right = (tokens % 8 == targets).double().mean().item()
    assert abs(right - task.alone) < 0.01


@pytest.mark.parametrize(
    ("options", "name"), [({"length": 25}, "kinds"), ({"truth": 1.5}, "truth")]
)
def test_noisy_clusters_refuse_wrong_sizes_by_name(options, name):
    with pytest.raises(ValueError, match=name):
        NoisyClusters(**options)
