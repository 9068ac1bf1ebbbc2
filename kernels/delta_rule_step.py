"""The delta rule for one new token: what a model that writes a text runs at every step.

The equation is the definition itself:

    e = v - a S^T k          S' = a S + b k e^T          o = scale S'^T q

The picture. Columns of S do not meet: column j needs v_j and gives o_j. One program holds some
columns of the state of one head, reads them once and writes them once.

What it moves: D E numbers of the state in and out, 8 D E bytes a head in float32; all else is rows.
What it computes: 7 D E operations, less than one a byte. The bound is the bytes alone: at
D = E = 128 an H200 reads and writes the states of 33,000 heads in a millisecond. No cache grows:
token 10 and token 10^6 cost the same.
"""

import math

import torch
import triton
import triton.language as tl
from attnlib.kernels.delta_rule import check_gate
from attnlib.kernels.launch import (
    LARGEST_WIDTH,
    check_device,
    check_dtype,
    check_scale,
    on_device_of,
    readable,
)
from attnlib.kernels.linear_attention_checks import check_state
from attnlib.kernels.linear_states import load_part, store_part
from attnlib.kernels.split_decode import check_no_gradient
from attnlib.kernels.tiles import padded
from torch import Tensor

NUMBERS_OF_A_TILE = 4096  # of the state: 16 a thread with 8 warps


def delta_rule_step(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor,
    state: Tensor,
    log_decay: Tensor | None = None,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """(read, new_state) after one token; the state that came is left as it is.

    Shapes: query and key (*batch, H, D), value (*batch, H, E), read (*batch, H, E); beta and
    log_decay (*batch, H); state and new_state (*batch, H, D, E). D is 1 to 256. scale is D ** -0.5
    unless given. Words and conditions are those of `delta_rule`, and so are the numbers:
    steps over the tokens of a sequence give its reads and its final state.

    beta, log_decay and state have the dtype of query or, for half precision, float32: a state that
    is kept for thousands of tokens should. new_state has the dtype of the state.

    Cost: time and bytes D E a head. No backward pass.

    Raises TypeError for a wrong dtype; ValueError for shapes that do not fit, a width over 256,
    devices that differ or cannot run Triton, a scale that is not positive, and for tensors that
    require a gradient.
    """
    rows = {"query": query, "key": key, "value": value}
    check_rows(**rows)
    check_scale(scale)
    check_gate("beta", beta, query)
    check_state("state", state, *(tensor.unsqueeze(-2) for tensor in (query, value)))
    tensors = rows | {"beta": beta, "state": state}
    if log_decay is not None:
        check_gate("log_decay", log_decay, query)
        tensors["log_decay"] = log_decay
    check_no_gradient(**tensors)
    check_device(step_kernel, **tensors)
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    width, value_width = query.shape[-1], value.shape[-1]
    inputs = [
        None if tensor is None else readable(step_kernel, tensor).contiguous()
        for tensor in (query, key, value, beta, log_decay, state)
    ]
    new_state = torch.empty(state.shape, dtype=inputs[5].dtype, device=state.device)
    read = torch.empty(value.shape, dtype=inputs[2].dtype, device=value.device)
    choices = step_tile(width, value_width)
    with on_device_of(query):
        programs = math.prod(query.shape[:-1]) * triton.cdiv(value_width, choices["value_part"])
        step_kernel[(programs,)](
            *(*inputs, read, new_state),
            scale=scale,
            width=width,
            value_width=value_width,
            arithmetic=tl.float64 if query.dtype == torch.float64 else tl.float32,
            **choices,
        )
    return read.to(query.dtype), new_state.to(state.dtype)


@triton.jit
def step_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    beta_ptr,
    log_decay_ptr,
    state_ptr,
    read_ptr,
    new_state_ptr,
    scale: tl.constexpr,
    width: tl.constexpr,
    value_width: tl.constexpr,
    arithmetic: tl.constexpr,
    value_part: tl.constexpr,
):
    parts = tl.cdiv(value_width, value_part)
    first_value = tl.program_id(0) % parts * value_part
    head = (tl.program_id(0) // parts).to(tl.int64)
    channels = tl.arange(0, padded(width))
    in_state = channels < width
    columns = first_value + tl.arange(0, value_part)
    in_value = columns < value_width

    query = tl.load(query_ptr + head * width + channels, mask=in_state, other=0.0)
    key = tl.load(key_ptr + head * width + channels, mask=in_state, other=0.0)
    value = tl.load(value_ptr + head * value_width + columns, mask=in_value, other=0.0)
    query, key, value = query.to(arithmetic), key.to(arithmetic), value.to(arithmetic)
    row = head * width
    state = load_part(state_ptr, row, value_width, in_state, first_value, value_width, value_part)
    state = state.to(arithmetic)
    if log_decay_ptr is not None:
        state *= tl.exp(tl.load(log_decay_ptr + head).to(arithmetic))

    error = value - tl.sum(key[:, None] * state, 0)
    write = tl.load(beta_ptr + head).to(arithmetic) * error
    state += key[:, None] * write[None, :]
    read = scale * tl.sum(query[:, None] * state, 0)
    tl.store(read_ptr + head * value_width + columns, read, mask=in_value)
    store_part(new_state_ptr, row, state, in_state, first_value, value_width, value_part)


def step_tile(width: int, value_width: int) -> dict:
    """How many columns of the state a program holds, and its warps."""
    rows = max(16, triton.next_power_of_2(width))
    part = min(NUMBERS_OF_A_TILE // rows, max(16, triton.next_power_of_2(value_width)))
    return {"value_part": part, "num_warps": 8}


def check_rows(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Raise unless query and key (*batch, H, D) and value (*batch, H, E) fit."""
    for name, tensor in {"query": query, "key": key, "value": value}.items():
        check_dtype(name, tensor)
        if tensor.dtype != query.dtype:
            raise TypeError(
                f"{name} must have the dtype of query, {query.dtype}, got {tensor.dtype}"
            )
        if tensor.dim() < 1 or tensor.shape[-1] < 1:
            raise ValueError(
                f"{name} must have shape (*batch, H, width), got {tuple(tensor.shape)}"
            )
    if query.shape[-1] > LARGEST_WIDTH:
        raise ValueError(
            f"query must have a width from 1 to {LARGEST_WIDTH}, got {query.shape[-1]}"
        )
    if key.shape != query.shape:
        raise ValueError(
            f"key must have the shape of query, {tuple(query.shape)}, got {tuple(key.shape)}"
        )
    if value.shape[:-1] != query.shape[:-1]:
        expected = (*query.shape[:-1], "E")
        raise ValueError(f"value must have shape {expected}, got {tuple(value.shape)}")
