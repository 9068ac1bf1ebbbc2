"""What the second check says of a submission, and what it means for the lecturer.

The check runs in a sandbox of its own (inside/second_check.py) with the tests that brought points.
A test that passed in the notebook and fails there is flagged: its points came from something that
the notebook did to its own process. So is code that replaces functions of attnlib, torch or Python.
Where the check had no answer for lack of time or memory, that is said, and nothing is flagged.

The limit of this: the check runs the submission's functions in one process with the tests. Code
made to deceive both can do so, and the check raises its price, no more.
"""

import ast
import json
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import sandbox
from endings import DIED, NOT_RUN, TOO_LONG
from repaired_submission import is_added, is_answer
from watched import Watched

MOST_BYTES = 2**20
BRIEF = 2
"""Seconds for a cell that has been too long once already."""
NO_ANSWER = ("TooLong", "MemoryError")


@dataclass
class Opinion:
    """`messages` of the tests that were run, empty for one that passed; `ended` says why it ended
    before its time, `replaced` names what the submission replaced, `twice` tests answered twice."""

    messages: dict[str, str] = field(default_factory=dict)
    replaced: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    ended: str = ""


def second_opinion(
    source: nbformat.NotebookNode,
    ran: nbformat.NotebookNode,
    points: dict[str, float | None],
    limits: sandbox.Limits,
    folder: Path,
    isolation: bool = True,
) -> Opinion:
    """Ask the second check about the notebook that nbgrader ran, if any test brought points."""
    if not any(points.values()):
        return Opinion()
    task = {
        "cells": cells_for(source, ran, limits),
        "answers": sorted(names_set(source)),
        "modules": sorted(modules_used(source)),
    }
    command = [str(sandbox.interpreter()), str(sandbox.INSIDE / "second_check.py")]
    if isolation:
        command = sandbox.isolated(command, limits)
    with Watched(limits.memory, folder, limits.file_bytes) as watched:
        lines, in_time = answered(command, json.dumps(task), limits.seconds)
    opinion = read(lines)
    if not in_time:
        opinion.ended = f"its {limits.seconds} s were over"
    elif watched.reason:
        opinion.ended = watched.reason
    return opinion


def cells_for(
    source: nbformat.NotebookNode, ran: nbformat.NotebookNode, limits: sandbox.Limits
) -> list[dict]:
    """The cells to run again: tests with their hidden part, without those that never ended."""
    tests = {
        cell.metadata.nbgrader.grade_id: cell.source
        for cell in source.cells
        if cell.metadata.get("nbgrader", {}).get("grade")
    }
    cells = []
    for place, cell in enumerate(ran.cells):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        endings = {o.ename for o in cell.get("outputs", []) if o.output_type == "error"}
        if endings & {NOT_RUN, DIED}:
            break
        too_long = TOO_LONG in endings
        seconds = BRIEF if too_long else limits.cell_seconds
        name = cell.metadata.get("nbgrader", {}).get("grade_id", f"cell {place}")
        if is_answer(cell) or is_added(cell):
            kind, text = "answer", cell.source
        elif name in tests:
            kind, text = "test", tests[name]
        else:
            kind, text = "given", cell.source
        if not (too_long and kind == "test"):
            cells.append({"id": name, "kind": kind, "source": text, "seconds": seconds})
    return cells


def names_set(source: nbformat.NotebookNode) -> set[str]:
    """The names that the solutions of an assignment set or define."""
    found = set()
    for cell in source.cells:
        if cell.cell_type == "code" and is_answer(cell):
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    found.add(node.name)
                elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    found.add(node.id)
    return found


def modules_used(source: nbformat.NotebookNode) -> set[str]:
    """The modules that the given cells and the tests of an assignment import."""
    found = set()
    for cell in source.cells:
        if cell.cell_type == "code" and not is_answer(cell):
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.Import):
                    found |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    found |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
    return found


def answered(command: list[str], task: str, seconds: int) -> tuple[list[str], bool]:
    """The lines that the check writes, of a megabyte at most, and whether it ended in time."""
    running = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    timer = threading.Timer(seconds, running.kill)
    timer.start()
    try:
        running.stdin.write(task.encode())
        running.stdin.close()
        text = running.stdout.read(MOST_BYTES).decode("utf-8", "replace")
    except BrokenPipeError:
        text = ""
    finally:
        in_time = timer.is_alive()
        timer.cancel()
        running.kill()
        running.wait()
        running.stdout.close()
    return text.splitlines(), in_time


def read(lines: list[str]) -> Opinion:
    """The check's lines; what is none of its lines is passed over."""
    opinion = Opinion(ended="its process ended: too much memory, or an exit")
    for line in lines:
        try:
            said = json.loads(line)
        except ValueError:
            continue
        if not isinstance(said, dict):
            continue
        if said.get("end"):
            opinion.ended = ""
            replaced = said.get("replaced")
            opinion.replaced = list(map(str, replaced)) if isinstance(replaced, list) else []
        elif "id" in said:
            name = str(said["id"])
            if name in opinion.messages:
                opinion.twice.append(name)
            opinion.messages[name] = str(said.get("message"))
    return opinion


def verdicts(opinion: Opinion, points: dict[str, float | None]) -> tuple[list[str], list[str]]:
    """(what is flagged, what is only worth knowing), in words, for the lecturer."""
    flagged = [f"the submission replaces {name}" for name in sorted(set(opinion.replaced))]
    flagged += [f"{name}: the second check answered twice" for name in opinion.twice]
    notes = []
    for name, score in points.items():
        message = opinion.messages.get(name)
        if not score:
            if message == "":
                notes.append(f"{name}: no points in the notebook, passes alone")
        elif message is None:
            notes.append(f"{name}: not confirmed, {opinion.ended or 'not run a second time'}")
        elif message.startswith(NO_ANSWER):
            notes.append(f"{name}: not confirmed, it ran too long or took too much memory")
        elif message:
            flagged.append(f"{name}: points in the notebook, and alone it fails: {message[:200]}")
    return flagged, notes
