"""Which form of a mechanism runs: plain PyTorch or its Triton kernel. One rule for all of them.

A mechanism with a kernel takes `backend="auto" | "torch" | "triton"`:

- "torch": the PyTorch form, on every device;
- "auto": the kernel for CUDA tensors on a chip of compute capability 8.0 or newer, where Triton is
  installed and the kernel can do this very call; the PyTorch form everywhere else, so on every CPU;
- "triton": the kernel or an error that says why not. On a CPU it runs in Triton's interpreter.

The choice never changes the result beyond rounding. Importing this file imports no triton.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from attnlib.choices import check_choice

BACKENDS = ("auto", "torch", "triton")
OLDEST_CAPABILITY = (8, 0)
SHARED_MEMORY_OF_TILES = 101_376
"""Bytes: every tile of every kernel is compiled to fit a chip that has these."""

WhyNot = Callable[[], str | None]
"""Says in a sentence what of a call the kernel cannot do; None where it can do all of it."""


def runs_kernel(backend: str, device: torch.device, why_not: WhyNot) -> bool:
    """True where a call belongs to the kernel, False where it belongs to the PyTorch form.

    `why_not` is asked last, and only where the device could run a kernel, so it may import triton.
    Raises ValueError for an unknown backend, and with backend="triton" where the kernel cannot run
    this call; ImportError where Triton is missing then.
    """
    check_choice("backend", backend, BACKENDS)
    if backend == "torch" or (backend == "auto" and device.type != "cuda"):
        return False
    if not triton_installed():
        if backend == "auto":
            return False
        raise ImportError(
            "backend='triton' needs Triton, which is not installed here "
            "(Linux: pip install triton); backend='auto' uses PyTorch instead"
        )
    problem = obstacle(device) or why_not()
    if problem is not None and backend == "triton":
        raise ValueError(f"backend='triton' cannot run this call: {problem}")
    return problem is None


def obstacle(device: torch.device) -> str | None:
    """Why no kernel at all can run on this device, or None."""
    if device.type == "cuda":
        have = capability(device)
        if have < OLDEST_CAPABILITY:
            return (
                f"the chip has compute capability {have[0]}.{have[1]}, and the kernels need "
                "8.0 or newer"
            )
        there = shared_memory(device)
        if there < SHARED_MEMORY_OF_TILES:
            return (
                f"tiles need up to {SHARED_MEMORY_OF_TILES} bytes of shared memory, and the chip "
                f"has {there}"
            )
        return None
    if device.type == "cpu":
        return interpreter_obstacle()
    return f"query is on {device}, and a kernel runs on a CUDA device or in the interpreter"


def interpreter_obstacle() -> str | None:
    """Why Triton's interpreter cannot stand in for a GPU in this process, or None.

    Triton looks at TRITON_INTERPRET when it is imported, for its own functions, and again when it
    meets each kernel. Set in between, kernels and Triton's own functions do not fit together.
    """
    if interprets_kernels() and interprets_its_own_functions():
        return None
    return (
        "on a CPU a kernel runs in Triton's interpreter only, and TRITON_INTERPRET=1 was not set "
        "when triton was first imported; restart Python, set it first, or use backend='torch'"
    )


def width_obstacle(query: Tensor, value: Tensor) -> str | None:
    """Why heads of these widths have no tile, or None."""
    from attnlib.kernels.launch import LARGEST_WIDTH

    widths = query.shape[-1], value.shape[-1]
    if all(1 <= width <= LARGEST_WIDTH for width in widths):
        return None
    return (
        f"the kernels take widths from 1 to {LARGEST_WIDTH}, got D = {widths[0]}, E = {widths[1]}"
    )


def gradient_wanted(*tensors: Tensor) -> bool:
    """True where autograd would record what is done with these tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def triton_installed() -> bool:
    """True where triton can be imported."""
    return importlib.util.find_spec("triton") is not None


def capability(device: torch.device) -> tuple[int, int]:
    """The compute capability of a CUDA device."""
    return torch.cuda.get_device_capability(device)


def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that one program may use on a CUDA device."""
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def interprets_kernels() -> bool:
    """True where the kernels of this package were made for the interpreter."""
    from attnlib.kernels.launch import interpreted

    return interpreted(importlib.import_module("attnlib.kernels.masked_softmax").forward_kernel)


def interprets_its_own_functions() -> bool:
    """True where Triton's own functions, such as tl.zeros, were made for the interpreter."""
    import triton.language as tl

    from attnlib.kernels.launch import interpreted

    return interpreted(tl.zeros)
