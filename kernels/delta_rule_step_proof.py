"""How delta_rule_step is proved and timed: its reference, its inputs, its launches, its bytes."""

from collections.abc import Iterator

import torch
import triton.language as tl
from attnlib.kernels.delta_rule_step import delta_rule_step, step_kernel, step_tile
from attnlib.kernels.proof import POINTERS, Case, Launch, Proof, types_of
from attnlib.kernels.tiles import arithmetic_of


def kernel(query, key, value, beta, state, log_decay, options: dict):
    """delta_rule_step with its options in a dictionary; the state in the dtype of query."""
    read, state = delta_rule_step(query, key, value, beta, state, log_decay, **options)
    return read, state.to(query.dtype)


def reference(query, key, value, beta, state, log_decay, options: dict):
    """The equation."""
    if log_decay is not None:
        state = log_decay[..., None, None].exp() * state
    error = value - (key[..., None, :] @ state).squeeze(-2)
    state = state + beta[..., None, None] * key[..., :, None] * error[..., None, :]
    scale = options.get("scale") or query.shape[-1] ** -0.5
    return scale * (query[..., None, :] @ state).squeeze(-2), state


def cases(dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """Odd widths and numbers of sequences, with and without decay, a decay that leaves nothing."""
    draw = torch.Generator().manual_seed(1)

    def case(name, batch, width, value_width, decay=None, **options):
        shapes = [(*batch, width), (*batch, width), (*batch, value_width)]
        rows = [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes]
        rows[1] /= rows[1].norm(dim=-1, keepdim=True)
        beta = 2 * torch.rand(batch, generator=draw, dtype=torch.float64)
        state = torch.randn((*batch, width, value_width), generator=draw, dtype=torch.float64)
        log_decay = None if decay is None else torch.full(batch, decay, device=device, dtype=dtype)
        tensors = [tensor.to(device, dtype) for tensor in (*rows, beta, state)]
        return Case(name, (*tensors, log_decay, options))

    yield case("one head", (), 15, 63)
    yield case("widths 1 and 1", (3,), 1, 1, -0.5)
    yield case("decay", (2, 3), 63, 100, -0.5)
    yield case("decay of -1e4", (2, 2), 16, 16, -1e4)
    yield case("several parts", (2,), 64, 257, scale=0.3)
    yield case("width 256", (1, 1, 1), 256, 100)
    if device.type == "cuda":
        yield case("32 sequences", (32, 16), 128, 128)
        yield case("32 sequences, decay", (32, 16), 128, 128, -0.1)


def launches() -> Iterator[Launch]:
    """With decay, the state in the dtype of its sums, for all three chips."""
    for dtype, width in [
        (torch.float16, 64),
        (torch.bfloat16, 128),
        (torch.bfloat16, 256),
        (torch.float32, 128),
    ]:
        choices = step_tile(width, width)
        warps = choices.pop("num_warps")
        constants = choices | {
            "scale": width**-0.5,
            "width": width,
            "value_width": width,
            "arithmetic": tl.float32,
        }
        sums = POINTERS[arithmetic_of(dtype)]
        special = dict.fromkeys(("state_ptr", "new_state_ptr", "log_decay_ptr"), sums)
        types = types_of(step_kernel.arg_names, constants, dtype, special)
        label = f"step, {POINTERS[dtype][1:5]}, D {width} E {width}"
        yield Launch(label, step_kernel, types, constants, warps, 1)


def timed_cases(dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """One token for 32 sequences and for one, with states in float32, as they are kept."""
    for batch, heads, width in [(32, 16, 128), (1, 16, 128)]:
        rows = [torch.randn(batch, heads, width, device=device, dtype=dtype) for _ in range(3)]
        rows[1] = torch.nn.functional.normalize(rows[1], dim=-1)
        beta = torch.rand(batch, heads, device=device, dtype=dtype)
        state = torch.randn(batch, heads, width, width, device=device)
        log_decay = -torch.rand(batch, heads, device=device)
        yield Case(f"B{batch} H{heads} D{width}", (*rows, beta, state, log_decay, {}))


def bytes_moved(query, key, value, beta, state, log_decay, options: dict) -> dict[str, int]:
    """The state is read and written; the rest is read once, and o written."""
    given = (query, key, value, beta, log_decay, value, state, state)
    return {"forward": sum(t.numel() * t.element_size() for t in given if t is not None)}


PROOF = Proof(
    name="delta_rule_step",
    kernel=kernel,
    reference=reference,
    cases=cases,
    launches=tuple(launches()),
    timed_cases=timed_cases,
    bytes_moved=bytes_moved,
    timed_dtypes=(torch.bfloat16,),
)
