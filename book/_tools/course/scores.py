"""The lecturer's tables: scores of all, and answers that a person marks."""

import csv
from pathlib import Path

from submissions import Stray

COLUMNS = (
    *("student", "assignment", "points", "of", "by hand", "flagged", "second check"),
    *("notes", "error"),
)
BY_HAND = ("student", "assignment", "question", "of", "points", "answer", "rubric")


def write_scores(path: Path, results: list[dict], strays: list[Stray]) -> None:
    """One line a submission, and one for each file that is none."""
    rows = []
    for result in results:
        waiting = [task["id"] for task in result["tasks"] if task["points"] is None]
        texts = [waiting, result["flagged"], result["second check"], result["notes"]]
        row = [result["student"], result["assignment"], result["points"], result["of"]]
        rows.append([*row, *map("; ".join, texts), result["error"]])
    for stray in strays:
        error = f"not graded: {stray.name}: {stray.reason}"
        rows.append([stray.student, "", 0, "", "", "", "", "", error])
    write_table(path, COLUMNS, rows)


def write_by_hand(path: Path, results: list[dict]) -> None:
    """The answers that a person marks, with the points that were given already."""
    rows = []
    for result in results:
        for task in result["tasks"]:
            if task["by hand"]:
                row = [result["student"], result["assignment"], task["id"], task["of"]]
                rows.append([*row, shown(task["points"]), task["answer"], task["rubric"]])
    write_table(path, BY_HAND, rows)


def take_points_by_hand(path: Path, results: list[dict]) -> None:
    """Put the points that a person wrote into the table into the results.

    They count for the answer beside which they were written: a new answer has none yet. Raises
    ValueError for points that are no number between 0 and what the question gives.
    """
    given = {}
    if path.is_file():
        with path.open(encoding="utf-8-sig", newline="") as table:
            for row in csv.DictReader(table):
                if (row.get("points") or "").strip():
                    given[key_of(row)] = row["points"]
    for result in results:
        for task in result["tasks"]:
            key = key_of({**result, "question": task["id"], "answer": task["answer"]})
            if task["by hand"] and key in given:
                task["points"] = checked(given[key], task["of"], ", ".join(key[:3]))
        result["points"] = sum(task["points"] or 0 for task in result["tasks"])


def key_of(row: dict) -> tuple[str, ...]:
    """What tells one answer from another, whatever a spreadsheet did to its spaces."""
    names = ("student", "assignment", "question", "answer")
    return tuple(" ".join(harmless(row.get(name) or "").split()) for name in names)


def checked(text: str, most: float, what: str) -> float:
    try:
        points = float(text.replace(",", "."))
    except ValueError:
        points = -1.0
    if not 0 <= points <= most:
        raise ValueError(f"by-hand.csv, {what}: points must be from 0 to {most:g}, got {text!r}")
    return points


def shown(points: float | None) -> str:
    return "" if points is None else f"{points:g}"


def write_table(path: Path, columns: tuple[str, ...], rows: list[list]) -> None:
    """Replaced at once, so that a run cut short leaves the old table."""
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("w", encoding="utf-8", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(columns)
        writer.writerows([harmless(value) for value in row] for row in rows)
    unfinished.rename(path)


def harmless(value):
    """What a spreadsheet does not take for a formula."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return value
