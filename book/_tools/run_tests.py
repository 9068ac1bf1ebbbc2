"""`make test`: every proof of the book, one summary, and a failure if anything failed.

A step that fails does not stop the others. The numbers come from pytest's own reports.
"""

import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REPORTS = ROOT / "_build" / "tests"
TOOLS = Path(sys.executable).parent
NOTEBOOKS = ["chapters", "book/preliminaries.ipynb"]
PYTEST = [
    sys.executable,
    *("-m", "pytest", "-q", "-n", "2", "--dist", "loadfile"),
    *("--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=120"),
]
# The same numbers on every machine: one thread, no vector units in the second pass.
SAME_EVERYWHERE = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "ATTN_STATIC": "1",
}
PLAIN_PROCESSOR = {"ATEN_CPU_CAPABILITY": "default"}


@dataclass
class Step:
    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    passed: bool = False
    seconds: float = 0.0

    @property
    def report(self) -> Path:
        return REPORTS / f"{self.name.replace(' ', '-')}.xml"

    def run(self) -> None:
        print(f"\n== {self.name}", flush=True)
        command = self.command
        if "pytest" in command:
            command = [*command, "--durations=10", f"--junitxml={self.report}"]
        started = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, env={**environment(), **self.environment})
        self.seconds = time.monotonic() - started
        self.passed = done.returncode == 0


def environment() -> dict[str, str]:
    settings = {**os.environ, **SAME_EVERYWHERE}
    if shutil.which("nvidia-smi") is None:
        settings.setdefault("TRITON_INTERPRET", "1")
    return settings


def steps() -> list[Step]:
    ruff, jupyter_book = str(TOOLS / "ruff"), str(TOOLS / "jupyter-book")
    return [
        Step("lint", [ruff, "check", "."]),
        Step("format", [ruff, "format", "--check", "."]),
        Step(
            "site build",
            [jupyter_book, "build", ".", "--all", "-W", "--keep-going", "-n", "--quiet"],
        ),
        Step("tests and chapters", [*PYTEST, "tests", *NOTEBOOKS]),
        Step("chapters on a plain processor", [*PYTEST, *NOTEBOOKS], PLAIN_PROCESSOR),
    ]


def main() -> int:
    REPORTS.mkdir(parents=True, exist_ok=True)
    for old in REPORTS.glob("*.xml"):
        old.unlink()
    done = steps()
    for step in done:
        step.run()
    cases = [case for step in done for case in read_report(step)]
    print("\n== summary")
    print_slowest(cases)
    for step in done:
        print(f"{'passed' if step.passed else 'FAILED'}  {step.seconds:6.1f} s  {step.name}")
    print(count_line(cases))
    return 0 if all(step.passed for step in done) else 1


def read_report(step: Step) -> list[ElementTree.Element]:
    if not step.report.exists():
        return []
    return list(ElementTree.parse(step.report).iter("testcase"))


def print_slowest(cases: list[ElementTree.Element]) -> None:
    print("the ten slowest:")
    for case in sorted(cases, key=lambda case: -float(case.get("time", 0)))[:10]:
        print(f"  {float(case.get('time', 0)):6.1f} s  {case.get('classname')} {case.get('name')}")


def count_line(cases: list[ElementTree.Element]) -> str:
    failed = sum(
        case.find("failure") is not None or case.find("error") is not None for case in cases
    )
    skipped = sum(case.find("skipped") is not None for case in cases)
    return f"{len(cases) - failed - skipped} passed, {failed} failed, {skipped} skipped"


if __name__ == "__main__":
    sys.exit(main())
