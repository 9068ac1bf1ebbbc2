"""`make assignments`: from the sources with solutions to what students get.

    python book/_tools/course/release.py

Sources are `chapters/<part>/assignments/<slug>.ipynb`, ordinary notebooks with nbgrader's marks.
Written are `_build/assignments/<slug>.ipynb` for students and the folder `_build/course`, which is
nbgrader's course with its gradebook and what `make grade` needs. Before that it is proved that
nothing leaks: no line of a solution or of a hidden test, unless it is given elsewhere, stands in
what students get.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import nbformat
from nbgrader.apps import NbGraderAPI
from traitlets.config import Config

ROOT = Path(__file__).resolve().parents[3]
COURSE = ROOT / "_build" / "course"
RELEASED = ROOT / "_build" / "assignments"
STUB = "# YOUR CODE HERE\nraise NotImplementedError"
SECRETS = {
    "### BEGIN SOLUTION": "### END SOLUTION",
    "### BEGIN HIDDEN TESTS": "### END HIDDEN TESTS",
}
TELLING = 20
"""A secret line that is as long as this is searched for inside of lines and metadata, too."""

sys.path.insert(0, str(ROOT / "book" / "_tools"))
from setup_cell import setup_cell  # noqa: E402


def sources(root: Path = ROOT) -> list[Path]:
    """The assignments of the book, in the order of its parts."""
    return sorted((root / "chapters").glob("*/assignments/*.ipynb"))


def release(paths: list[Path], course: Path = COURSE, released: Path = RELEASED) -> list[Path]:
    """Make a course of these assignments, and the notebooks for students; returns the latter.

    What was there before is replaced only after all of them were made and searched for leaks.
    Raises ValueError for two assignments of one name, a source that nbgrader refuses, and a leak.
    """
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        raise ValueError(f"assignments must have different names, got {sorted(names)}")
    fresh = course.with_name(course.name + ".unfinished")
    shutil.rmtree(fresh, ignore_errors=True)
    for path in paths:
        place = fresh / "source" / path.stem
        place.mkdir(parents=True)
        shutil.copy(path, place)
    generate(fresh, names)
    for path in paths:
        leaks = leaked(path, fresh / "release" / path.stem / path.name)
        if leaks:
            raise ValueError(f"{path.stem}: the release shows what is secret: {leaks}")
    shutil.rmtree(course, ignore_errors=True)
    fresh.rename(course)
    shutil.rmtree(released, ignore_errors=True)
    released.mkdir(parents=True)
    return [
        Path(shutil.copy(course / "release" / name / f"{name}.ipynb", released)) for name in names
    ]


def generate(course: Path, names: list[str]) -> None:
    """Let nbgrader make the students' version of each source, and its gradebook."""
    beside = str(Path(sys.executable).parent)  # nbgrader calls alembic, which is installed there
    os.environ["PATH"] = f"{beside}{os.pathsep}{os.environ.get('PATH', '')}"
    config = Config()
    config.CourseDirectory.root = str(course)
    config.CourseDirectory.course_id = "attention"
    config.CourseDirectory.db_url = f"sqlite:///{course / 'gradebook.db'}"
    config.ClearSolutions.code_stub = {"python": STUB}
    nbgrader = NbGraderAPI(config=config)
    for name in names:
        made = nbgrader.generate_assignment(name, force=True, create=True)
        if not made["success"]:
            said = made.get("log") or made.get("error") or ""
            raise ValueError(f"{name}: nbgrader refuses it:\n{said[-2000:]}")


def leaked(source: Path, released: Path) -> list[str]:
    """What is secret in the source and stands in the release all the same; outputs, too."""
    secret, open_lines = set(), set()
    for cell in nbformat.read(source, as_version=4).cells:
        hidden, given = parted(cell.source)
        secret |= hidden
        open_lines |= given
    notebook = nbformat.read(released, as_version=4)
    lines = {line.strip() for cell in notebook.cells for line in cell.source.splitlines()}
    text = json.dumps(notebook, ensure_ascii=False)
    given = "\n".join(open_lines)
    shown = {
        line
        for line in secret - open_lines
        if line in lines or (len(line) >= TELLING and line not in given and quoted(line) in text)
    }
    marks = [mark for pair in SECRETS.items() for mark in pair if mark in text]
    outputs = [f"outputs of {cell.id}" for cell in notebook.cells if cell.get("outputs")]
    return sorted(shown) + marks + outputs


def quoted(line: str) -> str:
    """A line as it stands inside of a notebook's file."""
    return json.dumps(line, ensure_ascii=False)[1:-1]


def parted(source: str) -> tuple[set[str], set[str]]:
    """(the lines between marks of secrecy, the others), without blank ones."""
    hidden, given, until = set(), set(), None
    for line in map(str.strip, source.splitlines()):
        if until is None and line in SECRETS:
            until = SECRETS[line]
        elif line == until:
            until = None
        elif line:
            (given if until is None else hidden).add(line)
    return hidden, given


def renew_setup_cell(path: Path) -> None:
    """Write the book's setup cell of today into a source, as `make run` does for chapters."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    wanted = setup_cell(path).splitlines(keepends=True)
    changed = False
    for cell in notebook["cells"]:
        if "setup" in cell["metadata"].get("tags", []) and cell["source"] != wanted:
            cell["source"], changed = wanted, True
    if changed:
        text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    found = sources()
    if not found:
        sys.exit("no assignments under chapters/*/assignments")
    for path in found:
        renew_setup_cell(path)
    try:
        made = release(found)
    except ValueError as refusal:
        sys.exit(str(refusal))
    for path in made:
        print(path.relative_to(ROOT))
