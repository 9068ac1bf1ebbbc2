"""What every memory with a matrix state asks of its tensors, and how it counts."""

import torch
from jaxtyping import Float
from torch import Tensor

from attnlib.checks import check_attention, check_tensor


def check_recurrent(query: Tensor, key: Tensor, value: Tensor, is_causal: bool = True) -> None:
    """Check query and key (..., N, D), value (..., N, E): one key a query, read in order."""
    check_attention(query, key, value)
    if query.shape != key.shape:
        raise ValueError(
            "key must have the shape of query, one key a query of the same width: expected "
            f"{tuple(query.shape)}, got {tuple(key.shape)}"
        )
    if is_causal is not True:
        raise ValueError(
            f"is_causal must be True: a state holds the past and nothing else, got {is_causal}"
        )


def check_state(name: str, state: Tensor, query: Tensor, value: Tensor) -> None:
    """Check that a state is (..., D, E) for query (..., N, D) and value (..., N, E)."""
    check_tensor(name, state)
    expected = (*query.shape[:-2], query.shape[-1], value.shape[-1])
    if tuple(state.shape) != expected:
        raise ValueError(f"{name} must have shape {expected}, got {tuple(state.shape)}")


def arithmetic_of(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a state is summed: float32 for half precision, else `dtype` itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def empty_state(query: Tensor, value: Tensor) -> Float[Tensor, "*heads D E"]:
    """The state before the first token: zeros (..., D, E) in the dtype of sums."""
    shape = (*query.shape[:-2], query.shape[-1], value.shape[-1])
    return query.new_zeros(shape, dtype=arithmetic_of(query.dtype))
