"""Reading the file that a student handed in, however damaged, with a note on every damage."""

import json
from pathlib import Path

LARGEST = 64 * 2**20
"""A file that is larger is not opened; without its outputs a notebook has a few hundred kB."""


def read_cells(path: Path, notes: list[str]) -> list[dict] | None:
    """The cells of a notebook file; None, with a note, where there are none."""
    size = path.stat().st_size
    if size > LARGEST:
        notes.append(
            f"the file has {size / 2**20:.0f} MB, at most {LARGEST / 2**20:.0f} are opened: "
            "clear the outputs and hand it in again"
        )
        return None
    if not size:
        notes.append("the file is empty")
        return None
    text = decoded(path.read_bytes(), notes)
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError) as error:
        cells = salvaged(text)
        if not cells:
            notes.append(f"the file is no notebook ({error})")
            return None
        notes.append(f"the file is damaged ({error}): {len(cells)} whole cells were found in it")
        facts = {"cells": cells}
    cells = facts.get("cells") if isinstance(facts, dict) else None
    if not isinstance(cells, list):
        notes.append("the file is no notebook of format 4: it has no list of cells")
        return None
    name = kernel_of(facts)
    if name != "python3":
        notes.append(f"the notebook asks for the kernel {name!r}: run with python3")
    return [whole_cell(cell) for cell in cells if isinstance(cell, dict)]


def decoded(raw: bytes, notes: list[str]) -> str:
    """Text from bytes that should be UTF-8."""
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        notes.append("the file is UTF-16, not UTF-8: read as such")
        return raw.decode("utf-16", "replace")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        notes.append(f"the file is not UTF-8 (byte {error.start}): read as Windows-1252")
        return raw.decode("cp1252", "replace")


def salvaged(text: str) -> list[dict]:
    """The cells of a notebook that was cut off or damaged, up to the damage."""
    start = text.find('"cells"')
    place = text.find("[", start) + 1
    if start < 0 or place == 0:
        return []
    decoder, cells = json.JSONDecoder(), []
    while True:
        while place < len(text) and text[place] in " \t\r\n,":
            place += 1
        try:
            cell, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            return cells
        cells.append(cell)


def kernel_of(facts: dict) -> str:
    """The name of the kernel that a notebook asks for; python3 where it says nothing."""
    for key in ("metadata", "kernelspec"):
        facts = facts.get(key)
        if not isinstance(facts, dict):
            return "python3"
    return str(facts.get("name", "python3"))


def whole_cell(cell: dict) -> dict:
    """A cell with the parts that are used here, whatever it lacks."""
    source = cell.get("source", "")
    source = "".join(map(str, source)) if isinstance(source, list) else str(source)
    source = source.encode("utf-8", "replace").decode("utf-8")  # halves of characters
    metadata = cell["metadata"] if isinstance(cell.get("metadata"), dict) else {}
    kind = "markdown" if cell.get("cell_type") in ("markdown", "raw") else "code"
    name = cell["id"] if isinstance(cell.get("id"), str) else None
    return {"cell_type": kind, "source": source, "metadata": metadata, "id": name}


def grade_id(cell: dict) -> str | None:
    """The name that nbgrader gave to a cell."""
    facts = cell["metadata"].get("nbgrader")
    name = facts.get("grade_id") if isinstance(facts, dict) else None
    return name if isinstance(name, str) else None
