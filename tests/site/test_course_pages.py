"""The instructor's pages say of the notebooks what the notebooks say of themselves."""

import json
import re

import pytest
from bs4 import BeautifulSoup
from built_site import ROOT, SITE

PAGES = ("for-instructors", "syllabus", "stumbles", "grading", "own-course")
SANDBOX = ROOT / "book/_tools/course/sandbox.py"
EQUATION = re.compile(r"\((P|K\.\d|\d+\.\d)\.(\d+)\)")
EXERCISE = re.compile(r"\b(?:P|K\.\d|\d+\.\d)\.\d+\b")
PLACE = re.compile(r"^\d\. ", re.M)


def text_of(page):
    return (ROOT / "book" / f"{page}.md").read_text(encoding="utf-8")


def written_chapters():
    from book_data import chapters

    return {chapter.number: chapter for chapter in chapters() if chapter.built}


def markdown_of(page):
    """All text cells of a notebook, and of its companion where it has one."""
    paths = [ROOT / f"{page}.ipynb", ROOT / f"{page}-in-practice.ipynb"]
    stored = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
    return "\n".join(
        "".join(cell["source"])
        for notebook in stored
        for cell in notebook["cells"]
        if cell["cell_type"] == "markdown"
    )


def minutes_of_exercises():
    from course_data import exercise_minutes

    pages = ["book/preliminaries", *(chapter.page for chapter in written_chapters().values())]
    found = {}
    for page in pages:
        found |= exercise_minutes(json.loads((ROOT / f"{page}.ipynb").read_text()))
    return found


def table_of(label):
    page = BeautifulSoup((SITE / "book/syllabus.html").read_text(encoding="utf-8"), "html.parser")
    return page.select_one(f'[aria-label="{label}"] table')


def test_the_table_of_assignments_has_all_with_their_points():
    from course_data import assignments

    rows = table_of("The assignments").select("tbody tr")
    assert len(rows) == len(list((ROOT / "chapters").glob("*/assignments/*.ipynb"))) > 0
    for row, assignment in zip(rows, assignments(), strict=True):
        said = f"{assignment.minutes} min {assignment.points} points, {assignment.by_hand} by hand"
        assert said in row.select_one("th").get_text(" ", strip=True)
        assert assignment.points == 20 and assignment.tasks and assignment.goals


def test_the_weeks_are_ten_and_every_written_chapter_is_read_in_one():
    from course_data import weeks

    assert [week.number for week in weeks()] == list(range(1, 11))
    read = {reading.number for week in weeks() for reading in week.readings if reading.number}
    assert read == set(written_chapters())
    assert len(table_of("The ten weeks").select("tbody tr")) == 1 + sum(
        len(week.readings) for week in weeks()
    )


def test_every_assignment_of_the_syllabus_exists_and_is_due_once():
    from book_data import csv_rows
    from course_data import SYLLABUS, assignments

    due = [row["assignment"] for row in csv_rows(SYLLABUS) if row["assignment"]]
    assert sorted(due) == sorted(assignment.slug for assignment in assignments())


def test_a_week_is_no_more_than_eight_hours_and_a_chapter_comes_after_what_it_needs():
    from course_data import weeks

    known = set()
    for week in weeks():
        assert week.minutes <= 8 * 60, week.number
        known |= {reading.number for reading in week.readings}
        for reading in week.readings:
            stored = json.loads((ROOT / f"{reading.page}.ipynb").read_text(encoding="utf-8"))
            needed = stored["metadata"]["attn"].get("prerequisites", [])
            chapters = {name for name in needed if re.fullmatch(r"[K\d]\.\d+", name)}
            assert chapters <= known, (week.number, reading.page)


def test_equations_that_an_assignment_or_exercise_names_were_read_by_then():
    """Of its own chapter, in the sections of this week or an earlier one."""
    from course_data import exercise_texts, section_of_equations, weeks

    read = {}
    for week in weeks():
        for reading in week.readings:
            stored = json.loads((ROOT / f"{reading.page}.ipynb").read_text(encoding="utf-8"))
            home = section_of_equations(stored)
            read.setdefault(reading.page, set()).update(reading.sections or home.values())
            asked = [text for n, text in exercise_texts(stored).items() if n in reading.exercises]
            if reading.assignment:
                chapter, slug = reading.page.rsplit("/", 1)
                asked.append(markdown_of(f"{chapter}/assignments/{slug}"))
            named = {f"{n}.{place}" for text in asked for n, place in EQUATION.findall(text)}
            early = {name for name in named & set(home) if home[name] not in read[reading.page]}
            assert not early, (week.number, reading.page, early)


def test_minutes_of_parts_of_a_chapter_add_up_to_its_own():
    from course_data import reading_minutes, section_words

    stored = json.loads((ROOT / "chapters/1-foundations/soft-lookup.ipynb").read_text())
    whole = list(section_words(stored))
    assert whole == list(range(1, 14))
    assert reading_minutes(stored, whole) == stored["metadata"]["attn"]["minutes"]
    assert reading_minutes(stored, [1, 2]) < reading_minutes(stored, [1, 2, 3])
    with pytest.raises(ValueError, match=r"got \[99\]"):
        reading_minutes(stored, [99])


def test_sections_are_spoken():
    from course_tables import spoken

    assert spoken([1, 2, 3, 6]) == "sections 1 to 3, 6"
    assert spoken([5, 6]) == "sections 5, 6"
    assert spoken([4]) == "section 4"


def test_slots_of_the_two_days_follow_each_other_and_hold_their_exercises():
    known = minutes_of_exercises()
    slots = re.findall(r"^\| (\d+):(\d+) to (\d+):(\d+) \|(.*)$", text_of("syllabus"), re.M)
    assert len(slots) >= 10
    taught, before = 0, None
    for *clock, words in slots:
        h1, m1, h2, m2 = map(int, clock)
        begins, ends = 60 * h1 + m1, 60 * h2 + m2
        assert before is None or begins >= before or begins == 9 * 60
        asked = sum(known[number] for number in EXERCISE.findall(words.split("|")[1]))
        assert begins < ends and asked <= ends - begins, words
        taught, before = taught + ends - begins, ends
    spoken = {11: "Eleven", 12: "Twelve", 13: "Thirteen"}[round(taught / 60)]
    assert f"{spoken} hours of teaching" in text_of("syllabus")


def test_the_limits_of_grading_are_those_of_the_sandbox():
    found = dict(re.findall(r"^ {4}(\w+): int = (.+)$", SANDBOX.read_text(encoding="utf-8"), re.M))
    limits = {name: eval(value, {}) for name, value in found.items()}
    page = text_of("grading")
    assert f"| a cell | {limits['cell_seconds']} s |" in page
    assert f"| all cells of a submission | {limits['seconds']} s |" in page
    assert f"| memory of a process, and of all together | {limits['memory'] // 2**30} GiB |" in page
    assert f"| processes and threads | {limits['processes']} |" in page
    assert f"| a file, and all files | {limits['file_bytes'] // 2**20} MiB |" in page
    assert f"| what a cell prints | {limits['output_bytes'] // 2**20} MiB |" in page


def stumbles():
    """The places of each chapter by its number, `P` for the preliminaries."""
    parts = re.split(r"^## \[", text_of("stumbles"), flags=re.M)[1:]
    return {
        "P" if part.startswith("Preliminaries") else part.split()[0]: PLACE.split(part)[1:]
        for part in parts
    }


def test_every_written_chapter_has_four_to_six_stumbles_with_something_to_ask():
    found = stumbles()
    assert set(found) == {"P", *written_chapters()}
    for number, places in found.items():
        assert 4 <= len(places) <= 6, number
        for place in places:
            assert "*Ask" in place and "?" in place.split("*Ask")[1], (number, place)


@pytest.mark.parametrize("page", PAGES)
def test_equations_and_exercises_that_a_page_names_exist(page):
    pages = {"P": "book/preliminaries"} | {n: c.page for n, c in written_chapters().items()}
    text, exercises = text_of(page), set(minutes_of_exercises())
    equations = EQUATION.findall(text)
    for number, place in equations:
        assert rf"\tag{{{number}.{place}}}" in markdown_of(pages[number]), (number, place)
    named = set(EXERCISE.findall(EQUATION.sub("", text))) - {"0.1.0", "0.2.0", "1.0.0"}
    assert named <= exercises
