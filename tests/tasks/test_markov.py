"""A text that needs no attention: its statistics, its best loss, its seeds."""

import torch

from attnlib.tasks.markov import Markov

TASK = Markov(length=40, symbols=6)


def test_shapes_and_that_each_target_is_the_next_token():
    batch = TASK.batch(3, 0)
    assert batch.tokens.shape == batch.targets.shape == batch.probabilities.shape == (3, 40)
    assert torch.equal(batch.tokens[:, 1:], batch.targets[:, :-1])
    assert TASK.vocabulary == 6


def test_the_same_seed_gives_the_same_text_and_another_seed_another():
    assert torch.equal(TASK.batch(3, 0).tokens, TASK.batch(3, 0).tokens)
    assert not torch.equal(TASK.batch(3, 0).tokens, TASK.batch(3, 1).tokens)


def test_successors_come_as_often_as_the_table_says():
    batch = TASK.batch(500, 0)
    counts = torch.zeros(6, 6)
    pairs = (batch.tokens.flatten(), batch.targets.flatten())
    counts.index_put_(pairs, torch.ones(len(pairs[0])), accumulate=True)
    assert (counts / counts.sum(-1, keepdim=True) - TASK.table).abs().max() < 0.05
    assert torch.equal(batch.probabilities, TASK.table[batch.tokens, batch.targets])


def test_nothing_before_the_present_token_tells_of_the_next():
    batch = TASK.batch(2000, 0)
    before, now, then = batch.tokens[:, :-1], batch.tokens[:, 1:], batch.targets[:, 1:]
    compared = 0
    for earlier in range(6):
        for present in range(6):
            share = torch.bincount(then[(before == earlier) & (now == present)], minlength=6)
            if share.sum() > 1000:
                compared += 1
                expected = TASK.table[present].double()
                assert (share.double() / share.sum() - expected).abs().max() < 0.05
    assert compared > 10
