"""A small assignment for the tests of the tools, and what students might hand in for it."""

import json
import os
import subprocess
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "book" / "_tools" / "course"
PYTHON = ROOT / ".venv-course" / "bin" / "python"
GOOD = "def double(x):\n    return x + x"


def mark(name: str, *, grade: bool, solution: bool, points: int | None = None) -> dict:
    """nbgrader's mark of a cell."""
    facts = {"schema_version": 3, "grade": grade, "solution": solution, "task": False}
    facts |= {"grade_id": name, "locked": grade and not solution}
    return {"nbgrader": facts | ({} if points is None else {"points": points})}


def planted_source(path: Path) -> Path:
    """Write an assignment of three questions and five points."""
    double = "def double(x):\n    ### BEGIN SOLUTION\n    return 2 * x\n    ### END SOLUTION"
    test_double = """assert double(2) == 4, "double(2) is not 4"
### BEGIN HIDDEN TESTS
assert double(3) == 6, "double is right for 2 alone"
assert math.isclose(double(0.1), 0.2), "double is wrong for fractions"
### END HIDDEN TESTS"""
    total = "total = ...\n### BEGIN SOLUTION\ntotal = sum(range(5))\n### END SOLUTION"
    test_total = """assert total is not ..., "total is still missing"
### BEGIN HIDDEN TESTS
assert total == triangle(4), "the numbers from 0 to 4 have another sum"
### END HIDDEN TESTS"""
    given = "def triangle(n):\n    return n * (n + 1) // 2"
    cells = [
        new_markdown_cell("# Assignment 0: a planted one"),
        new_code_cell("import math"),
        new_markdown_cell("## Task 1. Doubling (2 points)"),
        new_code_cell(double, metadata=mark("double", grade=False, solution=True)),
        new_code_cell(
            test_double, metadata=mark("test-double", grade=True, solution=False, points=2)
        ),
        new_markdown_cell("## Task 2. Adding (2 points)"),
        new_code_cell(given),
        new_code_cell(total, metadata=mark("total", grade=False, solution=True)),
        new_code_cell(
            test_total, metadata=mark("test-total", grade=True, solution=False, points=2)
        ),
        new_markdown_cell("## Task 3. Why? (1 point)"),
        new_markdown_cell(
            "YOUR ANSWER HERE", metadata=mark("why", grade=True, solution=True, points=1)
        ),
    ]
    for place, cell in enumerate(cells):
        cell.id = f"planted-{place}"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def release(sources: list[Path], folder: Path) -> subprocess.CompletedProcess:
    """Make a course of the sources in `folder`."""
    assert PYTHON.is_file(), "the course's environment is missing: make .venv-course/.stamp"
    command = [PYTHON, TOOLS / "release.py", *sources, "--course", folder / "course"]
    return finished([*command, "--released", folder / "released"])


def grade(submissions: Path, folder: Path, *options: str) -> subprocess.CompletedProcess:
    """Grade a folder of submissions with the course in `folder`; results go to folder/graded."""
    command = [PYTHON, TOOLS / "grade.py", submissions, "--course", folder / "course"]
    return finished([*command, "--output", folder / "graded", *options])


def finished(command: list) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k != "TQDM_DISABLE"}
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, env=environment
    )


def result(folder: Path, student: str, assignment: str = "planted") -> dict:
    """What the grader stored of a submission."""
    path = folder / "graded" / "results" / student / f"{assignment}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def handed_in(release: Path, double: str = GOOD, total: str = "total = 10") -> dict:
    """The release as a student fills it in; a dict, as it stands in the file."""
    notebook = json.loads(release.read_text(encoding="utf-8"))
    for name, answer in (("double", double), ("total", total), ("why", "Because.")):
        cell_named(notebook, name)["source"] = answer
    return notebook


def cell_named(notebook: dict, name: str) -> dict:
    return next(c for c in notebook["cells"] if marked(c).get("grade_id") == name)


def marked(cell: dict) -> dict:
    return cell["metadata"].get("nbgrader", {})
