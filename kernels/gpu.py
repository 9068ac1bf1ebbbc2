"""Tests and times every kernel on a CUDA machine: what `make gpu` runs.

    python3 kernels/gpu.py

It needs torch 2.11 with triton 3.6, or newer, and nothing else: no attnlib, no network. First the
copy bandwidth and the matrix rate of this GPU are measured. Then come the numeric gates of each
kernel and, if they are all green, its times beside the bound, plain torch and the kernel's peers
(for attention: each backend of PyTorch's scaled_dot_product_attention, and FlexAttention,
compiled). A kernel with a red gate gets no times. The results go to kernels/results/<device>.json,
after each kernel, and book/kernels.md draws them. Exit status: 0 all green, 1 a gate is red or a
kernel failed while it was timed, 2 this machine cannot run them.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
OLDEST = {"torch": (2, 11), "triton": (3, 6)}


def missing_requirement() -> str | None:
    """What this machine lacks, in a sentence, or None."""
    for package, oldest in OLDEST.items():
        wanted = f"{package} {oldest[0]}.{oldest[1]} or newer"
        if importlib.util.find_spec(package) is None:
            return f"the GPU benchmark needs {wanted}, and {package} is not installed"
        found = importlib.import_module(package).__version__
        if tuple(map(int, re.findall(r"\d+", found)[:2])) < oldest:
            return f"the GPU benchmark needs {wanted}, and this is {package} {found}"
    import torch

    if not torch.cuda.is_available():
        return (
            "the GPU benchmark needs a CUDA device, and torch sees none here. "
            "The other two gates run without one: pytest tests/kernels"
        )
    capability = torch.cuda.get_device_capability()
    if capability < (8, 0):
        have = ".".join(map(str, capability))
        return f"the kernels need compute capability 8.0 or newer, and this device has {have}"
    return None


def describe_machine(device) -> dict:
    """Device and versions, as the results record them."""
    import torch
    import triton

    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
        "capability": list(torch.cuda.get_device_capability(device)) if on_gpu else None,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
    }


def describe_limits(limits) -> dict:
    """Copy bandwidth and matrix rates, as the results record them."""
    return {
        "copy_bytes_per_second": limits.bytes_per_second,
        "matrix_operations_per_second": limits.operations_per_second,
    }


def print_limits(machine: dict) -> None:
    """What this GPU does at most, for the terminal."""
    print(f"{machine['device']}: copies {machine['copy_bytes_per_second'] / 1e12:.2f} TB/s")
    for name, rate in machine["matrix_operations_per_second"].items():
        print(f"  matrix products in {name}: {rate / 1e12:.0f} TFLOP/s", flush=True)


def timed_in(proof, dtypes: list[str]):
    """The proof with its times in these dtypes only; the gates stay what they are."""
    kept = [dtype for dtype in proof.timed_dtypes if str(dtype).removeprefix("torch.") in dtypes]
    return replace(proof, timed_dtypes=tuple(kept))


def examine(proof, device, dtypes: tuple, limits, milliseconds: Callable) -> dict:
    """Gates and then times of one kernel; prints as it goes."""
    from attnlib.kernels.benchmark import as_lines, name_of, time_kernel
    from attnlib.kernels.code_hash import kernel_hash
    from attnlib.kernels.gates import failures

    started = time.monotonic()
    red = failures(proof, device, dtypes)
    entry = {
        "source": kernel_hash(proof.name),
        "date": time.strftime("%Y-%m-%d"),
        "gates": "red" if red else "green",
        "gate_dtypes": [name_of(dtype) for dtype in dtypes],
        "gate_seconds": round(time.monotonic() - started, 1),
    }
    if red:
        print(f"{proof.name}: {len(red)} gates are red, so no times are reported")
        print(*(f"  {message}" for message in red), sep="\n")
        return entry | {"failures": red}
    print(f"{proof.name}: all gates are green ({entry['gate_seconds']:.0f} s)", flush=True)
    started = time.monotonic()
    times = time_kernel(proof, device, limits, milliseconds)
    print(*(line for row in times for line in as_lines(row)), sep="\n", flush=True)
    return entry | {"time_seconds": round(time.monotonic() - started, 1), "times": times}


def failed(entry: dict) -> bool:
    """Whether a kernel has a red gate, or failed while timed. A lack of memory is neither."""
    errors = [row["error"] for row in entry.get("times", []) if "error" in row]
    return entry["gates"] == "red" or any(error != "out of memory" for error in errors)


def write_results(report: dict, folder: Path) -> Path:
    """Write <device>.json, whole or not at all; kernels not in this report keep their entries.

    An entry is kept only if the machine and its versions are the same; else it would stand under
    the name of versions that did not produce it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", report["device"].lower()).strip("-")
    target = folder / f"{name}.json"
    if target.exists():
        old = json.loads(target.read_text())
        if all(old.get(key) == report[key] for key in ("torch", "triton", "cuda", "cudnn")):
            report = report | {"kernels": old["kernels"] | report["kernels"]}
    unfinished = target.with_suffix(".json.part")
    unfinished.write_text(json.dumps(report, indent=1) + "\n")
    unfinished.replace(target)
    return target


def main(words: list[str]) -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(
        prog="gpu.py", description="Test every kernel on this GPU, then time those that pass."
    )
    parser.add_argument(
        "--kernel", action="append", metavar="NAME", help="only this kernel (may be repeated)"
    )
    parser.add_argument(
        "--dtype", action="append", metavar="NAME", help="time only this dtype (may be repeated)"
    )
    parser.add_argument(
        "--results", type=Path, default=FOLDER / "results", help="folder of the JSON"
    )
    options = parser.parse_args(words)
    problem = missing_requirement()
    if problem:
        print(f"gpu.py: {problem}", file=sys.stderr)
        return 2

    import torch
    from attnlib.kernels.benchmark import measure_limits, median_milliseconds
    from attnlib.kernels.launch import DTYPES
    from attnlib.kernels.proof import all_proofs

    proofs = all_proofs()
    chosen = options.kernel or list(proofs)
    unknown = sorted(set(chosen) - set(proofs))
    if unknown:
        parser.error(f"unknown kernel {', '.join(unknown)}; there are: {', '.join(proofs)}")
    if options.dtype:
        proofs = {name: timed_in(proof, options.dtype) for name, proof in proofs.items()}
        if not any(proofs[name].timed_dtypes for name in chosen):
            parser.error(f"no kernel is timed in {', '.join(options.dtype)}")
    device = torch.device("cuda")
    limits = measure_limits(device, median_milliseconds)
    machine = describe_machine(device) | describe_limits(limits)
    print_limits(machine)
    entries = {}
    for name in chosen:
        entries[name] = examine(proofs[name], device, DTYPES, limits, median_milliseconds)
        target = write_results(machine | {"kernels": entries}, options.results)
    print(f"written: {target}")
    return int(any(failed(entry) for entry in entries.values()))


if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)  # here kernels are compiled
    if missing_requirement() is None:
        from standalone import load_folder

        load_folder()
    sys.exit(main(sys.argv[1:]))
