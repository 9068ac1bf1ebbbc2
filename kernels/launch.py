"""What every kernel asks before it starts: is Triton here, and can it run on these tensors?

This file imports no triton, so the package can be imported where Triton does not exist (macOS,
Windows). There, calling a kernel raises an ImportError that says what is missing.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

OLDEST_CAPABILITY = (8, 0)  # the first chips with bfloat16 and asynchronous copies
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def available() -> bool:
    """True where Triton is installed, so that the kernels can be called."""
    return importlib.util.find_spec("triton") is not None


def suits(device: torch.device) -> bool:
    """True where the kernels compile for this device: CUDA, compute capability 8.0 or newer."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= OLDEST_CAPABILITY


def missing_kernel(name: str) -> Callable:
    """Stand in for the kernel called `name` where Triton is missing: calling it raises."""

    def kernel(*arguments, **options):
        raise ImportError(
            f"{name} is a Triton kernel and Triton is not installed here. "
            "Use the PyTorch form, or install triton (Linux: pip install triton)."
        )

    kernel.__name__ = name
    return kernel


def interpreted(kernel: object) -> bool:
    """True where Triton runs this kernel in its interpreter instead of compiling it.

    Triton decides at the moment when @triton.jit sees the function, by TRITON_INTERPRET.
    """
    from triton import JITFunction

    return not isinstance(kernel, JITFunction)


def check_dtype(name: str, tensor: Tensor) -> None:
    """Raise a TypeError unless the tensor holds one of the four floating dtypes."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch tensor, got {type(tensor).__name__}")
    if tensor.dtype not in DTYPES:
        raise TypeError(
            f"{name} must be float64, float32, float16 or bfloat16, got {_plain(tensor.dtype)}"
        )


def check_support(support: Tensor, scores: Tensor) -> None:
    """Raise unless `support` is a bool tensor that broadcasts to the shape of `scores`."""
    if not isinstance(support, Tensor):
        raise TypeError(f"support must be a torch tensor, got {type(support).__name__}")
    if support.dtype != torch.bool:
        raise TypeError(
            f"support must be bool (True: the row sees this key), got {_plain(support.dtype)}"
        )
    if support.dim() > scores.dim() or any(
        have not in (1, want)
        for have, want in zip(support.shape[::-1], scores.shape[::-1], strict=False)
    ):
        raise ValueError(
            f"support of shape {tuple(support.shape)} does not broadcast to "
            f"scores of shape {tuple(scores.shape)}"
        )


def check_device(kernel: object, **tensors: Tensor) -> None:
    """Raise a ValueError unless all tensors are on one device on which this kernel can run."""
    places = {name: tensor.device for name, tensor in tensors.items()}
    if len(set(places.values())) > 1:
        listed = ", ".join(f"{name} on {place}" for name, place in places.items())
        raise ValueError(f"all arguments must be on one device, got {listed}")
    name, place = next(iter(places.items()))
    if place.type not in ("cpu", "cuda"):
        raise ValueError(f"{name} must be on a CUDA device or the CPU, got {place}")
    if interpreted(kernel):
        return
    if place.type == "cpu":
        raise ValueError(
            f"{name} is on the CPU, where a kernel runs only in Triton's interpreter: "
            "set TRITON_INTERPRET=1 before triton is first imported, or use the PyTorch form"
        )
    if not suits(place):
        have = ".".join(map(str, torch.cuda.get_device_capability(place)))
        raise ValueError(
            f"{name} is on a chip of compute capability {have}; "
            "the kernels need 8.0 or newer, use the PyTorch form"
        )


def readable(kernel: object, tensor: Tensor) -> Tensor:
    """The tensor, in float32 where it is bfloat16 and the interpreter runs the kernel.

    The interpreter keeps bfloat16 as bare 16-bit patterns and truncates where a GPU rounds.
    """
    if tensor.dtype == torch.bfloat16 and interpreted(kernel):
        return tensor.float()
    return tensor


def on_device_of(tensor: Tensor) -> AbstractContextManager:
    """Make the tensor's GPU the current one: Triton launches on the current device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
