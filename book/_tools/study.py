"""Runs the study of a chapter (`make study CHAPTER=1-foundations/soft-lookup`).

Reads chapters/<chapter>.study.py (its form: attnlib/study.py) and writes <chapter>.study.json.
While it runs, every result goes to <slug>.study.partial.json, so an interrupted study goes on where
it stopped (as long as its code is the same). The stored file is replaced only by a complete one: a
cell that fails is reported, the others go on, and what was stored stays.
"""

import argparse
import json
import os
import platform
import sys
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from source_hash import code_hash

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the study of a chapter at length.")
    parser.add_argument("chapter", help="<part>/<slug>, such as 1-foundations/soft-lookup")
    parser.add_argument("--restart", action="store_true", help="forget an interrupted run")
    options = parser.parse_args()
    code = study_file(options.chapter)
    if options.restart:
        partial_file(code).unlink(missing_ok=True)
    return run_study(code, options.chapter)


def study_file(chapter: str, root: Path = ROOT) -> Path:
    """The code of the study of `chapter`."""
    slug = chapter.removeprefix("chapters/").removesuffix(".ipynb").removesuffix(".study.py")
    path = root / "chapters" / f"{slug}.study.py"
    if not path.is_file():
        known = sorted((root / "chapters").rglob("*.study.py"))
        names = [str(p.relative_to(root / "chapters"))[: -len(".study.py")] for p in known]
        raise SystemExit(f"no study {path.name}; there are: {', '.join(names) or 'none'}")
    return path


def partial_file(code: Path) -> Path:
    return code.with_suffix(".partial.json")


def study_hash(code: Path, root: Path = ROOT) -> str:
    """The hash of a study's code and of the attnlib modules it uses."""
    return code_hash([code.read_text(encoding="utf-8")], root)


def run_study(code: Path, chapter: str, root: Path = ROOT) -> int:
    """Runs what is missing; returns the exit status."""
    from tqdm import tqdm

    from attnlib.ledger import scalar
    from attnlib.study import load_code

    module = load_code(code)
    wanted = [(cell, seed) for cell in module.CELLS for seed in module.SEEDS]
    facts = header(code, chapter, module, root)
    facts["results"] = resumed(code, facts, wanted)
    done = [(result["cell"], result["seed"]) for result in facts["results"]]
    failed = 0
    for cell, seed in tqdm([job for job in wanted if job not in done], unit="run"):
        start = time.perf_counter()
        try:
            values = {k: scalar(k, value) for k, value in module.run(dict(cell), seed).items()}
        except Exception:
            failed += 1
            tqdm.write(f"FAILED {cell} with seed {seed}\n{traceback.format_exc(limit=-3)}")
            continue
        seconds = round(time.perf_counter() - start, 2)
        result = {"cell": cell, "seed": seed, "seconds": seconds, "values": values}
        facts["results"].append(result)
        write(partial_file(code), facts)
    return finish(code, facts, wanted, failed)


def resumed(code: Path, facts: dict, wanted: list) -> list[dict]:
    """The results of an interrupted run of the same code on the same device."""
    if not partial_file(code).is_file():
        return []
    before = json.loads(partial_file(code).read_text(encoding="utf-8"))
    if any(before[name] != facts[name] for name in ("code", "device")):
        print("an interrupted run had other code or another device: starting anew")
        return []
    return [result for result in before["results"] if (result["cell"], result["seed"]) in wanted]


def finish(code: Path, facts: dict, wanted: list, failed: int) -> int:
    """Stores a complete study; leaves an incomplete one beside what is stored."""
    stored = code.with_suffix(".json")
    if failed:
        print(f"{failed} of {len(wanted)} runs failed. {stored.name} is as it was; the finished")
        print("runs are kept, and the same command runs only the missing ones.")
        return 1
    order = {json.dumps(job): place for place, job in enumerate(wanted)}
    facts["results"].sort(key=lambda result: order[json.dumps((result["cell"], result["seed"]))])
    facts["seconds"] = round(sum(result["seconds"] for result in facts["results"]), 1)
    write(stored, facts)
    partial_file(code).unlink(missing_ok=True)
    print(f"{len(wanted)} runs, {facts['seconds']} s: wrote {stored.name}")
    return 0


def header(code: Path, chapter: str, module, root: Path) -> dict:
    """Everything about a study but its results."""
    slug = code.relative_to(root / "chapters").as_posix().removesuffix(".study.py")
    return {
        "format": 1,
        "question": (module.__doc__ or "").strip(),
        "command": f"make study CHAPTER={slug}",
        "code": study_hash(code, root),
        "seeds": list(module.SEEDS),
        "versions": versions(),
        "device": device(),
    }


def versions() -> dict[str, str]:
    """Versions of what computes."""
    found = {"python": platform.python_version()}
    for package in ("torch", "triton", "numpy", "attnlib"):
        try:
            found[package] = version(package).split("+")[0]
        except PackageNotFoundError:
            continue
    return found


def device() -> str:
    """The GPU's name, or the kind of processor."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()


def write(path: Path, facts: dict) -> None:
    """Writes the whole file at once."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


if __name__ == "__main__":
    sys.exit(main())
