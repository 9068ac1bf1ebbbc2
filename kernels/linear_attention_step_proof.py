"""How linear_attention_step is proved and timed: its reference, its inputs, its launches."""

from collections.abc import Iterator

import torch
import triton.language as tl
from attnlib.kernels.linear_attention_step import (
    linear_attention_step,
    part_of,
    step_kernel,
    warps_of,
)
from attnlib.kernels.proof import POINTERS, Case, Launch, Proof, types_of
from attnlib.kernels.tiles import arithmetic_of


def kernel(query, key, value, log_decay, state, options: dict):
    """linear_attention_step with its options in a dictionary; the state in the dtype of query."""
    read, state = linear_attention_step(query, key, value, log_decay, state, scale=options["scale"])
    return read if options.get("outputs") == 1 else (read, state.to(query.dtype))


def reference(query, key, value, log_decay, state, options: dict):
    """The equation."""
    if log_decay is not None:
        by_channel = log_decay.dim() == query.dim()
        decay = (log_decay if by_channel else log_decay[..., None]).exp()
        state = decay[..., None] * state
    state = state + key[..., :, None] * value[..., None, :]
    scale = options["scale"] or query.shape[-1] ** -0.5
    read = scale * (query[..., None, :] @ state).squeeze(-2)
    return read if options.get("outputs") == 1 else (read, state)


def cases(dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """Odd widths and numbers of sequences, each kind of decay, decays that leave nothing."""
    draw = torch.Generator().manual_seed(1)

    def case(name, batch, width, value_width, decay=None, least=-1.0, scale=None):
        rows = [(*batch, width), (*batch, width), (*batch, value_width)]
        numbers = [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in rows]
        shape = {None: (), "head": batch, "channel": (*batch, width)}[decay]
        log_decay = least * torch.rand(shape, generator=draw, dtype=torch.float64)
        state = torch.randn((*batch, width, value_width), generator=draw, dtype=torch.float64)
        tensors = [t.to(device, dtype) for t in (*numbers, log_decay, state)]
        tensors[3] = None if decay is None else tensors[3]
        return Case(name, (*tensors, {"scale": scale}))

    yield case("one head", (), 15, 63)
    yield case("widths 1 and 1", (3,), 1, 1, "head")
    for decay in ("head", "channel"):
        yield case(f"decay by {decay}", (2, 3), 63, 100, decay)
        yield case(f"decay by {decay}, -1e4", (2, 2), 16, 16, decay, least=-1e4)
    yield case("several parts", (2,), 64, 257, scale=0.3)
    yield case("width 256, no decay", (1, 1, 1), 256, 100)
    if device.type == "cuda":
        for decay in (None, "head", "channel"):
            yield case(f"32 sequences, decay by {decay}", (32, 16), 128, 128, decay)


def launches() -> Iterator[Launch]:
    """Decay by channel, the state in the dtype of its sums, for all three chips."""
    for dtype, width in [
        (torch.float16, 64),
        (torch.bfloat16, 128),
    ]:
        constants = {
            "scale": width**-0.5,
            "width": width,
            "value_width": width,
            "decay_width": width,
            "arithmetic": tl.float32,
            "value_part": part_of(width, width),
        }
        sums = POINTERS[arithmetic_of(dtype)]
        special = dict.fromkeys(("state_ptr", "new_state_ptr", "log_decay_ptr"), sums)
        types = types_of(step_kernel.arg_names, constants, dtype, special)
        label = f"step, {POINTERS[dtype][1:5]}, D {width} E {width}"
        yield Launch(label, step_kernel, types, constants, warps_of(width), 1)


def timed_cases(dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """One token for 32 sequences, with states in float32, as they are kept."""
    for name, batch, heads, width in [("", 32, 16, 128), (", few", 1, 16, 128)]:
        rows = [torch.randn(batch, heads, width, device=device, dtype=dtype) for _ in range(3)]
        log_decay = -torch.rand(batch, heads, width, device=device)
        state = torch.randn(batch, heads, width, width, device=device)
        arguments = (*rows, log_decay, state, {"scale": None, "outputs": 1})
        yield Case(f"B{batch} H{heads} D{width}{name}", arguments)


def bytes_moved(query, key, value, log_decay, state, options: dict) -> dict[str, int]:
    """The state is read and written; the rest is read once, and o written."""
    given = (query, key, value, log_decay, value, state, state)
    return {"forward": sum(t.numel() * t.element_size() for t in given if t is not None)}


PROOF = Proof(
    name="linear_attention_step",
    kernel=kernel,
    reference=reference,
    cases=cases,
    launches=tuple(launches()),
    timed_cases=timed_cases,
    bytes_moved=bytes_moved,
    timed_dtypes=(torch.bfloat16,),
)
