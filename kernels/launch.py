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
LARGEST_WIDTH = 256  # of a head; wider tiles fit no chip
LARGEST_NUMBER = 1e30  # of a scale or a bias: float32 and its reciprocal can hold it
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
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got the layout {_plain(tensor.layout)}")
    if tensor.dtype not in DTYPES:
        raise TypeError(
            f"{name} must be float64, float32, float16 or bfloat16, got {_plain(tensor.dtype)}"
        )


def check_attention(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Raise unless query (..., H, N, D), key (..., Hkv, M, D) and value (..., Hkv, M, E) fit.

    H must be a multiple of Hkv, the widths 1 to 256, the numbers of a row adjacent.
    """
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        check_dtype(name, tensor)
        shape = tuple(tensor.shape)
        if tensor.dtype != query.dtype:
            raise TypeError(
                f"{name} must have the dtype of query, {_plain(query.dtype)}, "
                f"got {_plain(tensor.dtype)}"
            )
        if tensor.dim() < 2 or tensor.dim() != query.dim():
            raise ValueError(
                f"{name} must have shape (..., heads, length, width) or (length, width) and as "
                f"many axes as query, got {shape} beside a query of shape {tuple(query.shape)}"
            )
        if not 1 <= shape[-1] <= LARGEST_WIDTH:
            raise ValueError(
                f"{name} must have a width (head dim) from 1 to {LARGEST_WIDTH}, got {shape[-1]}"
            )
        if shape[-1] > 1 and tensor.stride(-1) != 1:
            raise ValueError(
                f"{name} must have a last stride of 1 (the numbers of a row adjacent), "
                f"got {tensor.stride(-1)}; call {name}.contiguous()"
            )
        if shape[:-3] != query.shape[:-3]:
            raise ValueError(
                f"{name} must have the batch axes of query, {tuple(query.shape[:-3])}, "
                f"got {shape[:-3]}"
            )
    if key.shape[-1] != query.shape[-1]:
        raise ValueError(
            f"key must have the width of query, {query.shape[-1]}, got {key.shape[-1]}"
        )
    if value.shape[:-1] != key.shape[:-1]:
        raise ValueError(
            f"value must have one row for each key: {(*key.shape[:-1], 'E')} expected, "
            f"got {tuple(value.shape)}"
        )
    if query.dim() > 2:
        heads, key_heads = query.shape[-3], key.shape[-3]
        if heads % key_heads if key_heads else heads:
            raise ValueError(
                "the heads of query must be a multiple of the heads of key, "
                f"got {heads} query heads and {key_heads} key heads"
            )


def check_key_mask(key_mask: Tensor, key: Tensor) -> None:
    """Raise unless `key_mask` is bool and broadcasts to the key's (*batch, M)."""
    shape = (*key.shape[:-3], key.shape[-2])
    if not isinstance(key_mask, Tensor) or key_mask.dtype != torch.bool:
        came = _plain(key_mask.dtype) if isinstance(key_mask, Tensor) else type(key_mask).__name__
        raise TypeError(f"key_mask must be a bool tensor (True: the key may be read), got {came}")
    if not _broadcasts(key_mask.shape, shape):
        raise ValueError(
            f"key_mask of shape {tuple(key_mask.shape)} does not broadcast to "
            f"the batch axes and keys {shape}"
        )


def check_whole(name: str, number: int, least: int | None = None, most: int | None = None) -> None:
    """Raise unless `number` is an int, not under `least` and not over `most` where given."""
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{name} must be an int, got {type(number).__name__}")
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    if most is not None and number > most:
        raise ValueError(f"{name} must be at most {most}, got {number}")


def check_flag(name: str, flag: bool) -> None:
    """Raise a TypeError unless `flag` is True or False: the string "False" counts as true."""
    if not isinstance(flag, bool):
        raise TypeError(f"{name} must be True or False, got {flag!r}")


def check_scale(scale: float | None) -> None:
    """Raise unless the scale is None (the default) or a positive number that float32 can hold."""
    if scale is None:
        return
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise TypeError(f"scale must be a number, got {type(scale).__name__}")
    if not 1 / LARGEST_NUMBER <= scale <= LARGEST_NUMBER:
        raise ValueError(
            f"scale must be a positive finite number, got {shortened(scale)} "
            "(it has to lie between 1e-30 and 1e30)"
        )


def shortened(number: float) -> str:
    """A number as it was given; the first digits of a very long one."""
    try:
        return str(number) if len(str(number)) < 40 else f"{str(number)[:12]}..."
    except ValueError:  # an int of thousands of digits, which Python does not print
        return "a number of thousands of digits"


def check_support(support: Tensor, scores: Tensor) -> None:
    """Raise unless `support` is a bool tensor that broadcasts to the shape of `scores`."""
    if not isinstance(support, Tensor):
        raise TypeError(f"support must be a torch tensor, got {type(support).__name__}")
    if support.dtype != torch.bool:
        raise TypeError(
            f"support must be bool (True: the row sees this key), got {_plain(support.dtype)}"
        )
    if not _broadcasts(support.shape, scores.shape):
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


def shared_memory_of(device: torch.device) -> int | None:
    """Bytes of shared memory that one program may use; None on the CPU, where nothing bounds it."""
    if device.type == "cpu":
        return None
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def _broadcasts(shape: tuple[int, ...], into: tuple[int, ...]) -> bool:
    return len(shape) <= len(into) and all(
        have in (1, want) for have, want in zip(shape[::-1], into[::-1], strict=False)
    )


def _plain(dtype: torch.dtype | torch.layout) -> str:
    return str(dtype).removeprefix("torch.")
