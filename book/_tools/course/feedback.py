"""A page for each student: points, and what each failing check says, in words."""

from html import escape
from itertools import groupby
from pathlib import Path

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Feedback for {student}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<style>
body {{ font: 1rem/1.6 Georgia, serif; max-width: 42rem; margin: 2rem auto; padding: 0 1rem;
  color: #1c1c1c; background: #fff; overflow-wrap: anywhere }}
h1 {{ font-size: 1.5rem; line-height: 1.3 }}
h2 {{ font-size: 1.25rem; line-height: 1.3; margin: 2.5rem 0 .3rem }}
h3 {{ font-size: 1rem; margin: 1.5rem 0 .3rem }}
ul {{ list-style: none; margin: 0; padding: 0 }}
li {{ border-left: .3rem solid #777; padding: .2rem 0 .2rem .8rem; margin: .4rem 0 }}
li.passed {{ border-color: #2c7a3f }} li.lost {{ border-color: #b3261e }}
.points {{ font-variant-numeric: tabular-nums; white-space: nowrap }}
code {{ font-size: .9em }}
@media (prefers-color-scheme: dark) {{ body {{ color: #e2e2e2; background: #181818 }}
  li.passed {{ border-color: #6fce86 }} li.lost {{ border-color: #ff8a80 }} }}
</style></head><body>
<h1>Feedback for {student}</h1>
{parts}
</body></html>
"""
PERSON = "read by a person, with the rubric of the assignment"
NOT_GRADED = (
    "It could not be graded, and your lecturer sees why. Nothing that you handed in is lost."
)


def write_feedback(folder: Path, results: list[dict]) -> None:
    """One page a student, from all of their results."""
    folder.mkdir(parents=True, exist_ok=True)
    for student in sorted({result["student"] for result in results}):
        parts = [part(result) for result in results if result["student"] == student]
        page = PAGE.format(student=escape(student), parts="\n".join(parts))
        (folder / f"{student}.html").write_text(page, encoding="utf-8")


def part(result: dict) -> str:
    """The section of one assignment."""
    title = escape(result.get("title") or result["assignment"])
    if result["error"]:
        return f"<h2>{title}</h2>\n<p>{NOT_GRADED}</p>"
    open_points = sum(task["of"] for task in result["tasks"] if task["points"] is None)
    total = f"{number(result['points'])} of {number(result['of'])} points"
    if open_points:
        total += f" so far; {number(open_points)} wait for a person to read your answer"
    lines = [f"<h2>{title}</h2>", f"<p>{total}</p>"]
    if result["notes"]:
        notes = "".join(f"<li>{escape(note)}</li>" for note in result["notes"])
        lines.append(f"<h3>While reading and running your notebook</h3>\n<ul>{notes}</ul>")
    for task, rows in groupby(result["tasks"], key=lambda row: row["task"]):
        checks = "\n".join(map(check, rows))
        lines.append(f"<h3>{escape(task)}</h3>\n<ul>\n{checks}\n</ul>")
    return "\n".join(lines)


def check(row: dict) -> str:
    """One check: its points, and in words what it found."""
    if row["points"] is None:
        kind, says = "open", PERSON
    elif row["by hand"]:
        kind, says = "open", row["message"] or PERSON
    elif row["points"]:
        kind, says = "passed", "passed"
    else:
        kind, says = "lost", row["message"] or "lost"
    return (
        f'<li class="{kind}"><span class="points">{number(row["points"])} of {number(row["of"])}'
        f"</span> · <code>{escape(row['id'])}</code><br>{escape(says)}</li>"
    )


def number(points: float | None) -> str:
    return "?" if points is None else f"{points:g}"
