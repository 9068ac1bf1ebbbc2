"""How linear_attention is proved and timed: its reference, its inputs, its launches, its bytes."""

from collections.abc import Callable, Iterator

import torch
from attnlib.kernels.gated_linear_attention import gated_read_kernel, score_kernel
from attnlib.kernels.gated_linear_attention_gradient import (
    gated_gradient_kernel,
    gated_value_gradient_kernel,
)
from attnlib.kernels.linear_attention import linear_attention, read_kernel
from attnlib.kernels.linear_attention_gradient import (
    query_and_key_gradient_kernel,
    value_gradient_kernel,
)
from attnlib.kernels.linear_states import TILES, renamed, state_gradient_kernel, state_kernel
from attnlib.kernels.offline_compile import SHARED_MEMORY
from attnlib.kernels.proof import POINTERS, Case, Launch, Proof, types_of
from attnlib.kernels.tile_choice import tile
from attnlib.kernels.tiles import arithmetic_of
from torch import Tensor

LENGTHS = (1, 15, 63, 100, 257)
READ_ONLY = {"outputs": 1}  # timed cases: the benchmark compares one tensor


def kernel(query, key, value, log_decay, initial_state, options: dict):
    """linear_attention with its options in a dictionary; the state in the dtype of the input."""
    read, final_state = linear_attention(
        query, key, value, log_decay, initial_state, scale=options.get("scale")
    )
    both = read, final_state.to(query.dtype)
    return both[0] if options.get("outputs") == 1 else both


def reference(query, key, value, log_decay, initial_state, options: dict):
    """The equation, token by token."""
    scale = options.get("scale") or query.shape[-1] ** -0.5
    state = initial_state
    if state is None:
        state = query.new_zeros(*query.shape[:-2], query.shape[-1], value.shape[-1])
    reads = []
    for t in range(query.shape[-2]):
        if log_decay is not None:
            by_channel = log_decay.dim() == query.dim()
            decay = (log_decay[..., t, :] if by_channel else log_decay[..., t, None]).exp()
            state = decay[..., None] * state
        state = state + key[..., t, :, None] * value[..., t, None, :]
        reads.append(scale * (query[..., t, None, :] @ state).squeeze(-2))
    read = torch.stack(reads, -2)
    return read if options.get("outputs") == 1 else (read, state)


def cases(dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """Odd lengths for each kind of decay; each layout and width with its own way to go wrong."""
    draw = torch.Generator().manual_seed(1)

    def rows(*shape: int) -> Tensor:
        numbers = torch.randn(shape, generator=draw, dtype=torch.float64)
        return numbers.to(device, dtype).requires_grad_()

    def case(name, tokens, decay=None, batch=(), width=16, value_width=16, least=-0.5, **more):
        """One case; `decay` is None, "token" or "channel", drawn evenly from `least` to 0."""
        shape = {None: None, "token": (*batch, tokens), "channel": (*batch, tokens, width)}[decay]
        log_decay = None
        if shape is not None:
            log_decay = least * torch.rand(shape, generator=draw, dtype=torch.float64)
            if more.pop("resets", False):  # every seventh token forgets all
                log_decay[..., 3::7] = -1e4
            log_decay = log_decay.to(device, dtype).requires_grad_()
        state = rows(*batch, width, value_width) if more.pop("starts", False) else None
        tensors = (rows(*batch, tokens, n) for n in (width, width, value_width))
        return Case(name, (*tensors, log_decay, state, more))

    # Interpreted, float64 decides. There, float32 shows that no exponent loses its digits, and half
    # precision that the casts are in place: a few cases are enough.
    on_chip = device.type == "cuda"
    brief = dtype.itemsize == 2 and not on_chip
    full = dtype == torch.float64 or on_chip
    for tokens in LENGTHS if full else (1, 15) if brief else (257,):
        one = {"value_width": 1} if tokens == 1 else {"starts": True}  # of one token: none rounds
        yield case(f"{tokens} tokens, decay by token", tokens, "token", **one)
        yield case(f"{tokens} tokens, decay by channel", tokens, "channel", **one)
    yield case("no decay", 15 if brief else 150, starts=True)
    yield case("-10 a channel", 20, "channel", least=-10.0, starts=True)
    yield case("heads, decay by token", 20, "token", batch=(2,), starts=True)
    if brief:
        return
    for decay in ("token", "channel"):
        yield case(f"-1e4 a {decay}", 30, decay, least=-1e4, starts=True)
        yield case(f"some {decay}s forget all", 70, decay, resets=True)
    if not full:
        return
    yield case("heads, decay by channel", 20, "channel", batch=(2,), starts=True)
    for decay in ("token", "channel"):
        yield case(f"widths 40 and 3, by {decay}", 15, decay, width=40, value_width=3, scale=0.3)
        yield case(f"widths 1 and 20, by {decay}", 15, decay, width=1, value_width=20, starts=True)
    yield case("two axes of batch, no decay", 15, batch=(2, 1), width=24, value_width=20)
    yield case("wider than a part", 15, "token", width=70, value_width=70)
    several = rows(1, 20, 2, 4, 16).detach()
    parts = [part.transpose(1, 2) for part in several.unbind(3)]
    parts[3] = -parts[3].square()
    yield Case("heads beside the width", (*(p.requires_grad_() for p in parts), None, {}))
    shared = rows(1, 20, 16).detach().expand(3, 20, 16)
    constant = torch.tensor([[-0.1], [-1.0], [-2.0]], dtype=dtype, device=device).expand(3, 20)
    tensors = rows(3, 20, 16), shared, rows(3, 20, 16), constant, None
    yield Case("keys of all heads, one decay a head", (*tensors, {}))
    if on_chip:
        for decay in (None, "token", "channel"):
            for width, batch in ((64, (2, 4)), (80, (2, 4)), (128, (2, 4)), (256, (1, 2))):
                more = {"batch": batch, "width": width, "value_width": width, "starts": True}
                yield case(f"1025 tokens, decay by {decay}, width {width}", 1025, decay, **more)


def launches() -> Iterator[Launch]:
    """Each kernel with the tile that a chip gets: both kinds of decay, no initial state."""
    half, chips = torch.bfloat16, tuple(SHARED_MEMORY)
    for by_channel in (False, True):
        for dtype, width, on in [
            (half, 128, chips),
            (torch.float16, 64, (90,)),
            *([(torch.float32, 64, (90,))] if by_channel else []),
        ]:
            for chip in on:
                for name, compiled in kernels_by_tile(by_channel):
                    yield launch(name, compiled, dtype, width, by_channel, chip)


def kernels_by_tile(by_channel: bool) -> list[tuple[str, object]]:
    """The kernels of one kind of decay with the name of their tiles."""
    states = [("states", state_kernel), ("states", state_gradient_kernel)]
    if by_channel:
        return [
            *states,
            ("gated scores", score_kernel),
            ("gated read", gated_read_kernel),
            ("gated gradients", gated_gradient_kernel),
            ("gated value gradient", gated_value_gradient_kernel),
        ]
    return [
        *states,
        ("read", read_kernel),
        ("query and key gradients", query_and_key_gradient_kernel),
        ("value gradient", value_gradient_kernel),
    ]


def launch(
    name: str, compiled: object, dtype: torch.dtype, width: int, by_channel: bool, chip: int
) -> Launch:
    """One kernel for one chip. Pointers and steps are multiples of 16, as torch allocates them."""
    choices = renamed(tile(TILES, name, width, width, dtype, SHARED_MEMORY[chip]), width, width)
    warps, stages = choices.pop("num_warps"), choices.pop("num_stages")
    constants = choices | {
        "initial_state_ptr": None,
        "grad_final_state_ptr": None,
        "grad_initial_state_ptr": None,
        "scale": width**-0.5,
        "width": width,
        "value_width": width,
        "decay_width": width if by_channel else 1,
    }
    constants = {name: constants[name] for name in constants if name in compiled.arg_names}
    steps = ("i32:16",) * 3
    special = {
        "final_state_ptr": POINTERS[arithmetic_of(dtype)],
        "query_steps": steps,
        "key_steps": steps,
        "value_steps": steps,
        "decay_steps": steps if by_channel else ("i32:16", "i32:16", "i32"),
        "counts": ("i32", "i32"),
    }
    types = types_of(compiled.arg_names, constants, dtype, special)
    kind = "channel" if by_channel else "token"
    title = compiled.__name__.removesuffix("_kernel").replace("_", " ")
    label = f"{title}, decay by {kind}, {POINTERS[dtype][1:5]}, D {width}, sm_{chip}"
    return Launch(label, compiled, types, constants, warps, stages, chips=(chip,))


def timed_cases(dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """The shape of the published numbers for each kind of decay.

    Heads lie beside the width, as a projection leaves them: other kernels want them there, and ours
    reads them where they are.
    """
    batch, heads, tokens, width = 4, 16, 16384, 128

    def rows(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    shape = f"B{batch} H{heads} N{tokens} D{width}"
    for name, decays in [("no decay", None), ("decay by token", ()), ("by channel", (width,))]:
        tensors = [rows(batch, tokens, heads, width) for _ in range(3)]
        if decays is not None:
            tensors.append(-rows(batch, tokens, heads, *decays).abs() / 16)
        tensors = [tensor.transpose(1, 2).requires_grad_() for tensor in tensors]
        padding = (None,) * (5 - len(tensors))
        yield Case(f"{shape}, {name}", (*tensors, *padding, READ_ONLY))


def bytes_moved(query, key, value, log_decay, initial_state, options: dict) -> dict[str, int]:
    """Forward reads q, k, v, log a and writes o; backward reads those and g, writes gradients."""
    given = (query, key, value, log_decay, initial_state)
    inputs = sum(t.numel() * t.element_size() for t in given if t is not None)
    read = value.numel() * value.element_size()
    return {"forward": inputs + read, "backward": 2 * inputs + read}


def operations(query, key, value, log_decay, initial_state, options: dict) -> dict[str, int]:
    """Those of the equation, token by token: to write a state and to read it, 2 D E each.

    Backward has the gradient of the state, and those of q, k and v from it. The chunks add
    products of C (D + E) a token; they are the price of the form, not of the function.
    """
    tokens = query.numel() // query.shape[-1]
    state = query.shape[-1] * value.shape[-1]
    return {"forward": 4 * tokens * state, "backward": 8 * tokens * state}


def peers(case: Case) -> dict[str, Callable]:
    """The kernels of flash-linear-attention, where it is installed."""
    log_decay = case.arguments[3]
    if log_decay is None:
        return {"fla, linear_attn": fla_linear}
    if log_decay.dim() == 3:
        return {"fla, simple_gla": fla_by_token}
    return {"fla, gla": fla_by_channel}


def fla_linear(query, key, value, log_decay, initial_state, options: dict) -> Tensor:
    from fla.ops.linear_attn import chunk_linear_attn

    tensors = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return chunk_linear_attn(*tensors, normalize=False)[0].transpose(1, 2)


def fla_by_token(query, key, value, log_decay, initial_state, options: dict) -> Tensor:
    from fla.ops.simple_gla import chunk_simple_gla

    tensors = (tensor.transpose(1, 2) for tensor in (query, key, value, log_decay))
    return chunk_simple_gla(*tensors)[0].transpose(1, 2)


def fla_by_channel(query, key, value, log_decay, initial_state, options: dict) -> Tensor:
    from fla.ops.gla import chunk_gla

    tensors = (tensor.transpose(1, 2) for tensor in (query, key, value, log_decay))
    return chunk_gla(*tensors)[0].transpose(1, 2)


PROOF = Proof(
    name="linear_attention",
    kernel=kernel,
    reference=reference,
    cases=cases,
    launches=tuple(launches()),
    timed_cases=timed_cases,
    bytes_moved=bytes_moved,
    timed_dtypes=(torch.bfloat16,),
    operations=operations,
    peers=peers,
)
