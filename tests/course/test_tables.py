"""The lecturer's tables: one line a submission, and points by hand that survive the next run."""

import csv

import pytest
from feedback import write_feedback
from scores import take_points_by_hand, write_by_hand, write_scores
from submissions import Stray


def submission(student="ann", answer="Because."):
    row = {"task": "Task 1. Why? (2 points)", "message": "", "of": 2.0}
    row |= {"answer": "", "rubric": "Two points for a reason."}
    return {
        "student": student,
        "assignment": "planted",
        "title": "Assignment 0",
        "points": 2.0,
        "of": 4.0,
        "tasks": [
            {**row, "id": "test", "points": 2.0, "by hand": False},
            {**row, "id": "why", "points": None, "by hand": True, "answer": answer},
        ],
        "notes": [],
        "flagged": [],
        "second check": [],
        "error": "",
    }


def rows(path):
    with path.open(encoding="utf-8", newline="") as table:
        return list(csv.DictReader(table))


def marked(path, points):
    """Write points into the table, as a lecturer does."""
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(",2.0,,", f",2.0,{points},"), encoding="utf-8")


def test_points_by_hand_count_until_the_answer_changes(tmp_path):
    table = tmp_path / "by-hand.csv"
    results = [submission()]
    take_points_by_hand(table, results)
    write_by_hand(table, results)
    assert rows(table)[0]["rubric"] == "Two points for a reason."
    assert rows(table)[0]["points"] == "" and results[0]["points"] == 2
    marked(table, "1.5")
    results = [submission(answer="Because. ")]
    take_points_by_hand(table, results)
    write_by_hand(table, results)
    assert results[0]["points"] == 3.5 and rows(table)[0]["points"] == "1.5"
    results = [submission(answer="Because of something else.")]
    take_points_by_hand(table, results)
    assert results[0]["points"] == 2


@pytest.mark.parametrize("points", ["3", "-1", "good", "nan"])
def test_points_that_cannot_be_are_refused(tmp_path, points):
    table = tmp_path / "by-hand.csv"
    write_by_hand(table, [submission()])
    marked(table, points)
    with pytest.raises(ValueError, match=r"ann, planted, why: points must be from 0 to 2"):
        take_points_by_hand(table, [submission()])


def test_a_spreadsheet_takes_nothing_for_a_formula(tmp_path):
    results = [submission('=HYPERLINK("x")', answer="-1+2")]
    write_scores(tmp_path / "scores.csv", results, [Stray("@bob", "x.ipynb", "no notebook")])
    write_by_hand(tmp_path / "by-hand.csv", results)
    cells = [value for name in ("scores", "by-hand") for r in rows(tmp_path / f"{name}.csv")
             for value in r.values()]  # fmt: skip
    assert not [value for value in cells if value[:1] in ("=", "+", "-", "@")]
    assert len(cells) > 20


def test_a_submission_that_could_not_be_graded_has_a_line_and_a_page(tmp_path):
    broken = {**submission(), "tasks": [], "of": None, "error": "the grader failed: MemoryError"}
    write_scores(tmp_path / "scores.csv", [broken], [])
    assert rows(tmp_path / "scores.csv")[0]["error"] == "the grader failed: MemoryError"
    write_feedback(tmp_path, [broken])
    page = (tmp_path / "ann.html").read_text(encoding="utf-8")
    assert "could not be graded" in page and "MemoryError" not in page
