"""Retrieval downhill: energies fall, patterns come back, one step is softmax attention."""

import pytest
import torch

from attnlib.memory.energy import energy
from attnlib.memory.hopfield import (
    classical_hopfield_energy,
    classical_hopfield_retrieve,
    classical_hopfield_weights,
    hopfield_attention,
    hopfield_energy,
    hopfield_retrieve,
    separation,
)
from attnlib.weight.softmax_attention import softmax_attention


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("beta", [0.1, 1.0, 8.0])
def test_the_energy_never_rises_and_is_never_negative(beta):
    stored, query = normal(2, 12, 6), 2 * normal(2, 30, 6, seed=1)
    energies = torch.stack(
        [
            hopfield_energy(
                hopfield_retrieve(query, stored, beta=beta, steps=steps), stored, beta=beta
            )
            for steps in range(6)
        ]
    )
    assert (energies >= 0).all()
    assert (energies.diff(dim=0) <= 1e-12).all()
    assert (energies[0] - energies[-1]).min() > 0


def test_a_step_is_softmax_attention_and_the_slope_of_the_energy_is_what_it_moves():
    stored, query = normal(5, 4), normal(3, 4, seed=1).requires_grad_()
    step = hopfield_retrieve(query, stored, beta=1.7)
    assert torch.allclose(step, softmax_attention(query, stored, stored, scale=1.7), atol=1e-13)
    (slope,) = torch.autograd.grad(hopfield_energy(query, stored, beta=1.7).sum(), query)
    assert torch.allclose(slope, query - step, atol=1e-12)


def test_its_first_term_is_the_energy_of_a_read():
    stored, query = normal(5, 4), normal(3, 4, seed=1)
    known = energy(query, stored, stored, torch.zeros_like(query), scale=2.0)
    constant = torch.tensor(5.0).double().log() / 2 + stored.square().sum(-1).max() / 2
    wanted = query.square().sum(-1) / 2 - known / 2 + constant
    assert torch.allclose(hopfield_energy(query, stored, beta=2.0), wanted, atol=1e-12)


def test_a_noisy_pattern_comes_back_and_a_low_beta_gives_the_mean():
    stored = normal(20, 64)
    noisy = stored + 0.3 * normal(20, 64, seed=1)
    assert separation(stored).min() > 5
    assert torch.allclose(hopfield_retrieve(noisy, stored, beta=1.0), stored, atol=1e-6)
    mean = hopfield_retrieve(noisy, stored, beta=1e-6, steps=3)
    assert torch.allclose(mean, stored.mean(0).expand(20, 64), atol=1e-3)


def test_separation_is_the_gap_to_the_nearest_rival():
    stored = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]]).double()
    assert separation(stored).tolist() == [2.0, 0.0, 0.0]


def test_one_step_of_the_operator_is_softmax_attention_and_more_steps_are_not():
    query, key, value = normal(2, 5, 4), normal(2, 7, 4, seed=1), normal(2, 7, 3, seed=2)
    plain = softmax_attention(query, key, value)
    assert torch.equal(hopfield_attention(query, key, value), plain)
    walked = hopfield_retrieve(query, key, beta=0.5, steps=2)
    assert torch.allclose(
        hopfield_attention(query, key, value, beta=0.5, steps=3),
        softmax_attention(walked, key, value, scale=0.5),
        atol=1e-13,
    )
    assert not torch.allclose(hopfield_attention(query, key, value, steps=3), plain, atol=1e-3)


def test_the_classical_network_restores_few_patterns_and_its_energy_never_rises():
    stored = normal(5, 100).sign()
    weights = classical_hopfield_weights(stored)
    assert not weights.diagonal().any()
    noisy = stored.clone()
    noisy[:, :10] *= -1
    assert torch.equal(classical_hopfield_retrieve(noisy, weights), stored)
    energies = torch.stack(
        [
            classical_hopfield_energy(
                classical_hopfield_retrieve(noisy, weights, sweeps=sweeps), weights
            )
            for sweeps in range(4)
        ]
    )
    assert (energies.diff(dim=0) <= 1e-12).all()
    many = normal(60, 100, seed=1).sign()
    crowded = classical_hopfield_retrieve(many, classical_hopfield_weights(many))
    assert not torch.equal(crowded, many)


def test_wrong_input_is_named():
    stored, query = normal(5, 4), normal(3, 4)
    cases = [
        (lambda: hopfield_energy(query, stored, beta=0.0), "beta must be a positive"),
        (lambda: hopfield_energy(query[:, :3], stored, beta=1.0), "query must have shape"),
        (lambda: hopfield_retrieve(query, stored[:0], beta=1.0), "stored must have shape"),
        (lambda: hopfield_retrieve(query, stored, beta=1.0, steps=-1), "steps must be at least"),
        (lambda: hopfield_attention(query, stored, stored, steps=0), "steps must be at least 1"),
        (lambda: hopfield_attention(query, stored, stored, beta=-1.0), "beta must be a positive"),
        (lambda: separation(stored[:1]), "n of at least 2"),
        (lambda: classical_hopfield_weights(stored), "plus and minus one alone"),
        (lambda: classical_hopfield_retrieve(query, stored), "weights must have shape"),
    ]
    for call, words in cases:
        with pytest.raises(ValueError, match=words):
            call()
