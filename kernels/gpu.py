"""Tests and times every kernel on a CUDA machine: what `make gpu` runs.

    python3 kernels/gpu.py

It needs torch 2.11 with triton 3.6, or newer, and nothing else: no attnlib, no network. First come
the numeric gates of each kernel on this GPU, then, if they are all green, its times beside plain
torch and beside the bound. A kernel with a red gate gets no times. The results go to
kernels/results/<device>.json. Exit status: 0 all green, 1 a gate is red, 2 this machine cannot
run them.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import json
import os
import platform
import re
import sys
from collections.abc import Callable
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
        "python": platform.python_version(),
    }


def source_hash(kernel: str) -> str:
    """Which text of the kernel was measured: the first 16 digits of its SHA-256."""
    return hashlib.sha256((FOLDER / f"{kernel}.py").read_bytes()).hexdigest()[:16]


def examine(proofs: dict, device, dtypes: tuple, milliseconds: Callable, copied_bytes: int) -> dict:
    """Gates and then times of all given kernels; prints as it goes."""
    from attnlib.kernels.benchmark import as_line, copy_bandwidth, time_kernel
    from attnlib.kernels.gates import failures

    bandwidth = copy_bandwidth(device, milliseconds, copied_bytes)
    report = describe_machine(device) | {"copy_bytes_per_second": bandwidth, "kernels": {}}
    print(f"{report['device']}: copies {bandwidth / 1e12:.2f} TB/s")
    for name, proof in proofs.items():
        red = failures(proof, device, dtypes)
        entry = {
            "source": source_hash(name),
            "gates": "red" if red else "green",
            "gate_dtypes": [str(dtype).removeprefix("torch.") for dtype in dtypes],
        }
        if red:
            print(f"{name}: {len(red)} gates are red, so no times are reported")
            print(*(f"  {message}" for message in red), sep="\n")
            report["kernels"][name] = entry | {"failures": red}
            continue
        print(f"{name}: all gates are green")
        times = time_kernel(proof, device, bandwidth, milliseconds)
        print(*(as_line(row) for row in times), sep="\n")
        report["kernels"][name] = entry | {"times": times}
    return report


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
        if all(old.get(key) == report[key] for key in ("torch", "triton", "cuda")):
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
        "--results", type=Path, default=FOLDER / "results", help="folder of the JSON"
    )
    options = parser.parse_args(words)
    problem = missing_requirement()
    if problem:
        print(f"gpu.py: {problem}", file=sys.stderr)
        return 2

    import torch
    from attnlib.kernels.benchmark import COPIED_BYTES, median_milliseconds
    from attnlib.kernels.launch import DTYPES
    from attnlib.kernels.proof import all_proofs

    proofs = all_proofs()
    chosen = options.kernel or list(proofs)
    unknown = sorted(set(chosen) - set(proofs))
    if unknown:
        parser.error(f"unknown kernel {', '.join(unknown)}; there are: {', '.join(proofs)}")
    report = examine(
        {name: proofs[name] for name in chosen},
        torch.device("cuda"),
        DTYPES,
        median_milliseconds,
        COPIED_BYTES,
    )
    print(f"written: {write_results(report, options.results)}")
    return int(any(report["kernels"][name]["gates"] == "red" for name in chosen))


if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)  # here kernels are compiled
    if missing_requirement() is None:
        from standalone import load_folder

        load_folder()
    sys.exit(main(sys.argv[1:]))
