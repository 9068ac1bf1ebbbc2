"""The mutant zoo: wrong attentions, each right but for one mistake.

Many were made for real; `source` names the issue or pull request. A docstring says what is wrong.
Almost every mutant is `attend` with one step replaced, so that nothing else differs. There is a
file for each step.
"""

from attnlib.conformance.mutants import scores, supports, weights, reads, memories, positions  # noqa: F401, I001 - this is their order
from attnlib.conformance.mutants.register import Mutant, mutants

__all__ = ["Mutant", "mutants"]
