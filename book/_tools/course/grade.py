"""`make grade SUBMISSIONS=folder`: scores as CSV and a feedback page for each student.

    python book/_tools/course/grade.py FOLDER [--output GRADED] [--jobs 2] [--without-isolation]

FOLDER holds one folder a student, and in it notebooks named like the assignments; a file with
another name is taken for the assignment whose cells it has. Your own notebook may lie in FOLDER
itself. Nothing in FOLDER is changed. Each submission is graded in a process of its own, so none can
stop the rest; what has been graded is kept, and graded again only when the file, the assignment,
the grader or the limits change. Without the sandbox (sandbox.py) nothing is graded, unless
`--without-isolation` says that the submissions are trusted or the whole machine is a throwaway.

In the folder of the output are `scores.csv`, `by-hand.csv` (answers that a person marks: write the
points there and run the same command again), `feedback/<student>.html` and `results/`.
"""

import argparse
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import sandbox
from feedback import write_feedback
from grade_one import RESULT, SAID, in_a_process
from sandbox import ROOT
from scores import take_points_by_hand, write_by_hand, write_scores
from submissions import COURSE, Course, Job, Stray, found_jobs
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
GRADED = ROOT / "_build" / "graded"
OWN_TIME = 120
"""Seconds that grading one submission may take beside the submission's own."""
PROCESSES = multiprocessing.get_context("forkserver")
"""Each submission has a process of its own; nbgrader, slow to import, is loaded once for all."""
PROCESSES.set_forkserver_preload(["grade_one"])


@dataclass
class Setting:
    """What is the same for all submissions of a run."""

    course: Course
    limits: sandbox.Limits
    isolation: bool
    running: set = field(default_factory=set)
    stopped: threading.Event = field(default_factory=threading.Event)

    def fingerprint(self, job: Job) -> str:
        grader = sorted(HERE.rglob("*.py"))
        files = job.fingerprint(*grader, self.course.source(job.assignment))
        return f"{files} {self.limits}"


def main(arguments: list[str]) -> int:
    options = parsed(arguments)
    limits = sandbox.Limits(cell_seconds=options.cell_seconds, seconds=options.seconds)
    setting = Setting(Course(options.course), limits, not options.without_isolation)
    reason = sandbox.obstacle() if setting.isolation else None
    if reason:
        print(
            f"Nothing was graded: submissions cannot be isolated here ({reason}).\n"
            "Students' code could read and change everything that you can. Where that does not "
            "matter (your own\nnotebook, a machine to throw away), say so: "
            "make grade SUBMISSIONS=... ISOLATION=none",
            file=sys.stderr,
        )
        return 2
    jobs, strays = found_jobs(options.folder, options.output / "results", setting.course)
    for stray in strays:
        print(f"not graded: {stray.student}/{stray.name}: {stray.reason}", file=sys.stderr)
    if not jobs and not strays:
        print(f"no submissions in {options.folder}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, interrupted)
    for name, first in (("PATH", Path(sys.executable).parent), ("PYTHONPATH", HERE)):
        os.environ[name] = f"{first}{os.pathsep}{os.environ.get(name, '')}"  # for what is started
    try:
        results = all_graded(jobs, setting, options.jobs)
    except KeyboardInterrupt:
        kept = sum(job.result.is_file() for job in jobs)
        print(
            f"\nInterrupted: {kept} of {len(jobs)} are graded and kept. "
            "The same command goes on with the rest.",
            file=sys.stderr,
        )
        return 130
    try:
        return finished(options.output, results, strays)
    except ValueError as error:
        print(f"{error}\nNo table was changed.", file=sys.stderr)
        return 2


def interrupted(*_) -> None:
    raise KeyboardInterrupt


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Grade a folder of submissions.")
    parser.add_argument("folder", type=Path, help="one folder a student, with notebooks")
    parser.add_argument("--output", type=Path, default=GRADED, help="default: _build/graded")
    parser.add_argument("--jobs", type=int, default=2, help="submissions at one time")
    parser.add_argument("--course", type=Path, default=COURSE, help="default: _build/course")
    parser.add_argument("--cell-seconds", type=int, default=60, help="for one cell")
    parser.add_argument("--seconds", type=int, default=240, help="for all cells of a submission")
    parser.add_argument("--without-isolation", action="store_true", help="trust the submissions")
    options = parser.parse_args(arguments)
    if not options.folder.is_dir():
        parser.error(f"folder must exist and hold submissions, got {options.folder}")
    if options.output.resolve().is_relative_to(options.folder.resolve()):
        parser.error(f"--output must not lie in the folder of submissions, got {options.output}")
    for name in ("jobs", "cell_seconds", "seconds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if not (options.course / "gradebook.db").is_file():
        parser.error("there is no course yet: run `make assignments` first")
    return options


def all_graded(jobs: list[Job], setting: Setting, at_one_time: int) -> list[dict]:
    """The results in the order of the jobs; an interruption ends what is running."""
    pool = ThreadPoolExecutor(at_one_time)
    try:
        waiting = pool.map(lambda job: graded(job, setting), jobs)
        return list(tqdm(waiting, "grading", total=len(jobs), disable=None, unit="notebook"))
    except BaseException:
        setting.stopped.set()
        for process in list(setting.running):
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def finished(output: Path, results: list[dict], strays: list[Stray]) -> int:
    """Write tables and pages; the exit status."""
    output.mkdir(parents=True, exist_ok=True)
    take_points_by_hand(output / "by-hand.csv", results)
    write_by_hand(output / "by-hand.csv", results)
    write_scores(output / "scores.csv", results, strays)
    write_feedback(output / "feedback", results)
    failed = sum(bool(result["error"]) for result in results) + len(strays)
    flagged = sum(bool(result["flagged"]) for result in results)
    graded_ones = sum(not result["error"] for result in results)
    print(f"{graded_ones} graded, {flagged} flagged, {failed} not gradable: {output}")
    return 0


def graded(job: Job, setting: Setting) -> dict:
    """The result of one submission: the stored one where nothing changed, or a fresh one."""
    try:
        fingerprint = setting.fingerprint(job)
        stored = read_result(job.result)
        if stored.get("fingerprint") == fingerprint:
            return stored
        result = {**fresh(job, setting), "fingerprint": fingerprint, "file": job.notebook.name}
        if not setting.stopped.is_set() and not result["error"]:
            job.result.parent.mkdir(parents=True, exist_ok=True)
            unfinished = job.result.with_suffix(".unfinished")
            unfinished.write_text(json.dumps(result, indent=1), encoding="utf-8")
            unfinished.rename(job.result)
        return result
    except OSError as error:
        return {**blank(job), "error": f"{job.notebook.name} cannot be read: {error}"}


def read_result(path: Path) -> dict:
    """A stored result; nothing where there is none, or only a part of one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def blank(job: Job) -> dict:
    """The result of a submission before it is graded."""
    return {
        "student": job.student,
        "assignment": job.assignment,
        "points": 0.0,
        "of": None,
        "tasks": [],
        "notes": [],
        "flagged": [],
        "second check": [],
    }


def fresh(job: Job, setting: Setting) -> dict:
    """Grade in a process of its own; what went wrong there becomes a result without points."""
    with tempfile.TemporaryDirectory(prefix="grade-", ignore_cleanup_errors=True) as folder:
        task = {
            "course": str(setting.course.folder.resolve()),
            "assignment": job.assignment,
            "student": job.student,
            "notebook": str(job.notebook),
            "folder": folder,
            "isolation": setting.isolation,
        }
        error = said_by_grader(task, setting)
        result = read_result(Path(folder) / RESULT)
    if error or not result:
        return {**blank(job), "error": error or "the grader wrote no result"}
    return {**result, "error": ""}


def said_by_grader(task: dict, setting: Setting) -> str:
    """Run the grader of one submission; why it failed, or nothing."""
    process = PROCESSES.Process(target=in_a_process, args=(task, setting.limits))
    if setting.stopped.is_set():
        return "not graded yet"
    process.start()
    setting.running.add(process)
    if setting.stopped.is_set():
        process.kill()
    process.join(OWN_TIME + 2 * setting.limits.seconds)
    setting.running.discard(process)
    if process.exitcode is None:
        process.kill()
        process.join()
        return "grading did not end in time"
    if process.exitcode:
        said = (Path(task["folder"]) / SAID).read_text(encoding="utf-8", errors="replace")
        return f"the grader failed: {said.strip()[-500:]}"
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
