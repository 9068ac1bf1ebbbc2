"""Which files in a folder are submissions, of whom and to what."""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import nbformat
from read_notebook import grade_id, read_cells
from sandbox import ROOT

COURSE = ROOT / "_build" / "course"


@dataclass(frozen=True)
class Course:
    """The folder that `make assignments` made."""

    folder: Path

    @property
    def assignments(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "release").iterdir())

    def source(self, assignment: str) -> Path:
        return self.folder / "source" / assignment / f"{assignment}.ipynb"

    def release(self, assignment: str) -> Path:
        return self.folder / "release" / assignment / f"{assignment}.ipynb"


@dataclass(frozen=True)
class Job:
    """One file of one student, what it answers, and where its result goes."""

    student: str
    assignment: str
    notebook: Path
    result: Path

    def fingerprint(self, *others: Path) -> str:
        """Changes when the file, or one of the others, does."""
        digest = hashlib.sha256()
        for path in (self.notebook, *others):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


@dataclass(frozen=True)
class Stray:
    """A file, or a student's folder, that holds no submission, and why."""

    student: str
    name: str
    reason: str


def found_jobs(folder: Path, results: Path, course: Course) -> tuple[list[Job], list[Stray]]:
    """The submissions in the folder, and what in it is none.

    A folder in it is a student. A notebook directly in it is one's own, where it is named like an
    assignment; another is that of a student with the name of the file.
    """
    jobs, strays = [], []
    for student, notebooks in students(folder.resolve(), course).items():
        seen: dict[str, Path] = {}
        if not notebooks:
            strays.append(Stray(student, "", "no notebook in this folder"))
        named = set(course.assignments)
        for notebook in sorted(notebooks, key=lambda path: (path.stem not in named, path)):
            assignment, reason = None, "not a plain file"
            if notebook.is_file() and not notebook.is_symlink():
                assignment, reason = assignment_of(notebook, course)
            if assignment in seen:
                reason = f"{seen[assignment].name} is graded instead"
            if assignment is None or assignment in seen:
                strays.append(Stray(student, notebook.name, reason))
                continue
            seen[assignment] = notebook
            place = results / student / f"{assignment}.json"
            jobs.append(Job(student, assignment, notebook, place))
    return jobs, strays


def students(folder: Path, course: Course) -> dict[str, list[Path]]:
    """The notebooks of each student."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            notebooks = [n for n in path.rglob("*.ipynb") if not hidden(n.relative_to(path))]
            found.setdefault(path.name, []).extend(notebooks)
        elif path.suffix == ".ipynb":
            own = path.stem in course.assignments
            found.setdefault(folder.name if own else path.stem, []).append(path)
    return found


def hidden(path: Path) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in path.parts)


def assignment_of(notebook: Path, course: Course) -> tuple[str | None, str]:
    """The assignment by the file's name, or else by the cells in it; or none, and why."""
    names = course.assignments
    if notebook.stem in names:
        return notebook.stem, ""
    notes: list[str] = []
    try:
        cells = read_cells(notebook, notes)
    except OSError as error:
        return None, f"it cannot be read: {error.strerror}"
    if cells is None:
        return None, notes[-1]
    marks = {grade_id(cell) for cell in cells} - {None}
    titles = {cell["source"].strip().partition("\n")[0] for cell in cells[:3]}
    alike = {n: len(marks & marks_of(course.release(n))) for n in names}
    alike |= {n: 1000 for n in names if title_of(course.release(n)) in titles}
    best = max(names, key=alike.get)
    return (best, "") if alike[best] else (None, "of no assignment of the course")


@cache
def marks_of(release: Path) -> frozenset[str]:
    """The names of nbgrader's cells in a notebook."""
    return frozenset(grade_id(cell) for cell in nbformat.read(release, 4).cells) - {None}


@cache
def title_of(release: Path) -> str:
    """The first line of a notebook: `# Assignment 1.1: the soft lookup`."""
    return nbformat.read(release, 4).cells[0].source.strip().partition("\n")[0]
