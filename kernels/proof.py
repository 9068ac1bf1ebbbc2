"""What a kernel brings to be proved and timed: a reference, inputs, launches, bytes, operations.

Each kernel `x.py` has a file `x_proof.py` with one Proof, listed in `all_proofs`. The interpreter
tests, the offline compiler and the GPU benchmark all read it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

KERNELS = (
    "block_sparse_attention",
    "delta_rule",
    "delta_rule_step",
    "flash_attention",
    "linear_attention",
    "linear_attention_step",
    "masked_block_attention",
    "masked_softmax",
    "neighborhood_attention",
    "scored_attention",
    "packed_attention",
    "sigmoid_attention",
    "split_decode",
)
POINTERS = {
    torch.float64: "*fp64:16",
    torch.float32: "*fp32:16",
    torch.float16: "*fp16:16",
    torch.bfloat16: "*bf16:16",
}


@dataclass(frozen=True)
class Case:
    """Arguments for one call; tensors that require a gradient are compared in gradient too."""

    name: str
    arguments: tuple


@dataclass(frozen=True)
class Launch:
    """One compilation of one Triton kernel.

    `types` are the arguments in order as Triton writes them ("*fp16", "i32"), `constants` the
    compile-time ones by name. `chips` are those that this launch is for (80, 86, 90), for tiles
    that are chosen by the chip; None is all of them.
    """

    name: str
    kernel: object
    types: dict[str, str]
    constants: dict[str, object]
    num_warps: int = 4
    num_stages: int = 3
    chips: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Proof:
    """Everything the three gates and the benchmark need to know about one kernel.

    `bytes_moved` and `operations` take what the kernel takes and count a pass ("forward",
    "backward"): bytes that no implementation can avoid, and floating-point operations of the
    matrix products (a multiplication and an addition are two). `peers(case)` gives other
    implementations of the same function by name; each takes the arguments of the case, and one
    that raises on this machine is reported with its reason.
    """

    name: str
    kernel: Callable
    reference: Callable  # the same function in plain torch, for any dtype and device
    cases: Callable[[torch.dtype, torch.device], Iterator[Case]]
    launches: tuple[Launch, ...]
    timed_cases: Callable[[torch.dtype, torch.device], Iterator[Case]]
    bytes_moved: Callable[..., dict[str, int]]
    timed_dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16, torch.float32)
    operations: Callable[..., dict[str, int]] | None = None
    peers: Callable[[Case], dict[str, Callable]] | None = None


def types_of(names: Iterable[str], constants: dict, dtype: torch.dtype, special: dict) -> dict:
    """The type of each argument of a launch that is no constant, as Triton writes it.

    `special` names those that are not a pointer to numbers of `dtype`. Pointers get ":16": torch
    allocates at multiples of 16.
    """
    return {name: special.get(name, POINTERS[dtype]) for name in names if name not in constants}


def all_proofs() -> dict[str, Proof]:
    """The proofs of all kernels, by name. Needs Triton."""
    package = __name__.rpartition(".")[0]
    return {name: importlib.import_module(f"{package}.{name}_proof").PROOF for name in KERNELS}
