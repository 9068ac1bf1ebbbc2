"""Re-executes the notebooks whose code, or whose imported attnlib modules, changed (`make run`).

    python book/_tools/execute.py                 the stale notebooks
    python book/_tools/execute.py soft-lookup     these, stale or not (a path or a stem)
    python book/_tools/execute.py --all           all of them
    python book/_tools/execute.py --check         runs nothing; lists the stale, exit status 1

A notebook is stale when `metadata.attn.executed` is not the hash of its code cells, of the modules
they use and of the study beside it (source_hash.py), or when a cell was never run. The result is
stored in normal form (notebook_form.py). Outputs that are equal within tolerance keep their old
bytes. A cell tagged `timing` keeps its outputs as long as its own source stays the same, because
the prose quotes them; `--timings` measures them anew. A chapter that fails leaves its stored file
as it was; the error is printed, and the exit status is 1. The seconds and megabytes of the run are
recorded and replaced only when they moved by more than a quarter.
"""

import argparse
import hashlib
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from notebook_form import normal_form, read, same_outputs, tags, text_of
from source_hash import code_hash, module_file

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "ATTN_STATIC": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "TQDM_DISABLE": "1",
}
CELL_SECONDS = 300


def main() -> int:
    options = arguments()
    paths = chosen(options.names)
    if options.check:
        return report_stale(paths)
    wanted = [path for path in paths if options.all or options.names or is_stale(path, read(path))]
    for path in paths:
        if path not in wanted:
            write_if_changed(path, text_of(normal_form(read(path), path)))
    failed = run_all(wanted, options.jobs, options.timings)
    current = len(paths) - len(wanted)
    print(f"{len(wanted) - failed} executed, {failed} failed, {current} already current")
    if module_file("attnlib.atlas", ROOT):
        subprocess.run([sys.executable, "-m", "attnlib.atlas"], cwd=ROOT, check=True)
    return 1 if failed else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Re-execute the stale notebooks of the book.")
    parser.add_argument("names", nargs="*", help="paths or stems of notebooks (default: the stale)")
    parser.add_argument("--all", action="store_true", help="execute all of them")
    parser.add_argument("--check", action="store_true", help="list the stale, execute nothing")
    parser.add_argument("--timings", action="store_true", help="measure cells tagged timing anew")
    parser.add_argument("--jobs", type=int, default=2, help="notebooks at a time (default 2)")
    return parser.parse_args()


def notebooks(root: Path = ROOT) -> list[Path]:
    """All notebooks of the book, in order; assignments are released and graded, not executed."""
    found = [path for part in ("book", "chapters") for path in (root / part).rglob("*.ipynb")]
    other = re.compile(r"/[._]|/assignments/")
    return sorted(p for p in found if not other.search("/" + str(p.relative_to(root))))


def chosen(names: list[str]) -> list[Path]:
    """The notebooks that `names` mean: all where there is no name."""
    every = notebooks()
    if not names:
        return every
    found = {}
    for name in names:
        stem = name.removesuffix(".ipynb").rstrip("/")
        for path in every:
            known = path.relative_to(ROOT).with_suffix("").as_posix()
            if known == stem or known.endswith("/" + stem) or path == Path(name).resolve():
                found[path] = True
                break
        else:
            raise SystemExit(f"no notebook is called {name!r}; there are:\n{listed(every)}")
    return list(found)


def listed(paths: list[Path]) -> str:
    return "\n".join(f"  {path.relative_to(ROOT)}" for path in paths)


def executed_hash(path: Path, notebook: dict, root: Path = ROOT) -> str:
    """The hash of everything that the outputs of a notebook depend on."""
    code = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    beside = [path.with_suffix(".study.json"), path.with_suffix(".study.py")]
    return code_hash(code, root, [file for file in beside if file.is_file()])


def is_stale(path: Path, notebook: dict, root: Path = ROOT) -> bool:
    """Whether the stored outputs belong to other code, or some are missing."""
    recorded = notebook["metadata"].get("attn", {}).get("executed")
    never_run = any(
        cell["execution_count"] is None
        for cell in notebook["cells"]
        if cell["cell_type"] == "code" and cell["source"].strip() and "nbval-skip" not in tags(cell)
    )
    current = executed_hash(path, normal_form(notebook, path, root), root)
    return never_run or recorded != current


def report_stale(paths: list[Path]) -> int:
    stale = [path for path in paths if is_stale(path, read(path))]
    if stale:
        print(f"stale, run `make run`:\n{listed(stale)}")
    else:
        print(f"{len(paths)} notebooks are current")
    return 1 if stale else 0


def run_all(paths: list[Path], jobs: int, timings: bool) -> int:
    """Runs the notebooks, each in a fresh process; returns how many failed."""
    failed = 0
    fresh = {"mp_context": get_context("spawn"), "max_tasks_per_child": 1}
    with ProcessPoolExecutor(max_workers=max(1, jobs), **fresh) as pool:
        running = {pool.submit(run_one, path, timings): path for path in paths}
        for number, done in enumerate(as_completed(running), start=1):
            name = running[done].relative_to(ROOT)
            error, line = done.exception(), ""
            if error is None:
                line, error = done.result()
            failed += error is not None
            print(f"[{number}/{len(paths)}] {name}: {'FAILED' if error else line}", flush=True)
            if error:
                print(f"\n{error}\n\nThe stored {name} is as it was.\n", flush=True)
    return failed


def run_one(path: Path, timings: bool) -> tuple[str, str | None]:
    """Runs one notebook and stores it; returns a progress line and the error, if any."""
    bytes_before = path.read_bytes()
    stored = normal_form(read(path), path)
    start = time.perf_counter()
    executed, error = execute(stored, path)
    seconds = time.perf_counter() - start
    if error:
        return "", error
    result = normal_form(executed, path)
    keep_old_outputs(stored, result, timings)
    record(result, stored, executed_hash(path, result), seconds, peak_memory_of_children())
    if path.read_bytes() != bytes_before:
        return "", "The file was changed while it ran. Save it, then run it again."
    changed = write_if_changed(path, text_of(result))
    return f"{seconds:.1f} s, {'stored' if changed else 'unchanged'}", None


def execute(notebook: dict, path: Path) -> tuple[dict, str | None]:
    """Runs all cells in a fresh kernel in the notebook's folder."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    from traitlets.config import Config

    os.environ.update(ENVIRONMENT)
    if not Path("/proc/driver/nvidia/version").exists():
        os.environ.setdefault("TRITON_INTERPRET", "1")
    book = nbformat.from_dict(notebook)
    sockets = tempfile.TemporaryDirectory(prefix="kernel")
    transport = {"transport": "ipc", "ip": f"{sockets.name}/socket"}
    client = NotebookClient(
        book,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
        config=Config({"KernelManager": transport}),
    )
    with sockets, client.setup_kernel():
        for number, cell in enumerate(book.cells):
            if cell.cell_type != "code" or "nbval-skip" in tags(cell):
                continue
            client.allow_errors = "nbval-raises-exception" in tags(cell)
            try:
                client.execute_cell(cell, number)
            except CellExecutionError:
                return {}, readable_error(number, cell)
            except CellTimeoutError:
                return {}, f"cell {number} ran longer than {CELL_SECONDS} s:\n\n{cell.source}"
            except DeadKernelError:
                return {}, f"the kernel died in cell {number} (memory?):\n\n{cell.source}"
    return book, None


def readable_error(number: int, cell: dict) -> str:
    """Cell number, source, message and the last lines of the traceback."""
    error = next(output for output in cell["outputs"] if output["output_type"] == "error")
    trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error["traceback"])).splitlines()
    source = "\n".join(f"    {line}" for line in cell["source"].splitlines())
    last = "\n".join(f"    {line}" for line in trace[-15:])
    return f"cell {number}:\n{source}\n\n{error['ename']}: {error['evalue']}\n\n{last}"


def keep_old_outputs(stored: dict, result: dict, timings: bool) -> None:
    """Puts the stored outputs back where the new ones say the same."""
    measured = stored["metadata"].get("attn", {}).get("timed", [])
    for old, new in zip(stored["cells"], result["cells"], strict=True):
        if new["cell_type"] != "code":
            continue
        timed_before = "timing" in tags(new) and source_key(new) in measured and not timings
        if (timed_before and old["outputs"]) or same_outputs(old["outputs"], new["outputs"]):
            count = new["execution_count"]
            new["outputs"] = [
                {**output, "execution_count": count} if "execution_count" in output else output
                for output in old["outputs"]
            ]


def source_key(cell: dict) -> str:
    return hashlib.sha256(cell["source"].encode()).hexdigest()[:8]


def record(result: dict, stored: dict, executed: str, seconds: float, memory: float) -> None:
    """Writes hash, seconds, megabytes and the timed cells into `metadata.attn`."""
    old = stored["metadata"].get("attn", {})
    timed = [source_key(cell) for cell in result["cells"] if "timing" in tags(cell)]
    new = {"executed": executed, "timed": timed}
    new["seconds"] = steady(old.get("seconds"), round(seconds, 1))
    new["memory_mb"] = steady(old.get("memory_mb"), round(memory))
    result["metadata"]["attn"] = {**old, **new}
    if not timed:
        result["metadata"]["attn"].pop("timed")


def steady(old: float | None, new: float) -> float:
    """The old measurement while the new one is within a quarter of it."""
    return old if old is not None and abs(new - old) <= 0.25 * old else new


def peak_memory_of_children() -> float:
    """Peak resident megabytes of the kernel, the only child of this process."""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def write_if_changed(path: Path, text: str) -> bool:
    """Writes a whole file at once, only if its text is new."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    unfinished = path.with_suffix(".ipynb.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)
    return True


if __name__ == "__main__":
    sys.exit(main())
