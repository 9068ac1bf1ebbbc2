"""The score of the checks: how many of the wrong attentions they reject."""

from typing import NamedTuple

from attnlib.conformance.mutants import Mutant, mutants
from attnlib.conformance.position_checks import check_positions
from attnlib.conformance.report import ConformanceError
from attnlib.conformance.suite import check
from attnlib.weight.softmax_attention import softmax_attention


class ZooScore(NamedTuple):
    """Which mutants were rejected, each with the error, or None where it got away."""

    errors: dict[str, ConformanceError | None]

    @property
    def rejected(self) -> int:
        """How many mutants were rejected."""
        return sum(error is not None for error in self.errors.values())

    def __str__(self) -> str:
        return f"mutant zoo: {self.rejected} of {len(self.errors)} wrong attentions rejected"

    def table(self) -> str:
        """A line for each mutant: its name and the first promise that gives it away."""
        width = max(len(name) for name in self.errors)
        lines = []
        for name, error in self.errors.items():
            found = "NOT REJECTED" if error is None else error.report.broken[0].promise
            lines.append(f"{name:<{width}}  {found}")
        return "\n".join([str(self), *lines])


def reject(mutant: Mutant) -> ConformanceError | None:
    """The error with which the check that a mutant is meant for rejects it; None if it passes."""
    try:
        if mutant.meant_for == "positions":
            check_positions(mutant.function)
        elif mutant.meant_for == "step":
            check(softmax_attention, recurrent=mutant.function)
        else:
            check(mutant.function, oracle=mutant.oracle)
    except ConformanceError as error:
        return error
    return None


def zoo_score() -> ZooScore:
    """Try every mutant: `print(zoo_score())`, or `print(zoo_score().table())`."""
    return ZooScore({mutant.name: reject(mutant) for mutant in mutants()})
