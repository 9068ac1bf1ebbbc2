"""The tables of the instructor's pages: the weeks of a course, and its assignments."""

import re
from html import escape

from course_data import assignments, weeks

WEEKS = ("week", "before class: read", "after: exercises", "assignment", "hours")
ASSIGNMENTS = ("assignment", "tasks", "after it a student can")
MATHEMATICS = re.compile(r"\$([^$]+)\$")
CODE = re.compile(r"`([^`]+)`")


def syllabus_table(link) -> str:
    rows = []
    for week in weeks():
        for place, reading in enumerate(week.readings):
            head = f'<th scope="row" rowspan="{len(week.readings)}">{week.number}</th>'
            hours = f'<td rowspan="{len(week.readings)}">{hours_of(week.minutes)}</td>'
            cells = reading_cells(reading, link)
            rows.append(f"<tr>{head if not place else ''}{cells}{hours if not place else ''}</tr>")
    total = sum(week.minutes for week in weeks())
    foot = f'<tr><th scope="row" colspan="{len(WEEKS) - 1}">all ten weeks</th>'
    rows.append(f"{foot}<td>{total / 60:.0f}</td></tr>")
    return table("weeks", "The ten weeks", WEEKS, rows)


def reading_cells(reading, link) -> str:
    read = f'<a href="{link(reading.page)}">{escape(f"{reading.number} {reading.title}")}</a>'
    if reading.choice:
        read = f"<em>one of:</em> {read}"
    if reading.sections:
        read += f", {spoken(reading.sections)}"
    done = ", ".join(reading.exercises) if len(reading.exercises) < 6 else "the self-test"
    due = reading.assignment
    cells = (
        timed(read, reading.minutes),
        timed(done, reading.exercise_minutes),
        timed(due.number, due.minutes) if due else "",
    )
    return "".join(f"<td>{cell}</td>" for cell in cells)


def timed(what: str, minutes: int) -> str:
    return f'{what} <span class="minutes">{minutes} min</span>'


def spoken(sections: list[int]) -> str:
    """[1, 2, 3, 6] is `sections 1 to 3, 6`."""
    runs = []
    for number in sections:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    parts = [f"{a}" if a == b else f"{a}, {b}" if b == a + 1 else f"{a} to {b}" for a, b in runs]
    return f"section{'s' if len(sections) > 1 else ''} {', '.join(parts)}"


def hours_of(minutes: int) -> str:
    """To half an hour."""
    return f"{round(minutes / 30) / 2:g}"


def assignment_table(link) -> str:
    rows = [
        f'<tr><th scope="row"><a href="{link(f"chapters/{each.chapter}")}">'
        f'{escape(f"{each.number} {each.title}")}</a><br><span class="minutes">{each.minutes} min'
        f"<br>{each.points} points, {each.by_hand} by hand</span></th>"
        f"<td>{items(each.tasks)}</td><td>{items(each.goals)}</td></tr>"
        for each in assignments()
    ]
    return table("assignments", "The assignments", ASSIGNMENTS, rows)


def items(lines: list[str]) -> str:
    return f"<ul>{''.join(f'<li>{marked(line)}</li>' for line in lines)}</ul>"


def marked(text: str) -> str:
    """A heading of a notebook as HTML: its mathematics and its code."""
    text = CODE.sub(r"<code>\1</code>", escape(text, quote=False))
    return MATHEMATICS.sub(r'<span class="math notranslate nohighlight">\\(\1\\)</span>', text)


def table(kind: str, label: str, heads: tuple[str, ...], rows: list[str]) -> str:
    columns = "".join(f'<th scope="col">{head}</th>' for head in heads)
    return (
        f'<div class="table-wrapper" tabindex="0" role="region" aria-label="{label}">'
        f'<table class="course {kind}"><thead><tr>{columns}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
