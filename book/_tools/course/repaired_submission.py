"""From what a student handed in to a notebook that can be graded, with a note on every repair.

nbgrader knows the cells of an assignment by metadata that editors lose, and scores a cell that it
does not find as zero without a word. Here the release is the skeleton: its own cells (tests, given
code) are taken from it, its cells for answers are filled with what the student wrote, and cells
that the student added stay where they are.
"""

import ast
import copy
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from read_notebook import grade_id, read_cells


@dataclass
class Submission:
    """A notebook ready for grading (None where nothing could be read), and what was noted."""

    notebook: nbformat.NotebookNode | None
    notes: list[str] = field(default_factory=list)


def repaired(path: Path, release: nbformat.NotebookNode) -> Submission:
    """What the file at `path` answers to the assignment whose release is given."""
    notes: list[str] = []
    cells = read_cells(path, notes)
    if cells is None:
        return Submission(None, notes)
    before = [None, *release.cells]
    answers = {
        answer_id(cell): find_answer(cell, previous, cells, notes)
        for previous, cell in zip(before, release.cells, strict=False)
        if is_answer(cell)
    }
    if not any(found is not None for found in answers.values()):
        notes.append("none of the cells for answers was found: is this the right notebook?")
        return Submission(None, notes)
    notes += changed_cells(release, cells)
    return Submission(merged(release, cells, answers), notes)


def is_answer(cell: dict) -> bool:
    return bool(cell["metadata"].get("nbgrader", {}).get("solution"))


def is_added(cell: dict) -> bool:
    """Whether the student added this cell."""
    return bool(cell["metadata"].get("added"))


def answer_id(cell: dict) -> str:
    return cell["metadata"]["nbgrader"]["grade_id"]


def find_answer(
    wanted: dict, previous: dict | None, cells: list[dict], notes: list[str]
) -> int | None:
    """The place of the student's cell for an answer.

    It is known by its name, else by its id, by what it defines, or by the cell that it follows.
    """
    name = answer_id(wanted)
    named = [place for place, cell in enumerate(cells) if grade_id(cell) == name]
    if named:
        if len(named) > 1:
            notes.append(f"the cell {name!r} is there {len(named)} times: the last counts")
        return named[-1]
    same_id = [p for p, cell in enumerate(cells) if cell["id"] and cell["id"] == wanted.get("id")]
    defines = first_defined(wanted["source"])
    alike = [
        place
        for place, cell in enumerate(cells)
        if defines and cell["cell_type"] == "code" and defines == first_defined(cell["source"])
    ]
    follows = [
        place + 1
        for place, cell in enumerate(cells[:-1])
        if previous and cell["source"].strip() == previous["source"].strip()
        if grade_id(cells[place + 1]) is None
    ]
    found = (same_id or alike or follows)[-1:]
    if not found:
        notes.append(f"the cell {name!r} is missing: its points are lost")
        return None
    notes.append(f"the cell {name!r} had lost its mark: found again by what it holds")
    return found[0]


def first_defined(source: str) -> str | None:
    """The first function or class that a cell defines, or name that it sets."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        lines = [
            line.split("(")[0].split()[1:2]
            for line in source.splitlines()
            if line.startswith(("def ", "class "))
        ]
        return lines[0][0] if lines and lines[0] else None
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            return node.name
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            return node.targets[0].id
    return None


def changed_cells(release: nbformat.NotebookNode, cells: list[dict]) -> list[str]:
    """Notes on cells of the release that were changed or deleted, and are put back."""
    notes = []
    given = {grade_id(cell): cell["source"] for cell in cells if grade_id(cell)}
    for cell in release.cells:
        name = grade_id(cell)
        if name is None or is_answer(cell):
            continue
        if name not in given and not any(c["source"] == cell.source for c in cells):
            notes.append(f"the test cell {name!r} was deleted: it is put back")
        elif name in given and given[name].strip() != cell.source.strip():
            notes.append(f"the test cell {name!r} was changed: the original counts")
    return notes


def merged(
    release: nbformat.NotebookNode, cells: list[dict], answers: dict[str, int | None]
) -> nbformat.NotebookNode:
    """The release with the student's answers, and the cells that they added, in their order."""
    notebook = copy.deepcopy(release)
    ours = {cell.source for cell in release.cells}
    names = {grade_id(cell) for cell in release.cells if not is_answer(cell)} - {None}
    taken = {place for place in answers.values() if place is not None}
    added = [
        place
        for place, cell in enumerate(cells)
        if place not in taken and cell["source"] not in ours and grade_id(cell) not in names
    ]
    filled, cursor = [], 0
    for cell in notebook.cells:
        place = answers.get(answer_id(cell)) if is_answer(cell) else None
        if place is not None:
            before = [p for p in added[cursor:] if p < place]
            filled += [extra_cell(cells[p]) for p in before]
            cursor += len(before)
            cell.source = cells[place]["source"]
        filled.append(cell)
    filled += [extra_cell(cells[p]) for p in added[cursor:]]
    notebook.cells = filled
    return notebook


def extra_cell(cell: dict) -> nbformat.NotebookNode:
    make = (
        nbformat.v4.new_code_cell if cell["cell_type"] == "code" else nbformat.v4.new_markdown_cell
    )
    return make(cell["source"], metadata={"added": True})
