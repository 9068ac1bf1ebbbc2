"""The pointer network and its control: who sees what, and which places they can name."""

import pytest
import torch

from attnlib import pointer_attention
from attnlib.models.pointer import FixedOutput, PointerNetwork, SequenceToPlaces, items_at
from attnlib.tasks import IGNORE


def models():
    torch.manual_seed(0)
    return [PointerNetwork(2, width=16).double(), FixedOutput(2, places=9, width=16).double()]


def draw(batch=4, count=8, steps=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    items = torch.rand(batch, count, 2, generator=generator, dtype=torch.float64)
    return items, torch.randint(count + 1, (batch, steps), generator=generator)


both = pytest.mark.parametrize("model", models(), ids=lambda model: type(model).__name__)


def test_items_are_looked_up_and_a_place_without_an_item_is_zero():
    items = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])
    got = items_at(items, torch.tensor([[1, 0, 2], [5, 1, 1]]))
    assert got[..., 0].tolist() == [[2, 1, 0], [0, 4, 4]]


@pytest.mark.parametrize("count", [1, 5, 12, 40])
def test_a_pointer_has_one_answer_more_than_there_are_items(count):
    model = models()[0]
    items, targets = draw(count=count, steps=3)
    assert model(items, targets).shape == (4, 3, count + 1)
    answers = model.answer(items, 6)
    assert answers.shape == (4, 6) and answers.dtype == torch.int64
    assert answers.min() >= 0 and answers.max() <= count


@pytest.mark.parametrize("count", [1, 5, 12, 40])
def test_fixed_outputs_stay_as_many_for_any_number_of_items(count):
    model = models()[1]
    items, targets = draw(count=count, steps=3)
    assert model(items, targets).shape == (4, 3, 9)
    assert model.answer(items, 6).shape == (4, 6)


def test_fixed_outputs_never_name_a_later_place_and_pointers_do():
    pointer, fixed = models()
    with torch.no_grad():
        fixed.name_place.weight.mul_(100)  # several different answers
    answers = fixed.answer(draw(batch=200, count=40)[0], 40)
    assert answers.unique().numel() > 2 and answers.max() <= 8
    assert pointer.answer(draw(batch=200, count=40)[0], 40).max() > 8


@both
def test_answering_agrees_with_being_shown_the_same_answers(model):
    items, _ = draw(batch=20)
    answers = model.answer(items, 8)
    assert torch.equal(model(items, answers).argmax(-1), answers)


@both
def test_answering_agrees_with_the_right_items_up_to_the_first_difference(model):
    items, targets = draw(batch=50)
    answers = model.answer(items, 8)
    targets = torch.where(torch.arange(8) < torch.arange(50)[:, None] % 8, answers, targets)
    shown = model(items, targets).argmax(-1)
    agreed = (answers == targets).long().cumprod(1).bool()
    before = torch.cat((torch.ones_like(agreed[:, :1]), agreed[:, :-1]), dim=1)
    assert before.sum() > 150 and not before.all()
    assert torch.equal(shown[before], answers[before])


@both
def test_a_step_sees_the_target_before_it_and_none_from_its_own_on(model):
    items, targets = draw()
    for step in range(8):
        changed = targets.clone()
        changed[:, step] = (changed[:, step] + 1) % 9
        one, other = model(items, targets), model(items, changed)
        assert torch.equal(one[:, : step + 1], other[:, : step + 1])
        if step < 7:
            assert not torch.isclose(one[:, step + 1], other[:, step + 1]).all(-1).any()


@both
def test_targets_that_are_not_asked_for_do_no_harm(model):
    items, targets = draw()
    ignored = targets.clone()
    ignored[:, 5:] = IGNORE
    scores = model(items, ignored)
    assert torch.isfinite(scores).all()
    assert torch.equal(scores[:, :6], model(items, targets)[:, :6])


@both
def test_each_set_of_items_is_answered_alone(model):
    items, targets = draw()
    together = model(items, targets)
    for row in range(4):
        alone = model(items[row : row + 1], targets[row : row + 1])
        torch.testing.assert_close(alone[0], together[row])


@both
def test_every_parameter_learns(model):
    items, targets = draw()
    scores = model(items, targets)
    scores.logsumexp(-1).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 0, name
    model.zero_grad()


def test_the_scores_are_those_of_pointer_attention():
    model = models()[0]
    items, _ = draw()
    states, last = model.encode(items)
    answers = model.decode(items, last)[0]
    keys = torch.cat((states, model.stop.expand(4, 1, 16)), dim=1)
    wanted = pointer_attention(
        answers,
        keys,
        query_matrix=model.query_matrix,
        key_matrix=model.key_matrix,
        vector=model.vector,
    )
    torch.testing.assert_close(model.scores(states, answers).softmax(-1), wanted)


def test_the_last_place_is_the_learned_stop():
    model = models()[0]
    items, targets = draw()
    before = model(items, targets)
    with torch.no_grad():
        model.stop.add_(1)
    after = model(items, targets)
    assert torch.equal(before[..., :-1], after[..., :-1])
    assert not torch.isclose(before[..., -1], after[..., -1]).any()


def test_the_shared_part_alone_has_no_scores():
    with pytest.raises(NotImplementedError):
        SequenceToPlaces(2, 4).double()(*draw(count=3, steps=2))
