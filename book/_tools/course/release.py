"""`make assignments`: from the sources with solutions to what students get.

    python book/_tools/course/release.py [SOURCE ...] [--course FOLDER] [--released FOLDER]

Sources are `chapters/<part>/assignments/<slug>.ipynb`, ordinary notebooks with nbgrader's marks.
Written are `_build/assignments/<slug>.ipynb` for students and the folder `_build/course`, which is
nbgrader's course with its gradebook and what `make grade` needs. Before that it is proved that
nothing leaks: no line of a solution or of a hidden test, unless it is given elsewhere, stands in
what students get.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

from leaks import leaked
from nbgrader.apps import NbGraderAPI
from submissions import COURSE
from traitlets.config import Config

ROOT = Path(__file__).resolve().parents[3]
RELEASED = ROOT / "_build" / "assignments"
STUB = "# YOUR CODE HERE\nraise NotImplementedError"
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
    if course.exists() and not (course / "gradebook.db").is_file():
        raise ValueError(f"{course} exists and is no course: it is left as it is")
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
    released.mkdir(parents=True, exist_ok=True)
    for old in released.glob("*.ipynb"):
        old.unlink()
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


def main() -> None:
    parser = argparse.ArgumentParser(description="Make what students get, and nbgrader's course.")
    parser.add_argument("sources", nargs="*", type=Path, help="default: all of the book")
    parser.add_argument("--course", type=Path, default=COURSE, help="default: _build/course")
    parser.add_argument("--released", type=Path, default=RELEASED, help="for students")
    options = parser.parse_args()
    if not options.sources:
        for path in sources():
            renew_setup_cell(path)
    found = options.sources or sources()
    if not found:
        sys.exit("no assignments under chapters/*/assignments")
    try:
        made = release(found, options.course.resolve(), options.released.resolve())
    except ValueError as refusal:
        sys.exit(str(refusal))
    print(f"{len(made)} assignments, nothing secret in them")


if __name__ == "__main__":
    main()
