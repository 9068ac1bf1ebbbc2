"""The table itself: one decorator to fill it, two functions to read it."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from attnlib.atlas.facts import STEPS, Mechanism, Promises, Taxonomy

_table: dict[str, Mechanism] = {}

# The argument that a promise is about: nobody may promise what cannot be asked for.
_ARGUMENT_OF = {"causal": "is_causal", "grouped_query": "enable_gqa", "padding": "attn_mask"}


def mechanism(
    *,
    key: str,
    step: str,
    idea: str,
    equation: str,
    cost: str,
    promises: Promises | None,
    taxonomy: Taxonomy,
    paper: str | None = None,
    chapter: str | None = None,
    section: str | None = None,
    oracle: Callable[..., Any] | None = None,
    recurrent: Callable[..., Any] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    r"""Enter a function into the atlas and return it unchanged.

    `key` is its name there (the `key` of its paper where it comes from one of the source papers);
    `step` the step that it changes; `idea` one line; `equation` TeX; `section` the anchor of its
    heading in the chapter; `oracle` the dense function that it must equal; `recurrent` its form
    `(state, query, key, value) -> (read, state)`; `promises` what the conformance suite checks, or
    None for a form other than `(query, key, value, ...) -> read`, which its own tests hold.
    Raises ValueError for a key that is taken, an unknown step, or a promise about an argument that
    the function does not take; TypeError where `promises` or `taxonomy` is of another type.
    """
    if step not in STEPS:
        raise ValueError(f"step must be one of {STEPS}, got {step!r}")
    if promises is not None and not isinstance(promises, Promises):
        raise TypeError(f"promises must be attnlib.Promises(...), got {type(promises).__name__}")
    if not isinstance(taxonomy, Taxonomy):
        raise TypeError(f"taxonomy must be attnlib.Taxonomy(...), got {type(taxonomy).__name__}")
    if key in _table:
        raise ValueError(f"key must be new: {key!r} is {_table[key].module}.{_table[key].name}")

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        takes = inspect.signature(function).parameters
        for promise, argument in _ARGUMENT_OF.items():
            if promises is not None and getattr(promises, promise) and argument not in takes:
                raise ValueError(
                    f"promises of {key!r}: {promise}=True needs an argument {argument}, "
                    f"which {function.__name__} does not take"
                )
        _table[key] = Mechanism(
            key=key,
            function=function,
            step=step,
            idea=idea,
            equation=equation,
            cost=cost,
            promises=promises,
            taxonomy=taxonomy,
            paper=paper,
            chapter=chapter,
            section=section,
            oracle=oracle,
            recurrent=recurrent,
        )
        return function

    return enter


def all_mechanisms() -> list[Mechanism]:
    """Every entry of the atlas, by key."""
    return [_table[key] for key in sorted(_table)]


def operators() -> list[Mechanism]:
    """The entries of the form `(query, key, value, ...) -> read`, which make promises, by key."""
    return [entry for entry in all_mechanisms() if entry.promises is not None]


def get(name: str) -> Mechanism:
    """The entry with this key: `attnlib.get("softmax")(query, key, value)` runs it.

    Raises ValueError with the nearest key where there is none.
    """
    if name not in _table:
        near = difflib.get_close_matches(str(name), _table, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"name must be one of {', '.join(map(repr, sorted(_table)))}, got {name!r}{hint}"
        )
    return _table[name]


def entry_of(function: Callable[..., Any]) -> Mechanism | None:
    """The entry of a function, or None where it is not in the atlas."""
    return next((entry for entry in _table.values() if entry.function is function), None)
