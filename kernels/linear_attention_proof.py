"""How linear_attention is proved and timed: its reference, its inputs, its launches, its bytes."""

from collections.abc import Iterator

import torch
from attnlib.kernels.linear_attention import linear_attention
from torch import Tensor


def kernel(query, key, value, log_decay, initial_state, options):
    """linear_attention with its options in a dictionary; the state in the dtype of the input."""
    read, final_state = linear_attention(query, key, value, log_decay, initial_state, **options)
    return read, final_state.to(query.dtype)


def reference(query, key, value, log_decay, initial_state, options):
    """The equation, token by token."""
    scale = options.get("scale") or query.shape[-1] ** -0.5
    state = initial_state
    if state is None:
        state = query.new_zeros(*query.shape[:-2], query.shape[-1], value.shape[-1])
    reads = []
    for t in range(query.shape[-2]):
        if log_decay is not None:
            by_channel = log_decay.dim() == query.dim()
            decay = log_decay[..., t, :] if by_channel else log_decay[..., t, None]
            state = decay.exp()[..., None] * state
        state = state + key[..., t, :, None] * value[..., t, None, :]
        reads.append(scale * (query[..., t, None, :] @ state).squeeze(-2))
    read = torch.stack(reads, -2) if reads else value.clone()
    return read, state
