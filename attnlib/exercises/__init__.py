"""Checked exercises: `check(number, answer)` says right, or what is likely wrong.

One file a chapter. Beside each checker stand its reference solution and its mutants, the typical
wrong answers together with the words by which they must be refused; the tests hold it to them.
"""

from attnlib.exercises.registry import Exercise, ExerciseError, all_exercises, check

__all__ = ["Exercise", "ExerciseError", "all_exercises", "check"]
