"""The atlas: a table of facts about every mechanism, filled where each is defined.

`@mechanism(...)` states the facts of a plain function and returns it unchanged; `get(name)` finds
it again. From these facts come the conformance tests, the atlas page and the choice of a mechanism
by name. `python -m attnlib.atlas` writes them to book/atlas.json.
"""

from attnlib.atlas.facts import STEPS, Mechanism, Promises, Taxonomy
from attnlib.atlas.registry import all_mechanisms, entry_of, get, mechanism, operators

__all__ = [
    "STEPS",
    "Mechanism",
    "Promises",
    "Taxonomy",
    "all_mechanisms",
    "entry_of",
    "get",
    "mechanism",
    "operators",
]
