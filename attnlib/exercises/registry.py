"""The register of checked exercises, and `check`, which a student calls."""

import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

MODULES = (
    "preliminaries",
    "soft_lookup",
    "soft_lookup_programs",
    "soft_lookup_bugs",
    "exact_and_cached",
    "exact_and_cached_programs",
    "exact_and_cached_tiles",
    "exact_and_cached_latent",
    "exact_and_cached_bugs",
    "beyond_softmax",
    "beyond_softmax_programs",
    "beyond_softmax_signed",
    "feature_maps",
    "feature_maps_programs",
    "feature_maps_bugs",
    "recurrent_and_chunked",
    "recurrent_and_chunked_programs",
    "recurrent_and_chunked_delta",
    "recurrent_and_chunked_bugs",
    "where_sinks_come_from",
    "where_sinks_come_from_programs",
    "mixtures_of_heads",
    "mixtures_of_heads_programs",
    "content_routing",
    "content_routing_programs",
    "content_routing_gates",
    "test_time_memory",
    "test_time_memory_programs",
    "windows_and_neighborhoods",
    "windows_and_neighborhoods_programs",
    "triton_in_an_hour",
    "from_loop_to_kernel",
)
# These hold kernels. Where Triton is missing (macOS, Windows) their exercises do not exist.
MODULES_WITH_KERNELS = (
    "triton_in_an_hour_elements",
    "triton_in_an_hour_rows",
    "triton_in_an_hour_tiles",
    "from_loop_to_kernel_steps",
    "from_loop_to_kernel_weight",
    "from_loop_to_kernel_retention",
)


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
    """Every exercise of the book that has a checker, by number."""
    with_kernels = MODULES_WITH_KERNELS if find_spec("triton") else ()
    for module in MODULES + with_kernels:
        importlib.import_module(f"attnlib.exercises.{module}")
    return dict(_exercises)


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
