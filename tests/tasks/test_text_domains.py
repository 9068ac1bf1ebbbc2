"""Texts of several domains: the words, the tables, the distances, and the exact chances."""

import pytest
import torch

from attnlib.tasks.text_domains import TextDomains, best_loss


def test_the_next_word_hangs_on_the_word_at_the_domains_distance():
    task = TextDomains(shared=3, own=2, length=40, distances=(1, 3))
    batch, tables = task.batch(400, 0), task.tables
    for domain, distance in enumerate(task.distances):
        here = batch.domain == domain
        tokens, targets = batch.tokens[here], batch.targets[here]
        assert torch.isin(tokens, task.words(domain)).all()
        deciding = tokens[:, : tokens.shape[1] + 1 - distance]
        following = targets[:, distance - 1 :]
        counts = torch.zeros(task.vocabulary, task.vocabulary)
        counts.index_put_((deciding, following), torch.tensor(1.0), accumulate=True)
        words = task.words(domain)
        counts = counts[words][:, words]
        shares = counts / counts.sum(1, keepdim=True)
        wanted = tables[domain][words][:, words]
        assert (shares - wanted).abs().max() < 0.08
        probabilities = batch.probabilities[here][:, distance - 1 :]
        assert torch.allclose(probabilities, tables[domain][deciding, following])


def test_targets_are_the_next_tokens_and_seeds_repeat():
    task = TextDomains(length=9)
    batch, again = task.batch(5, 3), task.batch(5, 3)
    assert torch.equal(batch.tokens[:, 1:], batch.targets[:, :-1])
    assert all(torch.equal(*pair) for pair in zip(batch, again, strict=True))
    assert batch.tokens.shape == batch.probabilities.shape == (5, 9)


def test_one_domain_alone():
    task = TextDomains()
    batch = task.of(2).batch(20, 0)
    assert (batch.domain == 2).all() and torch.isin(batch.tokens, task.words(2)).all()
    assert task.of(2).vocabulary == task.vocabulary and torch.equal(task.of(2).tables, task.tables)


def test_the_best_loss_lies_between_certainty_and_guessing():
    loss = best_loss(TextDomains().batch(50, 0))
    assert 1.5 < loss < 2.5


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="distances"):
        TextDomains(distances=())
    with pytest.raises(ValueError, match="distances"):
        TextDomains(distances=(0, 1))
    with pytest.raises(ValueError, match="only"):
        TextDomains(only=3)
    with pytest.raises(ValueError, match="own"):
        TextDomains(own=0)
