"""Times of one kernel on a GPU, beside plain torch and beside the bound set by its traffic.

    bound = bytes that must move / bytes a second of a plain copy

The copy is measured first, on the same GPU, so the bound is what this machine can do and not what
its data sheet says. Times are medians of many runs with the cache flushed between them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from attnlib.kernels.proof import Case, Proof

COPIED_BYTES = 2**30


def median_milliseconds(run: Callable[[], object]) -> float:
    """The median time of `run` on the GPU."""
    from triton.testing import do_bench

    return do_bench(run, return_mode="median")


def copy_bandwidth(device: torch.device, milliseconds: Callable, size: int = COPIED_BYTES) -> float:
    """Bytes a second of a copy on this device: each byte is read once and written once."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / (1e-3 * milliseconds(lambda: target.copy_(source)))


def passes(function: Callable, case: Case) -> dict[str, Callable[[], object]]:
    """The runs to time: forward and, where an argument requires a gradient, backward."""
    runs = {"forward": lambda: function(*case.arguments)}
    wanted = [a for a in case.arguments if isinstance(a, torch.Tensor) and a.requires_grad]
    if wanted:
        output = function(*case.arguments)
        sent = torch.randn_like(output)
        runs["backward"] = lambda: torch.autograd.grad(output, wanted, sent, retain_graph=True)
    return runs


def time_case(
    proof: Proof, case: Case, dtype: torch.dtype, bandwidth: float, milliseconds: Callable
) -> list[dict]:
    """One row of the results for each pass: kernel, plain torch, bound, and their ratios."""
    plain = {name: milliseconds(run) for name, run in passes(proof.reference, case).items()}
    moved = proof.bytes_moved(*case.arguments)
    rows = []
    for name, run in passes(proof.kernel, case).items():
        kernel = milliseconds(run)
        bound = 1e3 * moved[name] / bandwidth
        rows.append(
            {
                "case": case.name,
                "shapes": [list(a.shape) for a in case.arguments if isinstance(a, torch.Tensor)],
                "dtype": str(dtype).removeprefix("torch."),
                "pass": name,
                "bytes": moved[name],
                "bound_ms": bound,
                "kernel_ms": kernel,
                "torch_ms": plain[name],
                "times_the_bound": kernel / bound,
                "times_faster_than_torch": plain[name] / kernel,
            }
        )
    return rows


def time_kernel(
    proof: Proof, device: torch.device, bandwidth: float, milliseconds: Callable
) -> list[dict]:
    """All rows of one kernel. A case that does not fit in memory is reported as such."""
    rows = []
    for dtype in proof.timed_dtypes:
        for case in proof.timed_cases(dtype, device):
            try:
                rows += time_case(proof, case, dtype, bandwidth, milliseconds)
            except torch.OutOfMemoryError:
                name = str(dtype).removeprefix("torch.")
                rows.append({"case": case.name, "dtype": name, "error": "out of memory"})
    return rows


def as_line(row: dict) -> str:
    """One row of the results as a line for the terminal."""
    start = f"  {row['case']:<38} {row['dtype']:<9}"
    if "error" in row:
        return f"{start} {row['error']}"
    return (
        f"{start} {row['pass']:<8} {row['kernel_ms']:8.3f} ms"
        f"   bound {row['bound_ms']:.3f} ({row['times_the_bound']:.2f}x)"
        f"   torch {row['torch_ms']:.3f} ({row['times_faster_than_torch']:.2f}x)"
    )
