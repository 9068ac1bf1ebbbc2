"""Bigram-Backcopy: triggers copy, everything else follows the table."""

import pytest
import torch

from attnlib.tasks.bigram_backcopy import START, BigramBackcopy

TASK = BigramBackcopy(length=48, symbols=12)


def test_after_a_trigger_the_token_before_it_comes_again():
    tokens, targets, probabilities = TASK.batch(64, 0)
    triggers = TASK.is_trigger(tokens)
    assert triggers.float().mean() > 0.1
    assert not triggers[:, 0].any()
    before = tokens.roll(1, dims=1)
    assert torch.equal(targets[triggers], before[triggers])
    assert (probabilities[triggers] == 1).all()


def test_sequences_begin_with_the_start_token_which_never_returns():
    tokens, targets, _ = TASK.batch(64, 0)
    assert (tokens[:, 0] == START).all()
    assert (tokens[:, 1:] != START).all()
    assert (targets != START).all()
    assert torch.equal(tokens[:, 1:], targets[:, :-1])


def test_no_trigger_follows_a_trigger():
    tokens = TASK.batch(256, 0).tokens
    triggers = TASK.is_trigger(tokens)
    assert not (triggers[:, 1:] & triggers[:, :-1]).any()


def test_plain_tokens_are_followed_as_often_as_the_table_says():
    tokens, targets, probabilities = TASK.batch(3000, 1)
    plain = ~TASK.is_trigger(tokens)
    token = 7
    counts = targets[(tokens == token)].bincount(minlength=TASK.vocabulary)
    shares = counts / counts.sum()
    assert torch.allclose(shares, TASK.table[token], atol=0.02)
    assert torch.allclose(probabilities[plain], TASK.table[tokens, targets][plain])


def test_rows_of_the_table_are_chances_and_triggers_have_none():
    table = TASK.table
    triggers = TASK.is_trigger(torch.arange(TASK.vocabulary))
    assert torch.allclose(table[~triggers].sum(-1), torch.ones(TASK.vocabulary - TASK.triggers))
    assert not table[triggers].any()
    assert torch.allclose(table[4:, triggers].sum(-1), torch.tensor(TASK.trigger_chance))


def test_a_table_is_flat_without_sharpness_and_spiky_with_much():
    def largest(sharpness):
        table = BigramBackcopy(symbols=12, sharpness=sharpness).table
        return table[4:, 4:].max(-1).values / table[4:, 4:].sum(-1)

    assert torch.allclose(largest(0.0), torch.full((9,), 1 / 9))
    assert largest(8.0).mean() > 0.8


def test_the_same_seed_gives_the_same_batch():
    assert torch.equal(TASK.batch(4, 3).tokens, TASK.batch(4, 3).tokens)
    assert not torch.equal(TASK.batch(4, 3).tokens, TASK.batch(4, 4).tokens)


@pytest.mark.parametrize(
    ("options", "kind", "name"),
    [
        ({"length": 0}, ValueError, "length"),
        ({"symbols": 4}, ValueError, "symbols"),
        ({"triggers": 1.5}, TypeError, "triggers"),
        ({"trigger_chance": 0.0}, ValueError, "trigger_chance"),
        ({"trigger_chance": 1.0}, ValueError, "trigger_chance"),
        ({"sharpness": -1.0}, ValueError, "sharpness"),
    ],
)
def test_wrong_sizes_are_refused_by_name(options, kind, name):
    with pytest.raises(kind, match=name):
        BigramBackcopy(**options)
