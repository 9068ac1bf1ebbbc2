"""Gate two of every kernel: compile it for three chips, on a machine that has none of them.

    python kernels/offline_compile.py --table

prints a line for each launch and chip: shared memory, registers, bytes spilled, or the compiler's
error. Without --table it prints the same as a JSON list; with --write it stores the report for the
page book/kernels.md, in kernels/results/offline.json. Triton's wheel carries the assembler that
this needs. The compiler refuses what the interpreter lets through: an `if` on a block, plain Python
globals, loop variables that change their dtype, products too small for the tensor cores.

The script must run in its own process, without TRITON_INTERPRET; `compile_all` starts it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from multiprocessing import get_context
from pathlib import Path

STORED = Path(__file__).resolve().parent / "results" / "offline.json"
SHARED_MEMORY = {80: 166_912, 86: 101_376, 90: 232_448}  # bytes a program may use, by chip


def compile_all() -> list[dict]:
    """The report of the script, from a process in which Triton compiles."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, str(Path(__file__).resolve())],
        env=environment,
        capture_output=True,
        text=True,
    )
    if run.returncode:
        raise RuntimeError(f"the offline compiler stopped:\n{run.stderr}")
    return json.loads(run.stdout)


def problem_of(report: dict) -> str | None:
    """What is wrong with one entry of the report, or None."""
    if report["error"]:
        return f"does not compile: {report['error']}"
    if report["shared"] > SHARED_MEMORY[report["chip"]]:
        return f"needs {report['shared']} bytes of shared memory, over {report['shared_limit']}"
    if report["spilled"]:
        return f"spills {report['spilled']} bytes of registers"
    return None


def compile_launch(launch, chip: int) -> dict:
    """Compile one launch for one chip and read what it uses."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = launch.kernel
    while not isinstance(function, triton.JITFunction):  # under autotune and heuristics
        function = function.fn
    names = function.arg_names
    types = {name: launch.types.get(name, "constexpr") for name in names}
    constants = {(names.index(name),): value for name, value in launch.constants.items()}
    types, attributes = without_hints(types)
    source = ASTSource(function, types, constants, attributes)
    report = {"chip": chip, "launch": launch.name, "shared_limit": SHARED_MEMORY[chip]}
    try:
        compiled = triton.compile(
            source,
            target=GPUTarget("cuda", chip, 32),
            options={"num_warps": launch.num_warps, "num_stages": launch.num_stages},
        )
    except Exception as error:
        return report | {"error": f"{type(error).__name__}: {error}"}
    registers, stack = resources(compiled.asm["cubin"])
    return report | {
        "error": None,
        "shared": compiled.metadata.shared,
        "registers": registers,
        "spilled": stack,
    }


def without_hints(types: dict) -> tuple[dict, dict]:
    """The types without ":16", and which arguments have it: those are multiples of 16.

    Torch allocates at such addresses, and Triton looks at each launch: only then does it load
    16 bytes at once and copy ahead. A tuple has a type for each member.
    """
    plain, attributes = {}, {}
    for place, (name, written) in enumerate(types.items()):
        if isinstance(written, tuple):
            plain[name] = tuple(member.removesuffix(":16") for member in written)
            members = {(place, number): member for number, member in enumerate(written)}
        else:
            plain[name] = written.removesuffix(":16")
            members = {(place,): written}
        hinted = [path for path, member in members.items() if member.endswith(":16")]
        attributes |= {path: [["tt.divisibility", 16]] for path in hinted}
    return plain, attributes


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers a thread and bytes of stack a thread (what was spilled) of a compiled kernel."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        usage = subprocess.run(
            [str(tool), "--dump-resource-usage", str(file)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    return int(re.search(r"REG:(\d+)", usage)[1]), int(re.search(r"STACK:(\d+)", usage)[1])


def compile_here() -> list[dict]:
    """Compile every launch of every kernel, on all cores of this machine."""
    from attnlib.kernels.proof import all_proofs

    jobs = [
        (name, number, chip)
        for name, proof in all_proofs().items()
        for number, launch in enumerate(proof.launches)
        for chip in launch.chips or SHARED_MEMORY
    ]
    with get_context("fork").Pool() as pool:
        return pool.map(compile_job, jobs, chunksize=1)


def compile_job(job: tuple[str, int, int]) -> dict:
    """Compile launch `number` of a kernel for a chip."""
    from attnlib.kernels.proof import all_proofs

    name, number, chip = job
    return {"kernel": name} | compile_launch(all_proofs()[name].launches[number], chip)


def stored_form(reports: list[dict]) -> dict:
    """What offline.json holds: the reports of each kernel, and which code they are of."""
    import triton
    from attnlib.kernels.code_hash import launches_hash

    kernels = {}
    for report in reports:
        name = report["kernel"]
        if name not in kernels:
            kernels[name] = {"source": launches_hash(name), "launches": []}
        launch = {key: report[key] for key in report if key != "kernel"}
        kernels[name]["launches"].append(launch)
    return {"triton": triton.__version__, "kernels": kernels}


def write(reports: list[dict], target: Path = STORED) -> None:
    """Write offline.json, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".json.part")
    unfinished.write_text(json.dumps(stored_form(reports), indent=1) + "\n")
    unfinished.replace(target)


def table(reports: list[dict]) -> str:
    """The reports as lines of a table: shared memory of what the chip has, registers, spills."""
    widths = {key: max(len(report[key]) for report in reports) for key in ("kernel", "launch")}
    head = f"{'kernel':<{widths['kernel']}}  {'launch':<{widths['launch']}}  chip "
    lines = [head + "  shared memory (bytes)  registers  spilled"]
    for report in reports:
        start = (
            f"{report['kernel']:<{widths['kernel']}}  {report['launch']:<{widths['launch']}}  "
            f"sm_{report['chip']}"
        )
        if report["error"]:
            lines.append(f"{start}  {report['error'].splitlines()[0]}")
        else:
            lines.append(
                f"{start}  {report['shared']:>9,} of {report['shared_limit']:>7,}"
                f"  {report['registers']:>9}  {report['spilled']:>7}"
            )
    return "\n".join(lines)


def main(words: list[str]) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="offline_compile.py", description="Compile every kernel for three chips, without any."
    )
    parser.add_argument("--table", action="store_true", help="print a table instead of JSON")
    parser.add_argument("--write", action="store_true", help="store the report for the book")
    options = parser.parse_args(words)
    reports = compile_here()
    if options.write:
        write(reports)
    print(table(reports) if options.table else json.dumps(reports, indent=1))


if __name__ == "__main__":
    from standalone import load_folder

    load_folder()
    main(sys.argv[1:])
