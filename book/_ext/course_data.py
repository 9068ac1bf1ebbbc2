"""What a course is made of: assignments from their notebooks, weeks from book/syllabus.csv.

Nothing is typed twice. Points and tasks are read from an assignment's cells, minutes and goals from
its metadata; the minutes of a part of a chapter are its share of the chapter's reading minutes, by
words; the minutes of an exercise stand in its heading.
"""

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path

from book_data import ROOT, chapters, csv_rows

CLASS_MINUTES = 90
SYLLABUS = ROOT / "book/syllabus.csv"
SECTION = re.compile(r"## (\d+)\. (.+)")
EXERCISE = re.compile(r"\*\*Exercise ([\w.]+)\*\* · .* · (\d+) min")
TASK = re.compile(r"## Task \d+\. (.+?)(?: \(\d+ points?\))?$")
TAG = re.compile(r"\\tag\{([\w.]+)\}")
FOLDED = re.compile(r"<details>.*?</details>", re.S)


@dataclass(frozen=True)
class Assignment:
    slug: str
    number: str
    chapter: str
    title: str
    minutes: int
    points: int
    by_hand: int
    tasks: list[str]
    goals: list[str]


@functools.cache
def assignments() -> list[Assignment]:
    """Every assignment, in the order of its chapters."""
    order = {chapter.slug: place for place, chapter in enumerate(chapters())}
    found = [read_assignment(path) for path in (ROOT / "chapters").glob("*/assignments/*.ipynb")]
    return sorted(found, key=lambda assignment: order[assignment.chapter])


def read_assignment(path: Path) -> Assignment:
    stored = json.loads(path.read_text(encoding="utf-8"))
    facts = stored["metadata"]["attn"]["assignment"]
    chapter = next(c for c in chapters() if c.slug == facts["chapter"])
    marked = [cell["metadata"].get("nbgrader", {}) for cell in stored["cells"]]
    graded = [mark for mark in marked if mark.get("grade")]
    lines = [line for cell in texts(stored) for line in cell.splitlines()]
    return Assignment(
        slug=path.stem,
        number=chapter.number,
        chapter=chapter.slug,
        title=chapter.title,
        minutes=facts["minutes"],
        points=sum(mark["points"] for mark in graded),
        by_hand=sum(mark["points"] for mark in graded if mark["solution"]),
        tasks=[match[1] for line in lines if (match := TASK.match(line))],
        goals=facts["goals"],
    )


@dataclass(frozen=True)
class Reading:
    """A page, or some of its sections, read in a week, with what is done beside it."""

    page: str
    number: str
    title: str
    sections: list[int]
    minutes: int
    exercises: list[str]
    exercise_minutes: int
    assignment: Assignment | None
    choice: bool

    @property
    def total(self) -> int:
        own = self.assignment.minutes if self.assignment else 0
        return self.minutes + self.exercise_minutes + own


@dataclass(frozen=True)
class Week:
    number: int
    readings: list[Reading]

    @property
    def minutes(self) -> int:
        """With the class; of readings to choose from the longest counts."""
        fixed = sum(reading.total for reading in self.readings if not reading.choice)
        chosen = max((reading.total for reading in self.readings if reading.choice), default=0)
        return CLASS_MINUTES + fixed + chosen


@functools.cache
def weeks() -> list[Week]:
    rows = csv_rows(SYLLABUS)
    numbers = sorted({int(row["week"]) for row in rows})
    return [
        Week(number, [reading(row) for row in rows if int(row["week"]) == number])
        for number in numbers
    ]


def reading(row: dict) -> Reading:
    path = ROOT / f"{row['page']}.ipynb"
    stored = json.loads(path.read_text(encoding="utf-8"))
    sections = section_numbers(row["sections"])
    minutes = exercise_minutes(stored)
    found = [each for each in assignments() if each.slug == row["assignment"]]
    chapter = next((c for c in chapters() if c.page == row["page"]), None)
    return Reading(
        page=row["page"],
        number=chapter.number if chapter else "",
        title=chapter.title if chapter else "Preliminaries",
        sections=sections,
        minutes=reading_minutes(stored, sections),
        exercises=row["exercises"].split(),
        exercise_minutes=sum(minutes[number] for number in row["exercises"].split()),
        assignment=found[0] if found else None,
        choice=bool(row["choice"]),
    )


def section_numbers(ranges: str) -> list[int]:
    """`1-3 6` is [1, 2, 3, 6]; nothing is the whole page."""
    found = []
    for part in ranges.split():
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def exercise_minutes(stored: dict) -> dict[str, int]:
    return {n: int(m) for text in texts(stored) for n, m in EXERCISE.findall(text)}


def reading_minutes(stored: dict, sections: list[int]) -> int:
    """The reading minutes of some sections, to five minutes; what opens a page goes with 1."""
    whole = stored["metadata"]["attn"]["minutes"]
    if not sections:
        return whole
    words = section_words(stored)
    unknown = [number for number in sections if number not in words]
    if unknown:
        raise ValueError(f"sections must be among {sorted(words)}, got {unknown}")
    share = sum(words[number] for number in sections) / sum(words.values())
    return max(5, 5 * round(whole * share / 5))


def section_words(stored: dict) -> dict[int, int]:
    """Words of text in each numbered section before the exercises, which are left out."""
    words, section = {}, 1
    for text in texts(stored):
        if text.startswith("**Exercise"):
            continue
        for line in FOLDED.sub("", text).splitlines():
            if match := SECTION.match(line):
                if match[2] == "Exercises":
                    return words
                section = int(match[1])
            words[section] = words.get(section, 0) + len(line.split())
    return words


def section_of_equations(stored: dict) -> dict[str, int]:
    """The section in which each numbered equation of a chapter stands."""
    found, section = {}, 1
    for text in texts(stored):
        for line in text.splitlines():
            if match := SECTION.match(line):
                section = int(match[1])
            found |= dict.fromkeys(TAG.findall(line), section)
    return found


def exercise_texts(stored: dict) -> dict[str, str]:
    """What each exercise asks, without its folded hints."""
    return {
        match[1]: FOLDED.sub("", text) for text in texts(stored) if (match := EXERCISE.match(text))
    }


def texts(stored: dict) -> list[str]:
    return ["".join(c["source"]) for c in stored["cells"] if c["cell_type"] == "markdown"]
