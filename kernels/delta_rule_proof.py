"""How delta_rule is proved and timed: its reference, its inputs, its launches, its bytes."""

from collections.abc import Iterator

import torch
from attnlib.kernels.delta_rule import delta_rule, inverse_kernel, state_kernel
from attnlib.kernels.delta_rule_chunks import choices_of
from attnlib.kernels.delta_rule_gradient import (
    question_gradient_kernel,
    state_gradient_kernel,
    write_gradient_kernel,
)
from attnlib.kernels.offline_compile import SHARED_MEMORY
from attnlib.kernels.proof import POINTERS, Case, Launch, Proof, types_of
from attnlib.kernels.tiles import arithmetic_of
from torch import Tensor

CHUNK = 64  # tokens, of the chunk form whose operations are counted


def kernel(query, key, value, beta, log_decay, initial_state, options):
    """delta_rule with its options in a dictionary; the state in the dtype of the input."""
    read, final_state = delta_rule(query, key, value, beta, log_decay, initial_state, **options)
    return read, final_state.to(query.dtype)


def reference(query, key, value, beta, log_decay, initial_state, options):
    """The equation, token by token."""
    scale = options.get("scale") or query.shape[-1] ** -0.5
    state = initial_state
    if state is None:
        state = query.new_zeros(*query.shape[:-2], query.shape[-1], value.shape[-1])
    reads = []
    for t in range(query.shape[-2]):
        if log_decay is not None:
            state = log_decay[..., t, None, None].exp() * state
        recalled = (key[..., t, None, :] @ state).squeeze(-2)
        write = beta[..., t, None] * (value[..., t, :] - recalled)
        state = state + key[..., t, :, None] * write[..., None, :]
        reads.append(scale * (query[..., t, None, :] @ state).squeeze(-2))
    read = torch.stack(reads, -2) if reads else value.clone()
    return read, state


def cases(dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """Odd lengths, and each option, layout and width that has its own way to go wrong."""
    draw = torch.Generator().manual_seed(1)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    def leaf(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(device, dtype).requires_grad_()

    def unit(tensor: Tensor) -> Tensor:
        return tensor / tensor.norm(dim=-1, keepdim=True)

    def case(name, tokens, heads=(), width=16, value_width=16, state=False, **gates):
        query, key = numbers(*heads, tokens, width), unit(numbers(*heads, tokens, width))
        key = gates.get("key", key)
        value = numbers(*heads, tokens, value_width)
        beta = gates.get("beta", torch.rand(*heads, tokens, generator=draw, dtype=torch.float64))
        decay = gates.get("decay")
        if isinstance(decay, float):  # the mean
            decay = decay * 2 * torch.rand(*heads, tokens, generator=draw, dtype=torch.float64)
        initial = numbers(*heads, width, value_width) if state else None
        tensors = [leaf(t) for t in (query, key, value, beta, decay, initial)]
        return Case(name, (*tensors, gates.get("options", {})))

    yield case("1 tokens", 1, value_width=1)  # one token: no sum may cancel
    yield case("15 tokens", 15)
    yield case("63 tokens, decay, state", 63, decay=-0.3, state=True)
    yield case("nothing is written", 15, beta=torch.zeros(15), state=True)
    resets = torch.where(torch.arange(40) % 7 == 3, -50.0, -0.01)
    resets[20] = -torch.inf
    yield case("some tokens forget all", 40, decay=resets, state=True)
    yield case("heads, width 1", 15, heads=(2,), width=1, value_width=5, decay=-0.3)
    if dtype in (torch.float16, torch.bfloat16) and device.type == "cpu":
        return  # half precision in the interpreter guards the path of the dtype: these do

    yield case("1 tokens, decay, state", 1, decay=-0.3, heads=(3,), state=True)
    yield case("100 tokens, state", 100, state=True)
    yield case("257 tokens, decay", 257, decay=-0.1)
    yield case("each token forgets", 40, decay=torch.full((40,), -50.0), state=True)
    yield case("two axes of batch", 15, heads=(2, 1, 1), state=True)
    yield case("widths 40 and 80", 40, width=40, value_width=80, decay=-0.3, state=True)
    yield case("widths 80 and 3", 15, width=80, value_width=3, state=True)
    yield case("width 256", 5, width=256, value_width=20, decay=-0.3, state=True)
    yield case("scale 0.3", 15, options={"scale": 0.3})
    several = numbers(1, 20, 2, 3, 16)
    several[..., 1, :] = unit(several[..., 1, :])
    rows = [leaf(part.transpose(1, 2)) for part in several.unbind(3)]
    gate = torch.rand(1, 20, 2, generator=draw, dtype=torch.float64)
    gates = leaf(gate.transpose(1, 2)), leaf(-gate.transpose(1, 2))
    yield Case("heads beside the width", (*rows, *gates, None, {}))
    wider = [unit(numbers(40, 20))[::2, 2:18].to(device, dtype).requires_grad_() for _ in range(3)]
    gates = [leaf(sign * gate[0, :, 0]) for sign in (1, -1)]
    yield Case("every second row of a wider tensor", (*wider, *gates, None, {}))
    if dtype in (torch.float64, torch.float32):
        # With b = 2 each write is a reflection, which damps no rounding: too hard for 16 bits, in
        # any form of the rule.
        same = unit(numbers(16)).expand(40, 16)
        twice = torch.full((40,), 2.0)
        yield case("equal keys, beta 2", 40, key=same, beta=twice, state=True)
        both = same * numbers(40, 1).sign()
        yield case("keys of both signs, beta 2", 40, key=both, beta=twice)
    if device.type == "cuda":
        for width in (64, 80, 128, 256):
            for name, decay in (("", None), (", decay", -0.1), (", long decay", -0.005)):
                options = {"heads": (2, 4), "width": width, "value_width": width, "decay": decay}
                yield case(f"many chunks, width {width}{name}", 515, **options, state=True)
        yield case("many chunks, D 128, E 64", 700, (2, 4), 128, 64, decay=-0.1)


def launches() -> Iterator[Launch]:
    """Each kernel for each chip, with the tile that the chip gets; gated, as all of it then runs.

    The kernels of linear attention that this one launches are compiled with linear attention.
    """
    compiled = {
        "inverse": inverse_kernel,
        "state": state_kernel,
        "write gradient": write_gradient_kernel,
        "state gradient": state_gradient_kernel,
        "question gradient": question_gradient_kernel,
    }
    shapes = [
        (torch.float16, 128),
        (torch.bfloat16, 64),
        (torch.bfloat16, 128),
        (torch.float32, 64),
    ]
    for dtype, width in shapes:
        for chip, shared_memory in SHARED_MEMORY.items():
            if dtype in (torch.float16, torch.float32) and chip != 90:
                continue
            for name, function in compiled.items():
                choices = choices_of(name, function, width, width, dtype, shared_memory)
                yield launch(name, function, dtype, width, choices, chip)
    choices = choices_of("state", state_kernel, 128, 128, torch.bfloat16, SHARED_MEMORY[90])
    yield launch("state, no decay", state_kernel, torch.bfloat16, 128, choices, 90)


def launch(name, function, dtype, width, choices, chip) -> Launch:
    """One compilation of one kernel; widths are equal."""
    constants = dict(choices)
    warps, stages = constants.pop("num_warps"), constants.pop("num_stages")
    given = {"scale": width**-0.5, "width": width, "value_width": width}
    constants |= {key: given[key] for key in given if key in function.arg_names}
    if "no decay" in name:
        constants |= {"log_decay_ptr": None, "decay_steps": None}
    types = types_of(function.arg_names, constants, dtype, special_types(dtype))
    short = POINTERS[dtype][1:5]
    label = f"{name}, {short}, D {width} E {width}, sm_{chip}"
    return Launch(label, function, types, constants, warps, stages, chips=(chip,))


def special_types(dtype: torch.dtype) -> dict:
    """Arguments that are no pointers to this dtype; steps of rows are multiples of 16."""
    sums = POINTERS[arithmetic_of(dtype)]
    return {
        "initial_state_ptr": sums,
        "final_state_ptr": sums,
        "grad_final_state_ptr": sums,
        "grad_initial_state_ptr": sums,
        "read_part_ptr": sums,
        "read_decay_part_ptr": sums,
        "inverse_ptr": sums,
        "query_steps": ("i32:16",) * 3,
        "key_steps": ("i32:16",) * 3,
        "value_steps": ("i32:16",) * 3,
        "beta_steps": ("i32", "i32", "i32"),
        "decay_steps": ("i32", "i32", "i32"),
        "counts": ("i32",) * 2,
    }


def timed_cases(dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """The two shapes of published numbers: few heads and long, many heads and shorter."""
    for batch, heads, length, width in [(2, 16, 16384, 128), (4, 64, 4096, 128)]:
        for name, gated in (("plain", False), ("gated", True)):

            def rows(*more: int, shape=(batch, heads, length)) -> Tensor:
                return torch.randn(*shape, *more, device=device, dtype=dtype)

            query, value = rows(width).requires_grad_(), rows(width).requires_grad_()
            key = torch.nn.functional.normalize(rows(width), dim=-1).requires_grad_()
            beta = rows().sigmoid().requires_grad_()
            decay = torch.nn.functional.logsigmoid(rows() + 3).requires_grad_() if gated else None
            arguments = (query, key, value, beta, decay, None, {})
            yield Case(f"B{batch} H{heads} N{length} D{width}, {name}", arguments)


def bytes_moved(query, key, value, beta, log_decay, initial_state, options) -> dict[str, int]:
    """Forward reads all inputs, writes o and S_N; backward reads those gradients, writes others."""
    tensors = (query, key, value, beta, log_decay, initial_state)
    inputs = sum(t.numel() * t.element_size() for t in tensors if t is not None)
    states = query.numel() // query.shape[-2] * value.shape[-1] * max(4, query.element_size())
    read = value.numel() * value.element_size()
    return {"forward": inputs + read + states, "backward": 2 * inputs + read + states}


def operations(query, key, value, beta, log_decay, initial_state, options) -> dict[str, int]:
    """Products of the chunk form with 64 tokens in a chunk; the inverse is none of them."""
    rows, width, value_width = query.numel() // query.shape[-1], query.shape[-1], value.shape[-1]
    return {
        "forward": rows * (6 * width * value_width + 4 * CHUNK * (width + value_width)),
        "backward": rows * (12 * width * value_width + CHUNK * (12 * width + 8 * value_width)),
    }


def peers(case: Case) -> dict:
    """The chunk form of flash-linear-attention, where that package is installed.

    It has tokens before heads; the transposes are views, its own copies are part of its time.
    """

    def flash_linear_attention(query, key, value, beta, log_decay, initial_state, options):
        rows = [tensor.transpose(1, 2) for tensor in (query, key, value)]
        gates = {"beta": beta.transpose(1, 2), "scale": options.get("scale")}
        gates |= {"initial_state": initial_state, "output_final_state": True}
        if log_decay is None:
            from fla.ops.delta_rule import chunk_delta_rule

            read, final_state = chunk_delta_rule(*rows, **gates)
        else:
            from fla.ops.gated_delta_rule import chunk_gated_delta_rule

            read, final_state = chunk_gated_delta_rule(*rows, g=log_decay.transpose(1, 2), **gates)
        return read.transpose(1, 2), final_state.to(query.dtype)

    return {"flash-linear-attention": flash_linear_attention}


PROOF = Proof(
    name="delta_rule",
    kernel=kernel,
    reference=reference,
    cases=cases,
    launches=tuple(launches()),
    timed_cases=timed_cases,
    bytes_moved=bytes_moved,
    timed_dtypes=(torch.bfloat16, torch.float16),
    operations=operations,
    peers=peers,
)
