"""The papers of the book: its 333 sources and the canonical works they build on.

The table is `papers.csv`. This file uses the standard library only, so that the site, which is
built without torch, can load it by its path.
"""

import csv
import difflib
import functools
from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).with_name("papers.csv")

KINDS = {
    "A": "mechanism",
    "B": "theory or finding",
    "C": "intervention on attention",
    "D": "attention module of an application",
    "E": "context",
    "K": "canonical work",
}
LEVELS = ("core", "standard", "aside", "canonical")

ADDRESSES = {"arXiv:": "https://arxiv.org/abs/", "doi:": "https://doi.org/"}


@dataclass(frozen=True)
class Paper:
    """One row of the table. A field is empty where nobody has looked it up yet."""

    key: str
    kind: str  # one of KINDS
    title: str
    authors: tuple[str, ...]  # the last may be "others"
    year: int | None
    venue: str
    identifier: str  # "arXiv:...", "doi:..." or an address
    chapter: str  # where the book treats it: "1-foundations/soft-lookup"
    level: str  # one of LEVELS
    mechanism: str  # what it does, in one line
    built: str  # where the book builds it; empty: not built yet
    number: int | None  # 1 to 333 for a source paper, None for a canonical work

    @property
    def cite(self) -> str:
        """How a text names the paper: "Vaswani et al. (2017)", else its title."""
        if not self.authors or self.year is None:
            return self.title
        names = [family_name(author) for author in self.authors]
        if len(names) > 2 or "others" in names:
            return f"{names[0]} et al. ({self.year})"
        return f"{' and '.join(names)} ({self.year})"

    @property
    def anchor(self) -> str:
        """The name of the paper's place on the page of sources: its key."""
        return self.key

    @property
    def url(self) -> str:
        """The address of the paper, or "" where its identifier is unknown."""
        for prefix, address in ADDRESSES.items():
            if self.identifier.startswith(prefix):
                return address + self.identifier.removeprefix(prefix)
        return self.identifier


class Papers(dict[str, Paper]):
    """Papers by key; an unknown key raises a KeyError that names the nearest one."""

    def __missing__(self, key: str) -> Paper:
        nearest = difflib.get_close_matches(str(key), self, n=1, cutoff=0.0)
        hint = f": did you mean {nearest[0]!r}?" if nearest else ""
        raise KeyError(f"no paper has the key {key!r}{hint}")


@functools.cache
def load() -> Papers:
    """All papers by key, the 333 sources first.

    >>> load()["vaswani-2017"].cite
    'Vaswani et al. (2017)'
    """
    with TABLE.open(encoding="utf-8", newline="") as table:
        rows = csv.DictReader(table)
        return Papers((row["key"], paper_from(row)) for row in rows)


def paper_from(row: dict[str, str]) -> Paper:
    """The paper in one row of the table."""
    fields = dict(row)
    number, year = fields.pop("id"), fields.pop("year")
    authors = tuple(name.strip() for name in fields.pop("authors").split(";") if name.strip())
    return Paper(
        **fields,
        authors=authors,
        year=int(year) if year else None,
        number=int(number) if number else None,
    )


def family_name(author: str) -> str:
    """The name by which an author is cited: "Aaron van den Oord" gives "van den Oord"."""
    first, *rest = author.split()
    for position, word in enumerate(rest):
        if word[0].islower():
            return " ".join(rest[position:])
    return rest[-1] if rest else first
