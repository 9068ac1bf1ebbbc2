"""The planted texts of the companion of chapter 1.1: what each of them promises."""

import pytest
import torch

from attnlib.tasks.ad_texts import AdTexts
from attnlib.tasks.labeled_documents import NAMES, TOPICS, LabeledDocuments
from attnlib.tasks.paraphrases import Paraphrases
from attnlib.tasks.typed_relations import ALLOWED, SIGNATURES, TypedRelations

TASKS = [Paraphrases(), AdTexts(), LabeledDocuments(), TypedRelations()]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
def test_one_seed_gives_one_batch_and_all_words_lie_in_the_vocabulary(task):
    first, again, other = task.batch(200, 0), task.batch(200, 0), task.batch(200, 1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert first[0].min() >= 0 and first[0].max() < task.words


def test_a_paraphrase_keeps_every_meaning_and_any_other_pair_half_of_them():
    batch = Paraphrases(share=0.5).batch(300, 0)
    meaning = batch.tokens // 2
    common = (meaning[:, 0, :, None] == meaning[:, 1, None, :]).any(-1).sum(-1)
    assert torch.equal(common, torch.where(batch.targets == 1, 6, 3))
    assert 0 < batch.targets.sum() < 300
    assert (batch.tokens[:, 0] != batch.tokens[:, 1]).any(-1).all()


def test_paraphrases_are_as_rare_as_asked():
    targets = Paraphrases(share=0.05).batch(4000, 0).targets
    assert abs(targets.float().mean() - 0.05) < 0.02


def test_the_attribute_names_the_kind_of_the_word_that_counts():
    batch = AdTexts().batch(300, 0)
    attribute, words = batch.tokens[:, 0], batch.tokens[:, 1:]
    assert torch.equal((words % 3).sort(-1).values, torch.arange(3).expand(300, 3))
    chosen = words.gather(1, batch.place[:, None])[:, 0]
    assert torch.equal(chosen % 3, attribute)
    assert torch.equal(chosen // 3 % 2, batch.targets)
    assert len(attribute.unique()) == 3


@pytest.mark.parametrize("new_names", [False, True])
def test_a_label_shows_in_a_topic_word_or_in_a_name_whose_note_is_one(new_names):
    task = LabeledDocuments(new_names=new_names)
    batch = task.batch(300, 0)
    names_begin = task.fillers + TOPICS * task.labels
    topics = (batch.tokens >= task.fillers) & (batch.tokens < names_begin)
    shown = torch.zeros_like(batch.targets)
    rows, _, _ = at = topics.nonzero(as_tuple=True)
    shown[rows, (batch.tokens[at] - task.fillers) // TOPICS] = 1.0
    assert torch.equal(shown, batch.targets)
    assert (topics.sum((1, 2)) == 2).all() and (batch.targets.sum(-1) == 2).all()

    names = batch.tokens[batch.tokens >= names_begin] - names_begin
    assert (
        (names % (2 * NAMES) >= NAMES).all() if new_names else (names % (2 * NAMES) < NAMES).all()
    )
    assert len(names) == (600 if new_names else topics[:, 1].sum())


def test_every_relation_holds_between_names_of_its_kinds():
    batch = TypedRelations(unsure=0.0).batch(500, 0)
    assert ALLOWED[batch.targets, batch.kinds[:, 0], batch.kinds[:, 1]].all()
    assert ALLOWED[1:].sum() == len(SIGNATURES) == 3
    assert torch.equal(batch.tokens[:, :2] // TypedRelations().each, batch.kinds)


def test_one_cue_tells_the_relation_and_an_unsure_one_serves_two():
    task = TypedRelations(unsure=0.0)
    batch = task.batch(300, 0)
    cue = batch.tokens.amax(-1) - task.first_cue
    assert torch.equal(cue, batch.targets)
    assert ((batch.tokens >= task.first_cue).sum(-1) == 1).all()

    unsure = TypedRelations(unsure=1.0).batch(300, 0)
    cue = unsure.tokens.amax(-1) - task.first_cue
    assert torch.equal(cue == 4, unsure.targets >= 2)
    assert (unsure.tokens[:, :2] == task.unknown_name).all()


@pytest.mark.parametrize(
    ("task", "options", "name"),
    [
        (Paraphrases, {"meanings": 11}, "meanings"),
        (Paraphrases, {"share": 1.5}, "share"),
        (AdTexts, {"kinds": 0}, "kinds"),
        (LabeledDocuments, {"held": 6}, "held"),
        (TypedRelations, {"unsure": -0.1}, "unsure"),
    ],
)
def test_impossible_tasks_are_refused_by_name(task, options, name):
    with pytest.raises(ValueError, match=name):
        task(**options)
