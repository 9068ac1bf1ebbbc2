"""Read: how values are gathered and heads are combined."""

from attnlib.read.heads import merge_heads, repeat_key_heads, split_heads, weighted_sum

__all__ = ["merge_heads", "repeat_key_heads", "split_heads", "weighted_sum"]
