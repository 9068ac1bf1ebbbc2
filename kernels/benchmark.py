"""Times of one kernel on a GPU, beside its peers and beside the bound that the chip sets.

    bound = max(bytes that must move / copy bandwidth, operations / matrix rate)

Both are measured first, on the same GPU: the bandwidth with a plain copy, the rate with a large
matrix product in each dtype. So the bound is what this machine can do and not what its data sheet
says. Times are medians of many runs with the cache flushed between them. Peers are plain torch
and what the proof of the kernel names; they run in the same process on the same tensors.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from attnlib.kernels.proof import Case, Proof
from torch import Tensor

COPIED_BYTES = 2**30
MATRIX_SIDE = 8192
PLAIN = "plain torch"

# Peers answer within 1e-2 of each other in bfloat16. A window that is one key too wide differs by
# 4e-2, so a peer beyond this bound computes something else.
SAME_ANSWER = 2e-2


@dataclass(frozen=True)
class Limits:
    """What this GPU does in a second at most: bytes of a copy, operations of a matrix product.

    float32 products are rounded to nothing shorter ("ieee"); beside them stands the rate with
    tf32, which keeps 10 bits of each factor.
    """

    bytes_per_second: float
    operations_per_second: dict[str, float]

    def bound(self, moved: int, operations: int, dtype: str) -> tuple[float, str]:
        """The least milliseconds, and which of the two decides: "bytes" or "operations"."""
        times = {"bytes": 1e3 * moved / self.bytes_per_second}
        if operations:
            times["operations"] = 1e3 * operations / self.operations_per_second[dtype]
        deciding = max(times, key=times.get)
        return times[deciding], deciding


def median_milliseconds(run: Callable[[], object]) -> float:
    """The median time of `run` on the GPU."""
    from triton.testing import do_bench

    return do_bench(run, return_mode="median")


def copy_bandwidth(device: torch.device, milliseconds: Callable, size: int = COPIED_BYTES) -> float:
    """Bytes a second of a copy on this device: each byte is read once and written once."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / (1e-3 * milliseconds(lambda: target.copy_(source)))


def matrix_rate(
    device: torch.device, dtype: torch.dtype, milliseconds: Callable, side: int = MATRIX_SIDE
) -> float:
    """Operations a second of a product of two square matrices of random numbers: 2 side^3 each.

    Random, because a chip takes less power, and so runs faster, on zeros.
    """
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / (1e-3 * milliseconds(lambda: left @ right))


def measure_limits(
    device: torch.device,
    milliseconds: Callable,
    size: int = COPIED_BYTES,
    side: int = MATRIX_SIDE,
) -> Limits:
    """The copy bandwidth and the matrix rate of each dtype in which kernels are timed."""
    before = torch.get_float32_matmul_precision()
    rates = {}
    try:
        torch.set_float32_matmul_precision("highest")
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            rates[name_of(dtype)] = matrix_rate(device, dtype, milliseconds, side)
        torch.set_float32_matmul_precision("high")
        rates["float32 with tf32 products"] = matrix_rate(device, torch.float32, milliseconds, side)
    finally:
        torch.set_float32_matmul_precision(before)
    return Limits(copy_bandwidth(device, milliseconds, size), rates)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def wanted_gradients(case: Case) -> list[Tensor]:
    return [a for a in case.arguments if isinstance(a, Tensor) and a.requires_grad]


def backward_of(function: Callable, case: Case) -> Callable[[], object]:
    """One backward run, whose forward run is already done."""
    output = function(*case.arguments)
    sent = torch.randn_like(output)
    wanted = wanted_gradients(case)
    return lambda: torch.autograd.grad(output, wanted, sent, retain_graph=True)


def check_same_answer(answer: Tensor, expected: Tensor) -> None:
    """Raise a ValueError unless RMS(answer - expected) / RMS(expected) is small."""
    if answer.shape != expected.shape:
        raise ValueError(f"its answer has shape {tuple(answer.shape)}, not {tuple(expected.shape)}")
    norms = [torch.linalg.vector_norm(t.detach()).float() for t in (answer - expected, expected)]
    difference = (norms[0] / norms[1]).item()
    if not difference <= SAME_ANSWER:
        raise ValueError(f"its answer differs from the kernel's by {difference:.1e} (RMS)")


def attempt(work: Callable[[], float]) -> dict:
    """{"ms": the time}, or {"error": why there is none}."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            return {"ms": work()}
        except torch.OutOfMemoryError:
            return {"error": "out of memory"}
        except Exception as problem:
            return {"error": reason(problem, said)}


def reason(problem: Exception, said: list[warnings.WarningMessage]) -> str:
    """Why a run failed, in a line: torch says in warnings why a backend does not take a case."""
    texts = [f"{type(problem).__name__}: {problem}"] + [str(warning.message) for warning in said]
    firsts = [next(filter(None, text.splitlines()), "") for text in texts]
    cleaned = [re.sub(r"\s*\(Triggered internally at .*", "", first) for first in firsts]
    cleaned = [re.sub(r"(/[\w.+-]+){2,}", "...", first) for first in cleaned]  # folders
    kept = [text for text in dict.fromkeys(cleaned) if not text.endswith("because:")]
    return " ".join(kept)[:400]


def times_of(
    function: Callable, case: Case, milliseconds: Callable, expected: Tensor | None = None
) -> dict[str, dict]:
    """{pass: {"ms"} or {"error"}} of one function; with `expected`, its answer is checked first."""

    def forward() -> float:
        if expected is not None:
            check_same_answer(function(*case.arguments), expected)
        return milliseconds(lambda: function(*case.arguments))

    times = {"forward": attempt(forward)}
    if wanted_gradients(case):
        times["backward"] = times["forward"]
        if "ms" in times["forward"]:
            times["backward"] = attempt(lambda: milliseconds(backward_of(function, case)))
    return times


def peers_of(proof: Proof, case: Case) -> dict[str, Callable]:
    """Plain torch, and the peers that the proof names."""
    try:
        named = proof.peers(case) if proof.peers else {}
    except Exception as problem:
        named = {"other peers": raises(problem)}
    return {PLAIN: proof.reference} | named


def raises(problem: Exception) -> Callable:
    def missing_peer(*arguments):
        raise problem

    return missing_peer


def compared(row: dict, moved: int, operations: int, limits: Limits, peers: dict) -> dict:
    """The row of one pass with what was counted, what bounds it, and what the peers took."""
    time = row["kernel_ms"]
    bound, deciding = limits.bound(moved, operations, row["dtype"])
    return row | {
        "bytes": moved,
        "operations": operations,
        "gigabytes_per_second": moved / time / 1e6,
        "teraflops": operations / time / 1e9,
        "bound_ms": bound,
        "bound_by": deciding,
        "times_the_bound": time / bound,
        "peers": {
            name: peer | ({"kernel_times_faster": peer["ms"] / time} if "ms" in peer else {})
            for name, peer in peers.items()
        },
    }


def time_case(
    proof: Proof, case: Case, dtype: torch.dtype, limits: Limits, milliseconds: Callable
) -> list[dict]:
    """One row of the results for each pass: kernel, bound, peers, and their ratios.

    Where the kernel has no time, the row has its error instead, and no peer runs.
    """
    start = {
        "case": case.name,
        "shapes": [list(a.shape) for a in case.arguments if isinstance(a, Tensor)],
        "dtype": name_of(dtype),
    }
    kernel = times_of(proof.kernel, case, milliseconds)
    if any("error" in time for time in kernel.values()):
        return [start | {"pass": name} | time for name, time in kernel.items()]
    with torch.no_grad():
        expected = proof.kernel(*case.arguments)
    peers = {
        name: times_of(peer, case, milliseconds, expected)
        for name, peer in peers_of(proof, case).items()
    }
    moved = proof.bytes_moved(*case.arguments)
    operations = proof.operations(*case.arguments) if proof.operations else dict.fromkeys(kernel, 0)
    return [
        compared(
            start | {"pass": name, "kernel_ms": time["ms"]},
            moved[name],
            operations[name],
            limits,
            {peer: times[name] for peer, times in peers.items()},
        )
        for name, time in kernel.items()
    ]


def time_kernel(
    proof: Proof, device: torch.device, limits: Limits, milliseconds: Callable
) -> list[dict]:
    """All rows of one kernel. What has no time has a reason: "out of memory", say."""
    rows = []
    for dtype in proof.timed_dtypes:
        try:
            for case in proof.timed_cases(dtype, device):
                rows += time_case(proof, case, dtype, limits, milliseconds)
        except torch.OutOfMemoryError:  # no room for the arguments; later cases are larger
            rows.append({"case": "later cases", "dtype": name_of(dtype), "error": "out of memory"})
    return rows


def as_lines(row: dict) -> list[str]:
    """One row of the results for the terminal: the kernel, and a line for each peer."""
    start = f"  {row['case']:<38} {row['dtype']:<9} {row.get('pass', ''):<8}"
    if "error" in row:
        return [f"{start} {row['error']}"]
    rate = f"{row['gigabytes_per_second']:.0f} GB/s"
    if row["operations"]:
        rate += f", {row['teraflops']:.0f} TFLOP/s"
    lines = [
        f"{start} {row['kernel_ms']:9.3f} ms   {rate}   "
        f"bound {row['bound_ms']:.3f} by {row['bound_by']} ({row['times_the_bound']:.2f}x)"
    ]
    for name, peer in row["peers"].items():
        said = f"  {peer['error']}" if "error" in peer else f"{peer['ms']:9.3f} ms"
        if "ms" in peer:
            said += f"   the kernel is {peer['kernel_times_faster']:.2f}x as fast"
        lines.append(f"{name:>{len(start)}} {said}")
    return lines
