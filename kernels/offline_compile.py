"""Gate two of every kernel: compile it for three chips, on a machine that has none of them.

    python kernels/offline_compile.py

prints a JSON list, one entry for each launch and chip: shared memory, registers, bytes spilled,
or the compiler's error. Triton's wheel carries the assembler that this needs. The compiler
refuses what the interpreter lets through: an `if` on a block, plain Python globals, loop variables
that change their dtype, products too small for the tensor cores.

The script must run in its own process, without TRITON_INTERPRET; `compile_all` starts it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

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


def main() -> None:
    from attnlib.kernels.proof import all_proofs

    reports = [
        {"kernel": name} | compile_launch(launch, chip)
        for name, proof in all_proofs().items()
        for launch in proof.launches
        for chip in launch.chips or SHARED_MEMORY
    ]
    print(json.dumps(reports, indent=1))


if __name__ == "__main__":
    from standalone import load_folder

    load_folder()
    main()
