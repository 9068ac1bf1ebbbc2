"""An assignment's cells: read from its notebook, answered otherwise, and run in this process."""

import contextlib
import importlib.util
import io
import linecache
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import CodeType, ModuleType

import nbformat
import torch

KINDS = {"sign", "scale", "mask shifted by one", "no largest score", "wrong axis", "stale state"}
"""The typical wrong answers. Where a mechanism has no place for one, a mutants file says so in its
dict ABSENT, with the reason."""

STUB = "# YOUR CODE HERE\nraise NotImplementedError"
SOLUTION = re.compile(r"(?ms)^([ \t]*)### BEGIN SOLUTION\n.*?### END SOLUTION$")
HIDDEN = re.compile(r"(?ms)^[ \t]*### BEGIN HIDDEN TESTS\n.*?### END HIDDEN TESTS$")


@dataclass(frozen=True)
class Cell:
    """A cell: `kind` is text, given, answer, test or manual; marked cells have a name."""

    kind: str
    name: str
    points: int
    source: str


@dataclass(frozen=True)
class Mutant:
    """A wrong answer: the reference of one cell with `old` replaced by `new`, and what it loses.

    `loses` names each test that must fail, with words that its message must hold.
    """

    name: str
    kind: str
    cell: str
    old: str
    new: str
    loses: dict[str, str] = field(default_factory=dict)


def read_assignment(path: Path) -> list[Cell]:
    """The cells of an assignment's source, text cells too."""
    return [cell_of(cell) for cell in nbformat.read(path, as_version=4).cells]


def cell_of(cell: nbformat.NotebookNode) -> Cell:
    """What nbgrader's marks say of a cell."""
    facts = cell.metadata.get("nbgrader", {})
    if facts.get("grade"):
        kind = "manual" if facts.get("solution") else "test"
    elif facts.get("solution"):
        kind = "answer"
    else:
        kind = "text" if cell.cell_type == "markdown" else "given"
    return Cell(kind, facts.get("grade_id", ""), facts.get("points", 0), cell.source)


def mutants_module(path: Path) -> ModuleType:
    """The file `<slug>.mutants.py` beside an assignment: MUTANTS and, where needed, ABSENT."""
    file = path.with_suffix(".mutants.py")
    spec = importlib.util.spec_from_file_location(f"mutants_of_{path.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stripped(cells: list[Cell]) -> list[Cell]:
    """What students get: solutions replaced by a stub, hidden tests gone."""
    return [
        replace(cell, source=HIDDEN.sub("", SOLUTION.sub(stub, cell.source)).rstrip())
        for cell in cells
    ]


def stub(solution: re.Match) -> str:
    """The stub in place of a solution, as far to the right as that was."""
    return "\n".join(solution[1] + line for line in STUB.splitlines())


def answered(cells: list[Cell], name: str, old: str, new: str) -> list[Cell]:
    """The assignment with one answer changed.

    Raises ValueError unless there is one such answer cell, and `old` stands in it once.
    """
    sources = [cell.source for cell in cells if cell.kind == "answer" and cell.name == name]
    if len(sources) != 1 or sources[0].count(old) != 1:
        raise ValueError(f"{old!r} must stand once in the one answer cell {name!r}")
    return [
        replace(cell, source=cell.source.replace(old, new))
        if cell.kind == "answer" and cell.name == name
        else cell
        for cell in cells
    ]


def without_tests_before(cells: list[Cell], name: str) -> list[Cell]:
    """The cells without the tests before the answer `name`: another answer cannot change those."""
    place = next(place for place, cell in enumerate(cells) if cell.name == name)
    return [cell for cell in cells[:place] if cell.kind != "test"] + cells[place:]


def outcome(cells: list[Cell]) -> dict[str, str]:
    """Run the cells in order in one namespace; the message of each test, empty where it passed.

    Raises RuntimeError where a given cell fails: that is not the student's fault.
    """
    space, messages = {"__name__": "__main__"}, {}
    with torch.random.fork_rng():
        for place, cell in enumerate(cells):
            if cell.kind in ("text", "manual"):
                continue
            message = ""
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    exec(compiled(cell.source, f"<cell {place}>"), space)
            except Exception as error:
                message = f"{type(error).__name__}: {error}"
            if cell.kind == "test":
                messages[cell.name] = message
            elif cell.kind == "given" and message:
                raise RuntimeError(f"a given cell failed: {message}")
    return messages


def compiled(source: str, name: str) -> CodeType:
    """The code of a cell whose lines can be looked up by `inspect`, as a Triton kernel needs."""
    lines = source.splitlines(keepends=True)
    linecache.cache[name] = (len(source), None, lines, name)
    return compile(source, name, "exec")
