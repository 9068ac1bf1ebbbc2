"""Memory: how keys and values are kept over time."""

from attnlib.memory.energy import energy
from attnlib.memory.partial_read import PartialRead, empty_read, finish, merge, partial_read
from attnlib.memory.tree import merge_tree

__all__ = [
    "PartialRead",
    "empty_read",
    "energy",
    "finish",
    "merge",
    "merge_tree",
    "partial_read",
]
