"""The study beside the companion of 1.4: its matrices are those of the layers, its null is fair."""

import pytest
import torch
from page import ROOT
from torch import nn

from attnlib.study import load_code

STUDY = load_code(ROOT / "chapters" / "1-foundations" / "exact-and-cached-in-practice.study.py")


class Gain(nn.Module):
    """The gain of a norm without its division, so that scores are bilinear."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x):
        return x * self.weight


def layer_of(attention):
    """A layer in float64 whose norm of the latent, if it has one, is linear."""
    torch.manual_seed(0)
    layer = STUDY.ATTENTIONS[attention](STUDY.WIDTH, STUDY.HEADS, is_causal=True).double()
    if hasattr(layer, "norm"):
        layer.norm = Gain(nn.Parameter(torch.rand(STUDY.LATENT, dtype=torch.float64) + 0.5))
    return layer


@pytest.mark.parametrize("attention", STUDY.ATTENTIONS)
def test_the_matrix_gives_the_scores_of_all_heads_together(attention):
    layer = layer_of(attention)
    x, y = torch.randn(2, 1, 1, STUDY.WIDTH, dtype=torch.float64)  # position 0: no rotation
    if attention == "multi-head":
        query, key = layer.to_query(x), layer.to_key(y)
    else:
        query, (key, _) = layer.queries(x), layer.keys_and_values(*layer.keep(y))
    scores = (query * key).sum()
    matrix = STUDY.total(STUDY.terms_of(layer))
    torch.testing.assert_close(x[0, 0] @ matrix @ y[0, 0], scores, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("attention", STUDY.ATTENTIONS)
def test_shuffling_keeps_the_entries_of_every_factor_and_moves_them(attention):
    terms = STUDY.terms_of(layer_of(attention))
    moved = STUDY.shuffled(terms, torch.Generator().manual_seed(0))
    for term, other in zip(terms, moved, strict=True):
        for factor, shuffle in zip(term, other, strict=True):
            assert factor.shape == shuffle.shape and not torch.equal(factor, shuffle)
            assert torch.equal(factor.flatten().sort().values, shuffle.flatten().sort().values)


def planted(strength, seed=0):
    """Two Gaussian factors that share a direction of this strength."""
    generator = torch.Generator().manual_seed(seed)
    factors = [torch.randn(32, 32, dtype=torch.float64, generator=generator) for _ in range(2)]
    u = torch.randn(32, 1, dtype=torch.float64, generator=generator)
    return [[factors[0] + strength * u @ u.T, factors[1] + strength * u @ u.T]]


def test_a_planted_direction_is_one_outlier_and_lowers_both_ranks():
    generator = torch.Generator().manual_seed(1)
    plain = STUDY.diagnosis(planted(0.0), generator)
    spiked = STUDY.diagnosis(planted(1.0), generator)
    assert plain["outliers"] == 0 and spiked["outliers"] == 1
    assert spiked["soft_rank"] < 1 < plain["soft_rank"]
    assert spiked["relative_stable_rank"] < 0.5 < plain["relative_stable_rank"]


def test_the_stable_rank_of_equal_singular_values_is_their_number():
    eye = torch.eye(7, dtype=torch.float64)
    assert STUDY.stable_rank(STUDY.spectrum(3 * eye)) == pytest.approx(7)
    assert STUDY.stable_rank(STUDY.spectrum(torch.outer(eye[0], eye[1]))) == pytest.approx(1)


def test_the_mean_of_a_row_counts_only_the_keys_that_it_sees():
    weights = torch.tensor([[0.75, 0.25, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])
    assert STUDY.row_mean(weights).flatten().tolist() == [0.5, 0.25]
