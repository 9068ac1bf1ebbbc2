"""Two memories: what a write may touch, what consolidation keeps, what each reader can know."""

import pytest
import torch

from attnlib.atlas import get
from attnlib.models.working_memory import (
    FactReader,
    WorkingMemory,
    answers,
    top_weights,
    two_memory_read,
)
from attnlib.tasks.streams import RelationalFacts
from attnlib.training import evaluate, train


@pytest.fixture
def memory():
    torch.manual_seed(0)
    return WorkingMemory(6, 3, top=2).double()


def segments(count=4, inputs=5):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, inputs, 6, generator=generator).double() for _ in range(count)]


def test_a_slot_takes_from_its_best_inputs_and_from_no_other(memory):
    (perceived, *_) = segments()
    state, weights = memory.write(memory.start(2), perceived)
    assert ((weights > 0).sum(-1) == 2).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3).double())
    scores = memory.slot_query(state.working) @ memory.input_key(perceived).mT
    taken = top_weights(scores, 2) > 0
    assert torch.equal(taken, scores >= scores.topk(2).values[..., -1:])
    assert torch.equal(top_weights(scores, 5), scores.softmax(-1))


def test_the_long_term_memory_is_the_faded_sum_of_the_outer_products_of_all_slots(memory):
    state, wanted = memory.start(2), torch.zeros(2, 6, 6).double()
    kept = memory.log_odds_kept.sigmoid()
    for perceived in segments():
        state, _ = memory.write(state, perceived)
        state = memory.consolidate(state)
        wanted = kept * wanted
        for m in range(3):
            slot = state.working[:, m]
            key = torch.nn.functional.normalize(memory.long_key(slot), dim=-1)
            wanted = wanted + key[:, :, None] * memory.long_value(slot)[:, None, :]
    torch.testing.assert_close(state.long_term, wanted, rtol=0, atol=1e-12)


def test_the_state_stays_as_large_as_it_was_and_the_one_that_came_is_kept(memory):
    state = memory.start(2)
    before = [part.clone() for part in state]
    new = memory.consolidate(memory.write(state, segments()[0])[0])
    assert all(map(torch.equal, before, state))
    assert [part.shape for part in new] == [part.shape for part in state]


def test_with_all_share_for_the_slots_the_long_term_memory_says_nothing(memory):
    question = segments()[0]
    state = memory.consolidate(memory.write(memory.start(2), question)[0])
    torch.nn.init.zeros_(memory.to_share.weight)
    torch.nn.init.constant_(memory.to_share.bias, 50.0)
    torch.testing.assert_close(
        memory.infer(state, question), memory.infer_from_working(state, question)
    )


def test_a_memory_that_was_never_written_cannot_be_read(memory):
    question = segments()[0]
    for read in (memory.infer, memory.infer_from_working):
        with pytest.raises(ValueError, match=r"state must be .* write first"):
            read(None, question)
    with pytest.raises(ValueError, match="write first"):
        two_memory_read(memory, [], question)
    assert get("pmi-working-longterm-memory")(memory, segments(), question).shape == (2, 5, 6)


def test_a_reader_without_memory_is_blind_to_all_but_the_last_segment():
    task = RelationalFacts(facts=8, subjects=12)
    batch = task.batch(5, 0)
    other = batch.facts.clone()
    other[:, :6] = other[:, :6].flip(1)
    for memory, same in (("none", True), ("working", False), ("both", False)):
        model = FactReader(task.vocabulary, task.places, memory=memory, width=16)
        got = torch.equal(model(batch.facts, batch.question), model(other, batch.question))
        assert got == same, memory


def test_readers_start_from_the_same_parameters_and_learn():
    task = RelationalFacts(facts=2, subjects=6, places=3)
    models = [
        FactReader(task.vocabulary, 3, memory=memory, width=16) for memory in ("none", "both")
    ]
    pairs = zip(models[0].parameters(), models[1].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    train(models[1], task.batches(32, 0), steps=150, objective=answers, progress=False)
    assert evaluate(models[1], [task.batch(200, 1)], objective=answers).accuracy > 0.9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WorkingMemory(8, 0), "slots must be at least 1"),
        (lambda: WorkingMemory(8, 2, top=0), "top must be at least 1"),
        (lambda: FactReader(9, 3, memory="long"), "memory must be none, working or both"),
        (lambda: FactReader(9, 3, memory="both", segment=0), "segment must be at least 1"),
    ],
)
def test_sizes_and_names_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
