"""The register of checked exercises, and `check`, which a student calls."""

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class ExerciseError(AssertionError):
    """A wrong answer. The message says what is likely wrong."""


@dataclass(frozen=True)
class Mutant:
    """A typical wrong answer and the words by which the checker must refuse it."""

    name: str
    answer: Any
    says: str


@dataclass
class Exercise:
    """One exercise: its checker returns a sentence on what was verified, or raises."""

    number: str
    checker: Callable[[Any], str]
    solution: Any = None
    mutants: list[Mutant] = field(default_factory=list)


_exercises: dict[str, Exercise] = {}


def checker(number: str) -> Callable:
    """Register the decorated function as the checker of exercise `number`."""

    def register(function: Callable[[Any], str]) -> Callable[[Any], str]:
        if number in _exercises:
            raise ValueError(f"number must be new, but exercise {number} has a checker already")
        _exercises[number] = Exercise(number, function)
        return function

    return register


def solution(number: str) -> Callable:
    """Register the decorated function (or the value passed in) as the reference solution."""

    def register(answer: Any) -> Any:
        _exercises[number].solution = answer
        return answer

    return register


def mutant(number: str, says: str, name: str | None = None) -> Callable:
    """Register a wrong answer, a function or a value, that must provoke the words `says`."""

    def register(answer: Any) -> Any:
        known = name or getattr(answer, "__name__", repr(answer))
        _exercises[number].mutants.append(Mutant(known, answer, says))
        return answer

    return register


def all_exercises() -> dict[str, Exercise]:
    """Every exercise of the book that has a checker, by number and in the order of the numbers.

    They are found in the modules beside this one, so that a new chapter changes no line here. Where
    Triton is missing (macOS, Windows) the exercises on kernels do not exist.
    """
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        try:
            importlib.import_module(f"attnlib.exercises.{module.name}")
        except ModuleNotFoundError as error:
            if error.name != "triton":
                raise
    return dict(sorted(_exercises.items(), key=lambda item: _in_order(item[0])))


def _in_order(number: str) -> list[tuple[bool, int, str]]:
    """A key that sorts "1.1.10" behind "1.1.9", and letters behind figures."""
    parts = number.split(".")
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def check(number: str, answer: Any = None) -> None:
    """Check the answer to an exercise and print the verdict.

    Prints "not attempted yet" for None, Ellipsis or a stub that raises NotImplementedError, and
    "right" with what was verified for a right answer. Raises ExerciseError, which says what is
    likely wrong, for a wrong one, and ValueError for a number without a checker.
    """
    exercise = _find(number)
    if _is_blank(answer):
        print(f"Exercise {number}: not attempted yet")
        return
    try:
        verified = exercise.checker(answer)
    except NotImplementedError as error:
        if error.args:  # torch raises these too, but says why
            raise ExerciseError(f"Exercise {number}: your answer raised {error!r}") from error
        print(f"Exercise {number}: not attempted yet")
        return
    except ExerciseError as error:
        raise ExerciseError(f"Exercise {number}: {error}") from error.__cause__
    print(f"Exercise {number}: right. {verified}")


def _find(number: str) -> Exercise:
    known = all_exercises()
    if number in known:
        return known[number]
    near = difflib.get_close_matches(str(number), known, n=1)
    hint = f'; did you mean "{near[0]}"?' if near else ""
    raise ValueError(f"number must name a checked exercise, got {number!r}{hint}")


def _is_blank(answer: Any) -> bool:
    if isinstance(answer, (tuple, list)):
        return len(answer) > 0 and all(_is_blank(part) for part in answer)
    if isinstance(answer, dict):
        return len(answer) > 0 and all(_is_blank(part) for part in answer.values())
    return answer is None or answer is ...
