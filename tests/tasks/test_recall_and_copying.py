"""Recall and copying: oracles that know the rule are always right, guesses are right by chance."""

import pytest
import torch

from attnlib.tasks import IGNORE, Copy, Induction, KeyedRecall, MultiQueryRecall

TASKS = [
    KeyedRecall(pairs=5, keys=9, values=7),
    MultiQueryRecall(pairs=5, keys=9, values=7, length=23),
    Copy(count=5, symbols=6),
    Induction(length=21, symbols=9, shortest=2, longest=7),
]
each_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)


def look_up(row, position):
    """Recall: what stood behind the same token in the list."""
    return row[row.index(row[position]) + 1]


def say_again(row, position):
    """Copy: the sign stands after n symbols, and the copy is n + 1 places behind."""
    count = row.index(6)
    return row[position - count]


def follow(row, position):
    """Induction: what followed the same token last time."""
    before = max(place for place in range(position) if row[place] == row[position])
    return row[before + 1]


ORACLES = dict(zip(TASKS, (look_up, look_up, say_again, follow), strict=True))


def accuracy(task, answer, seed=0):
    batch = task.batch(200, seed)
    rows = batch.tokens.tolist()
    right = [
        answer(rows[row], place) == batch.targets[row, place]
        for row, place in (batch.targets != IGNORE).nonzero().tolist()
    ]
    return sum(right) / len(right)


@each_task
def test_an_oracle_written_by_hand_reaches_the_optimum(task):
    assert accuracy(task, ORACLES[task]) == task.optimum


@each_task
def test_guessing_an_answer_at_random_gives_the_stated_chance(task):
    batch = task.batch(3000, seed=1)
    answers = batch.targets[batch.targets != IGNORE]
    first = 9 if isinstance(task, KeyedRecall | MultiQueryRecall) else 0
    frequency = answers.bincount(minlength=task.vocabulary).double() / len(answers)
    # Guessing right is as likely as the guessed answer: all answers must be equally frequent.
    assert torch.allclose(
        frequency[first : first + round(1 / task.chance)],
        torch.tensor(task.chance).double(),
        atol=0.02,
    )


@each_task
def test_tokens_lie_in_the_vocabulary_and_use_all_of_it(task):
    batch = task.batch(500, seed=2)
    assert batch.tokens.shape == batch.targets.shape
    assert set(batch.tokens.unique().tolist()) == set(range(task.vocabulary))


@each_task
def test_a_seed_fixes_the_batches_and_another_seed_changes_them(task):
    def first_two(seed):
        batches = task.batches(4, seed)
        return torch.stack([next(batches).tokens, next(batches).tokens])

    assert torch.equal(first_two(3), first_two(3))
    assert not torch.equal(first_two(3), first_two(4))
    assert not torch.equal(*first_two(3))


@pytest.mark.parametrize("task", TASKS[:2], ids=["one query", "many queries"])
def test_knowing_only_which_values_were_listed_gives_one_in_pairs(task):
    def any_listed(row, position):
        return row[1]  # the value of the first pair

    assert abs(accuracy(task, any_listed) - task.unbound) < 0.06


def test_multi_query_recall_asks_every_key_once_after_the_list():
    task = MultiQueryRecall(pairs=4, keys=6, values=6, length=16)
    tokens, targets = task.batch(50, 0)
    asked = targets != IGNORE
    assert not asked[:, :8].any()
    assert (asked.sum(1) == 4).all()
    assert (tokens[:, 8:][~asked[:, 8:]] == task.filler).all()
    keys = tokens[asked].view(50, 4).sort(1).values
    assert torch.equal(keys, tokens[:, :8:2].sort(1).values)


def test_a_small_power_puts_queries_near_the_list_and_power_one_anywhere():
    def mean_place(power):
        task = MultiQueryRecall(pairs=2, keys=4, values=4, length=64, power=power)
        asked = task.batch(500, 0).targets != IGNORE
        return asked.nonzero()[:, 1].double().mean() - 4

    assert abs(mean_place(1.0) - 29.5) < 2
    assert mean_place(0.01) < 15


def test_the_induction_period_varies_so_that_no_fixed_distance_answers():
    task = TASKS[3]

    def fixed(row, position):
        return row[max(0, position - 4)]

    assert accuracy(task, fixed) < 0.4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KeyedRecall(pairs=5, keys=4), "keys must be at least pairs = 5, got 4"),
        (lambda: MultiQueryRecall(pairs=8, length=20), "length must be at least 3"),
        (lambda: Copy(count=0), "count must be at least 1, got 0"),
        (lambda: Induction(longest=40), "longest must lie between"),
    ],
)
def test_sizes_that_do_not_fit_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_seed_that_is_no_seed_is_refused():
    with pytest.raises(TypeError, match=r"seed must be an int or a torch\.Generator, got float"):
        Copy().batch(2, 0.5)
