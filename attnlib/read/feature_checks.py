"""Checks of what mechanisms that never form a score ask of their queries and keys."""

from torch import Tensor

from attnlib.checks import check_attention


def check_features(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Check that query (..., N, D), key (..., M, D) and value (..., M, E) fit, D at least 1."""
    check_attention(query, key, value)
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"key must have the width of query ({query.shape[-1]}), got {key.shape[-1]}"
        )
    if query.shape[-1] == 0:
        raise ValueError("query must have a width of at least 1, got 0")
