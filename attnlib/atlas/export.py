"""The atlas as JSON, which the book's pages read without torch."""

import importlib
import json
from pathlib import Path

import attnlib
from attnlib.atlas.registry import all_mechanisms


def as_json() -> str:
    """All facts, sorted by key: the same text whenever the facts are the same."""
    for package in ("models", "probes", "interventions"):  # they enter the table when they load
        importlib.import_module(f"attnlib.{package}")
    facts = [entry.facts() for entry in all_mechanisms()]
    return json.dumps({"mechanisms": facts}, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def path() -> Path:
    """Where the book keeps the atlas: book/atlas.json beside the package."""
    return Path(attnlib.__file__).resolve().parent.parent / "book" / "atlas.json"


def write() -> Path:
    """Write the atlas and return where it is."""
    if not path().parent.is_dir():
        raise ValueError(f"there is no folder book/ beside the package to write {path().name} to")
    path().write_text(as_json(), encoding="utf-8")
    return path()
