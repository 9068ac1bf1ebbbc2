"""What the pages are made of: files of the repository, read without torch.

Chapters come from book/chapters.csv, mechanisms from book/atlas.json (which the tests hold to the
code), papers from attnlib/papers.csv, minutes and claims from the stored notebooks.
"""

import csv
import functools
import importlib.util
import json
import re
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STEPS = ("score", "support", "weight", "read", "memory")
CLAIM = "application/vnd.attnlib.claim+json"


@dataclass(frozen=True)
class Chapter:
    number: str
    slug: str
    title: str
    steps: tuple[str, ...]
    part: str
    idea: str

    @property
    def built(self) -> bool:
        return (ROOT / f"chapters/{self.slug}.ipynb").exists()

    @property
    def page(self) -> str:
        return f"chapters/{self.slug}"

    @property
    def anchor(self) -> str:
        """Its paragraph on the page of all chapters, written or not."""
        return f"chapter-{self.number.lower().replace('.', '-')}"


@functools.cache
def chapters() -> list[Chapter]:
    return [
        Chapter(**{**row, "steps": tuple(row["steps"].split())})
        for row in csv_rows(ROOT / "book/chapters.csv")
    ]


@functools.cache
def mechanisms() -> list[dict]:
    return json.loads((ROOT / "book/atlas.json").read_text(encoding="utf-8"))["mechanisms"]


@functools.cache
def papers() -> list[dict]:
    path = ROOT / "attnlib/papers.csv"
    return csv_rows(path) if path.exists() else []


@functools.cache
def citations() -> dict[str, str]:
    """How each paper is cited: the words of attnlib/papers.py, which needs no torch."""
    spec = importlib.util.spec_from_file_location("papers_of_attnlib", ROOT / "attnlib/papers.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {key: paper.cite for key, paper in module.load().items()}


def csv_rows(path: Path) -> list[dict]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@dataclass(frozen=True)
class Claim:
    """What the ledger stores of a claim, and the card that shows it."""

    facts: dict
    card: str


@dataclass(frozen=True)
class Notebook:
    page: str
    title: str
    facts: dict
    claims: list[Claim]
    weight: int


@functools.cache
def notebooks() -> list[Notebook]:
    """Every stored notebook of the book, companions after their chapters."""
    paths = [ROOT / "book/preliminaries.ipynb", *sorted(ROOT.glob("chapters/*/*.ipynb"))]
    books = [read_notebook(path) for path in paths if path.exists()]
    order = {chapter.page: place for place, chapter in enumerate(chapters())}
    return sorted(books, key=lambda book: order.get(book.page.removesuffix("-in-practice"), -1))


def read_notebook(path: Path) -> Notebook:
    stored = json.loads(path.read_text(encoding="utf-8"))
    return Notebook(
        page=path.relative_to(ROOT).with_suffix("").as_posix(),
        title=first_heading(stored),
        facts=stored["metadata"].get("attn", {}),
        claims=[
            Claim(output["data"][CLAIM], "".join(output["data"]["text/html"]))
            for cell in stored["cells"]
            for output in cell.get("outputs", [])
            if CLAIM in output.get("data", {})
        ],
        weight=path.stat().st_size,
    )


def first_heading(stored: dict) -> str:
    for cell in stored["cells"]:
        for line in "".join(cell["source"]).splitlines():
            if cell["cell_type"] == "markdown" and line.startswith("# "):
                return line[2:].strip()
    return "untitled"


def equation(mechanism: dict, kind: str = "") -> str:
    """Its equation; if that is several statements, the line may break between them."""
    tex = mechanism.get("equation")
    if not tex:
        return ""
    parts = re.split(r"(?<=,)\s*\\(?:;|quad)\s*", tex)
    statements = " ".join(f"\\({escape(part)}\\)" for part in parts)
    return f'<div class="{kind} math notranslate nohighlight">{statements}</div>'
