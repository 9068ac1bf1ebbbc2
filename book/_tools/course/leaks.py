"""Whether what students get shows a line of a solution or of a hidden test."""

import json
from pathlib import Path

import nbformat

SECRETS = {
    "### BEGIN SOLUTION": "### END SOLUTION",
    "### BEGIN HIDDEN TESTS": "### END HIDDEN TESTS",
}
TELLING = 20
"""A secret line that is as long as this is searched for inside of lines and metadata, too."""


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
