"""Conformance: one public suite that every mechanism passes, also a stranger's.

`check(my_attention, oracle=attnlib.softmax_attention)` holds a function to its promises and prints
a table; `check_positions` does the same for an encoding of positions; `mutants()` is a zoo of wrong
attentions, and `zoo_score()` says how many of them the checks reject.
"""

from attnlib.conformance.mutants import Mutant, mutants
from attnlib.conformance.position_checks import check_positions
from attnlib.conformance.report import ConformanceError, Report
from attnlib.conformance.suite import check
from attnlib.conformance.zoo import ZooScore, reject, zoo_score

__all__ = [
    "ConformanceError",
    "Mutant",
    "Report",
    "ZooScore",
    "check",
    "check_positions",
    "mutants",
    "reject",
    "zoo_score",
]
