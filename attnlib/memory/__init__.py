"""Memory: how keys and values are kept over time."""

from attnlib.memory.partial_read import PartialRead, empty_read, finish, merge, partial_read

__all__ = ["PartialRead", "empty_read", "finish", "merge", "partial_read"]
