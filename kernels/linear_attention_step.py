"""One token of linear attention as a kernel: the state is read once, changed, read from, written.

The equation, for one new token of each sequence:

    S <- diag(a) S + k v^T               o = scale S^T q

The picture. Rows of S are key channels, columns value channels. A column of S and the number of o
under it need no other column, so the columns are cut into parts:

    S  | part 0 | part 1 | ...        one program a part: all D rows of it
    o  | part 0 | part 1 | ...

What one program does. It loads its part of the state, lets it fade, adds k v^T, writes it to the
new state, and sums it down its columns, weighed with q. A sum over rows, no product of matrices:
one query gives a matrix unit nothing to do.

What it moves: with b bytes a number of the state, 2 b D E for a head; q, k, v, a and o are a D-th
of it. What it computes: 5 D E operations, less than one a byte where an H200 could do 15 in full
precision. Bytes decide: 32 sequences of 16 heads of 128 x 128 float32 numbers move 67 MB, 16
microseconds. Update and read apart would move the state three times instead of twice.

Source: Katharopoulos et al., "Transformers are RNNs", 2020.
"""

import math

import torch
import triton
import triton.language as tl
from attnlib.kernels.launch import check_device, check_dtype, check_scale, on_device_of, readable
from attnlib.kernels.linear_attention_checks import check_sum_dtype
from attnlib.kernels.tiles import padded
from torch import Tensor

NUMBERS_OF_A_PART = 2**13  # of the state: what a program holds in registers


def linear_attention_step(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """(read, new_state) for one new token a sequence: S <- diag(a) S + k v^T, o = scale S^T q.

    Shapes: query and key (*batch, H, D), value (*batch, H, E), state (*batch, H, D, E), read
    (*batch, H, E). log_decay, the natural logarithm of a: None (a = 1), (*batch, H) one number a
    head, or (*batch, H, D) one a key channel. Any number of batch axes; D is 1 to 256. scale is
    D ** -0.5 unless given. It equals `linear_attention` on a sequence of one token.

    The state and log_decay have the dtype of query or, beside half precision, float32, as a state
    should that is kept for thousands of tokens. The new state has the dtype of the state, and
    `state` is not changed. What does not lie in memory row after row is copied. No gradients.

    Raises TypeError for a wrong dtype; ValueError for shapes that do not fit, a width over 256,
    devices that differ or cannot run Triton, a scale that is not positive, and for tensors that
    require a gradient.
    """
    tensors = {"query": query, "key": key, "value": value, "state": state}
    if log_decay is not None:
        tensors["log_decay"] = log_decay
    check_step(tensors)
    check_scale(scale)
    check_device(step_kernel, **tensors)
    dtype, state_dtype = value.dtype, state.dtype
    query, key, value, state = (
        readable(step_kernel, tensor).contiguous() for tensor in (query, key, value, state)
    )
    width, value_width, decay_width = query.shape[-1], value.shape[-1], 1
    if log_decay is not None:
        decay_width = width if log_decay.shape == query.shape else 1
        log_decay = readable(step_kernel, log_decay).contiguous()
    read = torch.empty(value.shape, dtype=value.dtype, device=value.device)
    new_state = torch.empty(state.shape, dtype=state.dtype, device=state.device)
    part = part_of(width, value_width)
    rows = math.prod(query.shape[:-1])
    with on_device_of(query):
        step_kernel[(rows * triton.cdiv(value_width, part),)](
            *(query, key, value, log_decay, state, read, new_state),
            scale=width**-0.5 if scale is None else float(scale),
            width=width,
            value_width=value_width,
            decay_width=decay_width,
            arithmetic=tl.float64 if query.dtype == torch.float64 else tl.float32,
            value_part=part,
            num_warps=warps_of(width),
        )
    return read.to(dtype), new_state.to(state_dtype)


@triton.jit
def step_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    log_decay_ptr,
    state_ptr,
    read_ptr,
    new_state_ptr,
    scale: tl.constexpr,
    width: tl.constexpr,
    value_width: tl.constexpr,
    decay_width: tl.constexpr,
    arithmetic: tl.constexpr,
    value_part: tl.constexpr,
):
    parts: tl.constexpr = tl.cdiv(value_width, value_part)
    row = (tl.program_id(0) // parts).to(tl.int64)
    channels = tl.arange(0, padded(width))
    columns = tl.program_id(0) % parts * value_part + tl.arange(0, value_part)
    has_key, has_value = channels < width, columns < value_width
    inside = has_key[:, None] & has_value[None, :]

    query = tl.load(query_ptr + row * width + channels, mask=has_key, other=0.0).to(arithmetic)
    key = tl.load(key_ptr + row * width + channels, mask=has_key, other=0.0).to(arithmetic)
    value = tl.load(value_ptr + row * value_width + columns, mask=has_value, other=0.0)
    place = row * width * value_width + channels[:, None] * value_width + columns[None, :]
    state = tl.load(state_ptr + place, mask=inside, other=0.0).to(arithmetic)
    if log_decay_ptr is not None:
        channel = channels if decay_width > 1 else tl.zeros_like(channels)
        log_decay_ptr += row * decay_width
        log_decay = tl.load(log_decay_ptr + channel, mask=has_key, other=0.0).to(arithmetic)
        state *= tl.exp(log_decay)[:, None]
    state += key[:, None] * value.to(arithmetic)[None, :]
    tl.store(new_state_ptr + place, state.to(new_state_ptr.dtype.element_ty), mask=inside)
    read = tl.sum(query[:, None] * state, 0) * scale
    read_place = read_ptr + row * value_width + columns
    tl.store(read_place, read.to(read_ptr.dtype.element_ty), mask=has_value)


def part_of(width: int, value_width: int) -> int:
    """How many columns of the state a program holds."""
    return min(padded(value_width), max(16, NUMBERS_OF_A_PART // padded(width)))


def warps_of(width: int) -> int:
    """More warps for more rows, so that each thread holds 32 numbers of the state or fewer."""
    return 8 if width > 64 else 4


def check_step(tensors: dict[str, Tensor]) -> None:
    """Raise unless query, key, value, state and log_decay fit and require no gradient."""
    query, value = tensors["query"], tensors["value"]
    for name, tensor in tensors.items():
        check_dtype(name, tensor)
        check_sum_dtype(name, tensor, query)
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name} requires a gradient, and the step has no backward pass: call it under "
                "torch.no_grad(), or use linear_attention on a sequence of one token"
            )
    for name in ("key", "value"):
        if tensors[name].dtype != query.dtype:
            raise TypeError(
                f"{name} must have the dtype of query, {query.dtype}, got {tensors[name].dtype}"
            )
    if query.dim() < 1 or not 1 <= query.shape[-1] <= 256:
        raise ValueError(f"query must be (*batch, heads, 1 to 256), got {tuple(query.shape)}")
    if tensors["key"].shape != query.shape:
        raise ValueError(
            f"key must have the shape of query, {tuple(query.shape)}, "
            f"got {tuple(tensors['key'].shape)}"
        )
    if value.dim() < 1 or value.shape[:-1] != query.shape[:-1] or value.shape[-1] < 1:
        raise ValueError(
            f"value must have shape {(*query.shape[:-1], 'E')}, got {tuple(value.shape)}"
        )
    state_shape = (*query.shape, value.shape[-1])
    if tensors["state"].shape != state_shape:
        raise ValueError(
            f"state must have shape {state_shape}, got {tuple(tensors['state'].shape)}"
        )
    if "log_decay" in tensors and tensors["log_decay"].shape not in (
        query.shape[:-1],
        query.shape,
    ):
        raise ValueError(
            f"log_decay must have shape {tuple(query.shape[:-1])}, one number a head, or "
            f"{tuple(query.shape)}, one a key channel, got {tuple(tensors['log_decay'].shape)}"
        )
