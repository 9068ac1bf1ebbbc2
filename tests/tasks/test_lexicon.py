"""Sentences with a lexicon: one word decides, and shuffled flags say nothing about it."""

import pytest
import torch

from attnlib.tasks.lexicon import SALIENT, WORDS, sentences


def draw(count=2000, length=20, seed=0, **options):
    return sentences(count, length, torch.Generator().manual_seed(seed), **options)


@pytest.mark.parametrize("length", [1, 2, 20])
def test_shapes_and_words_are_as_stated(length):
    tokens, flags, labels, place = draw(length=length)
    assert tokens.shape == (2000, length) and flags.shape == (2000, length, 1)
    assert labels.shape == place.shape == (2000,)
    assert set(flags.unique().tolist()) == {0.0, 1.0} and flags.dtype == torch.float32
    assert set(labels.tolist()) == {0, 1}
    assert tokens.min() == 0 and tokens.max() == (WORDS - 1 if length > 1 else SALIENT - 1)


def test_exactly_one_word_is_salient_and_stands_at_its_place():
    tokens, _, _, place = draw()
    salient = tokens < SALIENT
    assert (salient.sum(1) == 1).all()
    assert torch.equal(salient.long().argmax(1), place)
    assert set(place.tolist()) == set(range(20))


def test_a_reader_who_finds_the_word_reaches_every_label():
    tokens, _, labels, _ = draw()
    assert torch.equal(tokens.min(1).values % 2, labels)


def test_readers_who_do_not_find_it_are_right_half_of_the_time():
    tokens, flags, labels, place = draw(count=20_000)
    other = tokens.gather(1, (place[:, None] + 1) % 20)[:, 0]
    for guess in (torch.zeros_like(labels), place % 2, other % 2, flags.sum((1, 2)).long() % 2):
        assert abs((guess == labels).float().mean() - 0.5) < 0.015


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.5])
def test_the_lexicon_errs_on_the_stated_share_of_salient_and_other_words(noise):
    tokens, flags, _, _ = draw(count=10_000, noise=noise)
    salient = tokens < SALIENT
    wrong = flags[..., 0].bool() != salient
    assert abs(wrong[salient].float().mean() - noise) < 0.02
    assert abs(wrong[~salient].float().mean() - noise) < 0.005
    assert wrong.any() == (noise > 0)


def test_shuffled_flags_are_as_many_in_each_sentence_and_nothing_else_changes():
    told, shuffled = draw(), draw(informative=False)
    assert torch.equal(told.flags.sum(1), shuffled.flags.sum(1))
    assert not torch.equal(told.flags, shuffled.flags)
    for name in ("tokens", "labels", "place"):
        assert torch.equal(getattr(told, name), getattr(shuffled, name))


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_shuffled_flags_do_not_tell_where_the_word_stands(noise):
    def flagged(batch):
        """Share of flags at the word, and at the other words."""
        at = torch.zeros(batch.tokens.shape, dtype=torch.bool).scatter(
            1, batch.place[:, None], True
        )
        flags = batch.flags[..., 0]
        return flags[at].mean().item(), flags[~at].mean().item()

    word, others = flagged(draw(count=10_000, noise=noise))
    assert word > 0.85 and others < 0.15
    word, others = flagged(draw(count=10_000, noise=noise, informative=False))
    assert abs(word - others) < 0.02


def test_shuffled_flags_stand_anywhere():
    at = draw(count=10_000, informative=False).flags[..., 0].mean(0)
    assert (at - at.mean()).abs().max() < 0.02


def test_a_seed_fixes_the_sentences():
    one, same, other = draw(seed=1), draw(seed=1), draw(seed=2)
    assert all(map(torch.equal, one, same))
    assert not any(map(torch.equal, one, other))


@pytest.mark.parametrize("noise", [-0.1, 0.6, float("nan")])
def test_noise_outside_its_range_is_refused_by_name(noise):
    with pytest.raises(ValueError, match=r"noise must lie in \[0, 0.5\], got"):
        draw(noise=noise)
