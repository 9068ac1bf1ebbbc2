"""A page of the book as the checks see it."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import notebook_form
from execute import ROOT, notebooks

BASE64 = re.compile(r"[A-Za-z0-9+/]{200,}={0,2}")


@dataclass(frozen=True)
class Page:
    """A notebook of the book."""

    path: Path
    root: Path = ROOT

    @property
    def name(self) -> str:
        return self.path.relative_to(self.root).as_posix()

    @cached_property
    def notebook(self) -> dict:
        return notebook_form.read(self.path)

    @property
    def cells(self) -> list[dict]:
        return self.notebook["cells"]

    @property
    def code(self) -> list[dict]:
        return [cell for cell in self.cells if cell["cell_type"] == "code"]

    @property
    def markdown(self) -> list[str]:
        return [cell["source"] for cell in self.cells if cell["cell_type"] == "markdown"]

    @property
    def facts(self) -> dict:
        return self.notebook["metadata"].get("attn", {})

    @property
    def number(self) -> str:
        """The number of the chapter: "1.1"."""
        return self.facts.get("chapter", "")

    @property
    def is_chapter(self) -> bool:
        """Neither a companion, nor an assignment, nor a page of the folder book."""
        parts = self.path.relative_to(self.root).parts
        return len(parts) == 3 and parts[0] == "chapters" and "-in-practice" not in self.path.stem

    def texts(self, cell: dict):
        """Every text of the outputs of a cell, pictures left out."""
        for output in cell["outputs"]:
            kinds = {"text": output.get("text", ""), "evalue": output.get("evalue", "")}
            kinds |= {k: v for k, v in output.get("data", {}).items() if not k.startswith("image/")}
            for text in kinds.values():
                yield BASE64.sub("", text if isinstance(text, str) else str(text))


def pages() -> list[Page]:
    """Every notebook of the book."""
    return [Page(path) for path in notebooks()]
