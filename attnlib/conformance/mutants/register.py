"""What a mutant is, and the list of all of them."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from attnlib.attend import attend
from attnlib.weight.extremes import uniform
from attnlib.weight.softmax_attention import softmax_attention


class Mutant(NamedTuple):
    """A wrong function, what is wrong with it, and which check must reject it.

    `meant_for` is "check" (an attention), "step" (a form for one token at a time) or "positions"
    (an encoding of positions); `source` names where the mistake was made for real; `oracle` is the
    right attention.
    """

    name: str
    function: Callable[..., Any]
    what_is_wrong: str
    meant_for: str
    source: str | None
    oracle: Callable[..., Tensor]


zoo: list[Mutant] = []


def mutant(
    source: str | None = None,
    meant_for: str = "check",
    oracle: Callable[..., Tensor] = softmax_attention,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter a wrong function into the zoo; its docstring says what is wrong."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        if meant_for == "check":  # the checks ask the signature what a function takes
            function.__signature__ = inspect.signature(softmax_attention)
        name = function.__name__.replace("_", "-")
        what_is_wrong = " ".join(function.__doc__.split())
        zoo.append(Mutant(name, function, what_is_wrong, meant_for, source, oracle))
        return function

    return enter


def mutants(meant_for: str | None = None) -> list[Mutant]:
    """All mutants, or those meant for one check: "check", "step" or "positions"."""
    return [wrong for wrong in zoo if meant_for in (None, wrong.meant_for)]


def uniform_attention(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """The mean of the values in the support: the oracle of one mutant."""
    return attend(query, key, value, weight=uniform, **options)


uniform_attention.__signature__ = inspect.signature(softmax_attention)
