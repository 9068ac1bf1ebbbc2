"""Choosing by name: a wrong name is answered with the nearest right one."""

from collections.abc import Iterable
from difflib import get_close_matches


def check_choice(argument: str, name: str, choices: Iterable[str]) -> None:
    """Raise ValueError unless `name` is one of `choices`; suggest the nearest."""
    choices = list(choices)
    if name in choices:
        return
    near = get_close_matches(str(name).lower(), choices, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{argument} must be one of {', '.join(choices)}; got {name!r}.{hint}")
