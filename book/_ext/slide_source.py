"""Reads the source of a deck of slides, chapters/<part>/<slug>.slides.md.

The first heading, `# ...?`, is the question of the chapter; every `## ...` begins a slide and is
its message. Lines of Markdown follow, and lines such as `!figure Weighing is never worse` that take
something from the chapter. What comes after a line `Notes:` is for the speaker.
"""

import re
from dataclasses import dataclass
from pathlib import Path

KINDS = ("figure", "equation", "code", "cell", "print", "claim", "table", "exercise")
LAYOUTS = ("side", "stack")  # where the words stand: beside the rest, or above it
FEWEST, MOST = 8, 12
REFERENCE = re.compile(r"!([a-z]+)[ \t]*(.*)")


class SlideError(Exception):
    """Something in the source of a deck that cannot be shown, in words."""


@dataclass(frozen=True)
class Reference:
    kind: str
    words: str


@dataclass(frozen=True)
class Slide:
    number: int
    message: str
    blocks: tuple[str | Reference, ...]  # Markdown and references, in order
    notes: str
    layout: str = ""

    @property
    def words(self) -> str:
        """All Markdown of the slide and its notes."""
        texts = [block for block in self.blocks if isinstance(block, str)]
        return "\n\n".join([self.message, *texts, self.notes])


def read_slides(path: Path) -> list[Slide]:
    parts = re.split(r"^(#{1,2}) (.+)$", path.read_text(encoding="utf-8"), flags=re.M)
    if parts[0].strip():
        raise SlideError(f"{path.name}: words before the first heading")
    slides = [
        read_slide(path, number, heading.strip(), body)
        for number, (heading, body) in enumerate(zip(parts[2::3], parts[3::3], strict=True), 1)
    ]
    marks = parts[1::3]
    if marks[:1] != ["#"] or "#" in marks[1:]:
        raise SlideError(f"{path.name}: the first heading, and only that, is the question, # ...")
    if not FEWEST <= len(slides) <= MOST:
        raise SlideError(f"{path.name}: {len(slides)} slides; a deck has {FEWEST} to {MOST}")
    return slides


def read_slide(path: Path, number: int, message: str, body: str) -> Slide:
    shown, _, notes = body.partition("\nNotes:\n")
    if not notes.strip():
        raise SlideError(f"{path.name}, slide {number}: no notes for the speaker")
    layout, blocks, lines = "", [], []
    for line in [*shown.splitlines(), "!"]:
        if not line.startswith("!"):
            lines.append(line)
            continue
        if text := "\n".join(lines).strip():
            blocks.append(text)
        lines = []
        found = REFERENCE.fullmatch(line.strip())
        if found and found[1] in LAYOUTS:
            layout = found[1]
        elif found and found[1] in KINDS and found[2]:
            blocks.append(Reference(found[1], found[2]))
        elif line != "!":
            raise SlideError(f"{path.name}, slide {number}: not understood: {line}")
    return Slide(number, message, tuple(blocks), notes.strip(), layout)
