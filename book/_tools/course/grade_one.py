"""Grades one submission, in a process of its own, and writes what it found as JSON.

`make grade` starts `in_a_process` for each submission. The student's code runs in a kernel inside
the sandbox, once under nbgrader and once more, as plain functions, under the second check.
"""

import json
import logging
import os
import resource
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
import sandbox
from endings import DIED, NOT_RUN, TOO_LONG
from limited_execute import LimitedExecute
from nbgrader.api import Gradebook
from nbgrader.apps import NbGraderAPI
from nbgrader.converters import Autograde
from repaired_submission import is_answer, repaired
from second_opinion import Opinion, second_opinion, verdicts
from traitlets.config import Config
from watched import Watched

RESULT = "result.json"
SAID = "said.txt"
MOST_WORDS = 600
STUDENT = "student"
"""What nbgrader calls every student: names of folders may hold what it does not take."""
CHECKS = ("AssertionError", "ExerciseError")
IN_WORDS = {
    "NotImplementedError": "not answered: the cell still raises NotImplementedError",
    "NameError": "a name is missing: {message}. Was a function renamed, or its cell not run?",
    "SyntaxError": "the cell is not valid Python: {message}",
    "IndentationError": "the cell is not valid Python: {message}",
    "MemoryError": "it asked for more memory than a submission may use",
    TOO_LONG: "it ran too long: {message}",
    NOT_RUN: "not run: {message}",
    DIED: "the process ended here: too much memory, too many files, or an exit",
}


@dataclass(frozen=True)
class Task:
    """One submission, and how it is to be graded."""

    course: Path
    assignment: str
    student: str
    notebook: Path
    folder: Path
    """Empty, for whatever grading needs."""
    limits: sandbox.Limits
    isolation: bool = True

    def read(self, kind: str) -> nbformat.NotebookNode:
        """The assignment's notebook: `source` with its secrets, or `release` without."""
        return nbformat.read(self.course / kind / self.assignment / f"{self.assignment}.ipynb", 4)


def grade(task: Task) -> dict:
    """The scores, messages and notes of one submission."""
    started = time.monotonic()
    source = task.read("source")
    submission = repaired(task.notebook, task.read("release"))
    notes = list(submission.notes)
    if submission.notebook is None:
        scores = dict.fromkeys(graded_names(source), (0.0, "not run: nothing was found to run"))
        opinion, answers = Opinion(), {}
    else:
        ran, scores = run_under_nbgrader(task, submission.notebook)
        points = {name: score for name, (score, _) in scores.items()}
        shared = task.folder / "run"
        opinion = second_opinion(source, ran, points, task.limits, shared, task.isolation)
        notes += stopped_cells(ran)
        answers = {grade_id(cell): cell.source for cell in ran.cells if by_hand(cell)}
    rows = rows_of(source, scores, answers)
    flagged, remarks = verdicts(opinion, {row["id"]: row["points"] for row in rows})
    return {
        "student": task.student,
        "assignment": task.assignment,
        "title": source.cells[0].source.splitlines()[0].lstrip("# "),
        "points": sum(row["points"] or 0 for row in rows),
        "of": sum(row["of"] for row in rows),
        "tasks": rows,
        "notes": notes,
        "flagged": flagged,
        "second check": remarks,
        "seconds": round(time.monotonic() - started, 1),
    }


def grade_id(cell: nbformat.NotebookNode) -> str:
    return cell.metadata.get("nbgrader", {}).get("grade_id", "")


def is_graded(cell: nbformat.NotebookNode) -> bool:
    return bool(cell.metadata.get("nbgrader", {}).get("grade"))


def by_hand(cell: nbformat.NotebookNode) -> bool:
    """Whether a person marks this cell."""
    return is_graded(cell) and is_answer(cell)


def graded_names(source: nbformat.NotebookNode) -> list[str]:
    return [grade_id(cell) for cell in source.cells if is_graded(cell)]


def rows_of(
    source: nbformat.NotebookNode,
    scores: dict[str, tuple[float | None, str]],
    answers: dict[str, str],
) -> list[dict]:
    """A row for each graded cell: its task, its points, and what its check says."""
    rows, heading = [], ""
    for cell in source.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            heading = cell.source.splitlines()[0].removeprefix("## ")
        if is_graded(cell):
            name = grade_id(cell)
            points, message = scores[name]
            row = {"id": name, "task": heading, "points": points, "message": message}
            row["of"] = float(cell.metadata.nbgrader.points)
            row["by hand"] = by_hand(cell)
            row["answer"] = answers.get(name, "")
            row["rubric"] = rubric(cell) if by_hand(cell) else ""
            rows.append(row)
    return rows


def rubric(cell: nbformat.NotebookNode) -> str:
    """What stands in the source of an open question, for those who mark it."""
    lines = [line for line in cell.source.splitlines() if not line.startswith("### ")]
    return "\n".join(lines).strip()


def run_under_nbgrader(
    task: Task, notebook: nbformat.NotebookNode
) -> tuple[nbformat.NotebookNode, dict[str, tuple[float | None, str]]]:
    """The notebook with the outputs that nbgrader found, and its scores."""
    limits, folder = task.limits, task.folder
    place = folder / "submitted" / STUDENT / task.assignment
    place.mkdir(parents=True)
    nbformat.write(notebook, place / f"{task.assignment}.ipynb")
    shutil.copy(task.course / "gradebook.db", folder)
    sockets = folder / "run"
    sockets.mkdir()
    sockets.chmod(0o777)
    folder.chmod(0o755)
    use_book_kernel(folder, sockets, limits, task.isolation)

    config = Config()
    config.CourseDirectory.root = str(folder)
    config.CourseDirectory.course_id = "attention"
    config.CourseDirectory.db_url = f"sqlite:///{folder / 'gradebook.db'}"
    config.LimitedExecute.seconds = limits.seconds
    config.LimitedExecute.cell_seconds = limits.cell_seconds
    config.LimitedExecute.output_bytes = limits.output_bytes
    config.LimitedExecute.sockets = str(sockets)
    usual = Autograde.autograde_preprocessors.default_args[0]
    config.Autograde.autograde_preprocessors = [
        LimitedExecute if each.__name__ == "Execute" else each for each in usual
    ]
    logging.getLogger("traitlets").setLevel(logging.CRITICAL)
    with Watched(limits.memory, sockets, limits.file_bytes) as watched:
        done = NbGraderAPI(config=config).autograde(task.assignment, STUDENT)
    if not done["success"]:
        said = done.get("log") or done.get("error") or ""
        raise RuntimeError(f"nbgrader could not grade it: {said[-1500:]}")
    autograded = folder / "autograded" / STUDENT / task.assignment
    ran = nbformat.read(autograded / f"{task.assignment}.ipynb", 4)
    return ran, scores_of(ran, task, watched.reason)


def use_book_kernel(folder: Path, sockets: Path, limits: sandbox.Limits, isolation: bool) -> None:
    """Tell Jupyter that the kernel python3 is the book's python, in the sandbox."""
    command = [str(sandbox.interpreter()), "-m", "ipykernel_launcher", "-f"]
    if isolation:
        command = sandbox.isolated(
            [*command, sandbox.HANDED], limits, shared=sockets, handed="{connection_file}"
        )
    else:
        command.append("{connection_file}")
    place = folder / "jupyter" / "kernels" / "python3"
    place.mkdir(parents=True)
    facts = {
        "argv": command,
        "display_name": "Python 3",
        "language": "python",
        "interrupt_mode": "message",
        "env": sandbox.SETTINGS,
    }
    (place / "kernel.json").write_text(json.dumps(facts), encoding="utf-8")
    os.environ["JUPYTER_PATH"] = str(folder / "jupyter")
    os.environ["JUPYTER_RUNTIME_DIR"] = str(sockets)


def scores_of(
    notebook: nbformat.NotebookNode, task: Task, killed: str
) -> dict[str, tuple[float | None, str]]:
    """(points, what went wrong) of each graded cell; None for what a person must mark."""
    found = {}
    with Gradebook(f"sqlite:///{task.folder / 'gradebook.db'}", "attention") as gradebook:
        for cell in filter(is_graded, notebook.cells):
            name = grade_id(cell)
            grade = gradebook.find_grade(name, task.assignment, task.assignment, STUDENT)
            score = None if grade.needs_manual_grade else float(grade.auto_score or 0)
            message = message_of(cell)
            if by_hand(cell) and score is not None:
                message = "left blank"
            if killed and error_name(cell) in (DIED, NOT_RUN):
                message = f"not run: the process was ended, {killed}"
            found[name] = (score, message)
    return found


def stopped_cells(notebook: nbformat.NotebookNode) -> list[str]:
    """What the cells that are no tests stopped with, unless they were left unanswered."""
    notes = []
    for place, cell in enumerate(notebook.cells, start=1):
        name = error_name(cell)
        if name and not is_graded(cell) and name not in ("NotImplementedError", NOT_RUN):
            called = repr(grade_id(cell)) if grade_id(cell) else f"number {place}"
            notes.append(f"the cell {called} stopped: {message_of(cell)}")
    return notes


def first_error(cell: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
    """What a cell stopped with; where it was stopped for its time, that."""
    errors = [output for output in cell.get("outputs", []) if output.output_type == "error"]
    return min(errors, key=lambda error: error.ename != TOO_LONG, default=None)


def error_name(cell: nbformat.NotebookNode) -> str:
    error = first_error(cell)
    return error.ename if error else ""


def message_of(cell: nbformat.NotebookNode) -> str:
    """What a cell stopped with, in words; empty where it did not."""
    error = first_error(cell)
    if error is None:
        return ""
    text = error.evalue.strip()[:MOST_WORDS]
    if error.ename in IN_WORDS:
        return IN_WORDS[error.ename].format(message=text)
    if error.ename in CHECKS:
        return text or "a check failed that says no more"
    return f"the code stopped with {error.ename}" + (f": {text}" if text else "")


def bound_memory(most: int) -> None:
    """The grader itself takes in what a kernel sends, which may be one endless message."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if sys.platform == "linux" and hard == resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def in_a_process(told: dict, limits: sandbox.Limits) -> None:
    """What the process of one submission does; what goes wrong stands in folder/said.txt."""
    os.setsid()  # an interruption from the keyboard reaches the process that started this one
    folder = Path(told["folder"])
    said = os.open(folder / SAID, os.O_WRONLY | os.O_CREAT, 0o600)
    for stream in (1, 2):
        os.dup2(said, stream)
    bound_memory(limits.memory + 2 * 2**30)
    paths = {name: Path(told[name]) for name in ("course", "notebook", "folder")}
    found = grade(Task(**{**told, **paths}, limits=limits))
    (folder / RESULT).write_text(json.dumps(found, indent=1), encoding="utf-8")
