"""What linear attention asks of its tensors before it starts."""

import torch
from attnlib.kernels.launch import check_dtype
from attnlib.kernels.tiles import arithmetic_of
from torch import Tensor


def check_one_key_a_query(query: Tensor, key: Tensor) -> None:
    """Raise unless there is one key for each query, in as many heads."""
    if key.shape != query.shape:
        raise ValueError(
            f"key must have the shape of query, {tuple(query.shape)}, got {tuple(key.shape)}; "
            "keys that heads share come as key.expand(...)"
        )


def check_log_decay(log_decay: Tensor, query: Tensor) -> None:
    """Raise unless there is one log decay a token, or one a key channel."""
    check_dtype("log_decay", log_decay)
    check_sum_dtype("log_decay", log_decay, query)
    if log_decay.shape not in (query.shape[:-1], query.shape):
        raise ValueError(
            f"log_decay must have shape {tuple(query.shape[:-1])}, one number a token, or "
            f"{tuple(query.shape)}, one a key channel, got {tuple(log_decay.shape)}"
        )
    if log_decay.shape == query.shape and query.shape[-1] > 1 and log_decay.stride(-1) != 1:
        raise ValueError(
            "log_decay must have a last stride of 1 (the numbers of a row adjacent), "
            f"got {log_decay.stride(-1)}; call log_decay.contiguous()"
        )


def check_state(name: str, state: Tensor, query: Tensor, value: Tensor) -> None:
    """Raise unless the state has D rows of E numbers for each head of each batch entry."""
    check_dtype(name, state)
    check_sum_dtype(name, state, query)
    shape = (*query.shape[:-2], query.shape[-1], value.shape[-1])
    if state.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(state.shape)}")


def check_sum_dtype(name: str, tensor: Tensor, query: Tensor) -> None:
    """Raise unless the tensor has the dtype of query, or that in which query is summed."""
    if tensor.dtype not in (query.dtype, arithmetic_of(query.dtype)):
        raise TypeError(
            f"{name} must have the dtype of query, {plain(query.dtype)}, or "
            f"{plain(arithmetic_of(query.dtype))}, got {plain(tensor.dtype)}"
        )


def plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
