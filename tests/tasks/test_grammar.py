"""The grammar: dependencies are real, chances are exact, and each has its chance level."""

from collections import Counter

import pytest
import torch

from attnlib.tasks.grammar import (
    CLOSING,
    NOUNS,
    OPENING,
    PLURAL,
    TOKEN,
    WORDS,
    Grammar,
    best_loss,
    decode,
    encode,
    right_choices,
)

GRAMMAR = Grammar()
DOCUMENTS = [GRAMMAR.document(seed) for seed in range(200)]


def decided_by_the_rules(words):
    """Position -> right word for all dependencies, found again from the words alone."""
    right, open_brackets, subjects = {}, [], []
    for place, word in enumerate(words):
        starts = words[place - 1] == "the" and words[place - 2] in (".", *OPENING)
        if starts:
            subjects.append(word)
        if word in ("is", "are") and place > 1:  # "this is about" has no subject
            right[place] = "are" if subjects[-1] in PLURAL else "is"
        if word in OPENING:
            open_brackets.append(word)
        if word in CLOSING:
            right[place] = CLOSING[OPENING.index(open_brackets.pop())]
    right[len(words) - 3] = words[4]
    return right


def test_an_oracle_of_the_rules_finds_every_dependency_and_its_right_word():
    for document in DOCUMENTS:
        marked = {item.position: item.right for item in document.dependencies}
        assert marked == decided_by_the_rules(document.words)


def test_the_source_alone_decides_the_word():
    for item in (item for document in DOCUMENTS[:50] for item in document.dependencies):
        assert item.right not in item.wrong
        assert item.distance > 0
        assert item.chance == 1 / (1 + len(item.wrong))


def test_kinds_reach_back_near_and_far():
    reach = {"agreement": 0, "bracket": 0, "topic": 0}
    for document in DOCUMENTS:
        for item in document.dependencies:
            reach[item.kind] = max(reach[item.kind], item.distance)
    assert reach["agreement"] == 7
    assert reach["bracket"] > 10
    assert reach["topic"] > 50


def test_the_right_word_is_as_likely_as_each_wrong_one_without_its_source():
    items = [item for document in DOCUMENTS for item in document.dependencies]
    verbs = Counter(item.right for item in items if item.kind == "agreement")
    brackets = Counter(item.right for item in items if item.kind == "bracket")
    assert abs(verbs["is"] / verbs.total() - 1 / 2) < 0.06
    assert abs(brackets[")"] / brackets.total() - 1 / 2) < 0.06
    topics = Counter(item.right for item in items if item.kind == "topic")
    assert set(topics) == set(NOUNS)


def test_the_stated_chances_are_the_frequencies():
    after, chance = Counter(), {}
    for document in (GRAMMAR.document(seed) for seed in range(1000)):
        words, chances = document.words, document.probabilities
        adjective = next(i for i, word in enumerate(words) if i > 1 and word in ("is", "are")) + 1
        after[words[adjective + 1]] += 1
        chance[words[adjective + 1]] = chances[adjective + 1]
    assert chance == {".": 0.5, "(": 0.25, "[": 0.25}
    for word, p in chance.items():
        assert abs(after[word] / 1000 - p) < 0.05


def test_no_reader_beats_the_best_loss_and_counting_pairs_does_not_reach_it():
    batch = GRAMMAR.batch(400, 0)
    pairs = torch.ones(len(WORDS), len(WORDS), dtype=torch.float64)
    pairs.index_put_(
        (batch.tokens.flatten(), batch.targets.flatten()), torch.tensor(1.0).double(), True
    )
    other = GRAMMAR.batch(400, 1)
    table = (pairs / pairs.sum(1, keepdim=True)).log()
    loss = -table[other.tokens, other.targets].mean()
    assert best_loss(other) < 1.1 < 1.3 < loss


def test_windows_begin_documents_and_targets_are_the_next_words():
    batch = Grammar(length=30).batch(7, 0)
    assert [tuple(field.shape) for field in batch] == [(7, 30)] * 3
    assert torch.equal(batch.tokens[:, 1:], batch.targets[:, :-1])
    assert all(decode(row)[:4] == ["this", "is", "about", "the"] for row in batch.tokens)


def test_a_seed_fixes_the_text():
    assert GRAMMAR.document(5) == GRAMMAR.document(5) != GRAMMAR.document(6)
    assert torch.equal(GRAMMAR.batch(3, 5).tokens, GRAMMAR.batch(3, 5).tokens)


def test_right_choices_counts_a_reader_of_the_future_as_right_and_of_nothing_as_chance():
    class Foresees(torch.nn.Module):
        def forward(self, tokens):
            following = tokens.roll(-1, dims=1)
            return torch.nn.functional.one_hot(following, len(WORDS)).float()

    class KnowsNothing(torch.nn.Module):
        def forward(self, tokens):
            generator = torch.Generator().manual_seed(int(tokens.sum()))
            return torch.rand(*tokens.shape, len(WORDS), generator=generator)

    for kind, chance in (("agreement", 1 / 2), ("bracket", 1 / 2), ("topic", 1 / 16)):
        assert right_choices(Foresees(), DOCUMENTS[:60], kind).mean() == 1
        assert abs(right_choices(KnowsNothing(), DOCUMENTS, kind).mean() - chance) < 0.07


def test_words_and_tokens_translate_both_ways_and_unknown_words_are_named():
    assert decode(encode(WORDS)) == list(WORDS)
    assert [TOKEN[word] for word in WORDS] == list(range(len(WORDS)))
    with pytest.raises(ValueError, match="got 'dragon'"):
        encode(["the", "dragon"])
    with pytest.raises(ValueError, match="Did you mean 'bracket'"):
        right_choices(torch.nn.Identity(), [], "brackets")
