"""Every checker accepts its reference solution and rejects each of its mutants for its reason."""

import pytest
import torch

from attnlib.exercises import ExerciseError, all_exercises, check

EXERCISES = all_exercises()
MUTANTS = [(e.number, m) for e in EXERCISES.values() for m in e.mutants]


@pytest.mark.parametrize("number", EXERCISES)
def test_the_reference_solution_is_right(number, capsys):
    check(number, EXERCISES[number].solution)
    printed = capsys.readouterr().out
    assert printed.startswith(f"Exercise {number}: right. ")
    assert printed.strip().endswith(".")


@pytest.mark.parametrize("number, mutant", MUTANTS, ids=[f"{n}-{m.name}" for n, m in MUTANTS])
def test_a_mutant_is_refused_for_its_own_reason(number, mutant):
    with pytest.raises(ExerciseError) as refusal:
        check(number, mutant.answer)
    assert str(refusal.value).startswith(f"Exercise {number}: ")
    assert mutant.says in str(refusal.value)


@pytest.mark.parametrize("number", EXERCISES)
def test_every_checker_has_at_least_four_mutants_of_different_kinds(number):
    reasons = {mutant.says for mutant in EXERCISES[number].mutants}
    assert len(reasons) >= 4


@pytest.mark.parametrize("number", EXERCISES)
def test_a_blank_answer_is_not_attempted_yet(number, capsys):
    def stub(*inputs, **options):
        raise NotImplementedError

    for blank in (None, ..., (None, None), stub):
        if blank is stub and not callable(EXERCISES[number].solution):
            continue
        check(number, blank)
        assert capsys.readouterr().out == f"Exercise {number}: not attempted yet\n"


def test_an_unknown_number_names_the_nearest():
    with pytest.raises(ValueError, match=r"got '1\.1\.33'; did you mean \"1\.1\.3\""):
        check("1.1.33", 1)


def test_an_operation_that_torch_lacks_is_not_taken_for_a_stub():
    def unsupported(scores):
        raise NotImplementedError('"exp" not implemented for this dtype')

    with pytest.raises(ExerciseError, match="not implemented for this dtype"):
        check("P.2", unsupported)


def test_an_answer_of_the_wrong_kind_is_refused_in_words():
    with pytest.raises(ExerciseError, match="expected a function, got int"):
        check("1.1.3", 7)
    with pytest.raises(ExerciseError, match="expected 3 number"):
        check("P.1", "one third")
    with pytest.raises(ExerciseError, match="expected finite numbers"):
        check("P.1", [float("nan"), 0.0, 1.0])


def test_checking_leaves_the_random_state_of_the_page_alone():
    before = torch.random.get_rng_state()
    for number, exercise in EXERCISES.items():
        check(number, exercise.solution)
    assert torch.equal(before, torch.random.get_rng_state())
