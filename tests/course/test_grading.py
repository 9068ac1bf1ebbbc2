"""A folder of submissions, honest, broken and hostile, graded in one run of `make grade`.

Needs bubblewrap (Debian: apt install bubblewrap util-linux) and the right to use it.
"""

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import time

import hostile
import pytest
import sandbox
from planted import (
    GOOD,
    PYTHON,
    ROOT,
    TOOLS,
    finished,
    grade,
    handed_in,
    marked,
    planted_source,
    release,
    result,
)

OBSTACLE = sandbox.obstacle()
needs_isolation = pytest.mark.skipif(
    OBSTACLE is not None, reason=f"submissions cannot be isolated on this machine: {OBSTACLE}"
)
CELL_SECONDS = 8


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """The folder of the planted assignment's course."""
    folder = tmp_path_factory.mktemp("course")
    made = release([planted_source(folder / "planted.ipynb")], folder)
    assert made.returncode == 0, made.stdout + made.stderr
    return folder


def submit(folder, student, notebook, name="planted.ipynb"):
    """Put a notebook, as a dict or as bytes, into the folder of a student."""
    path = folder / student / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(notebook if isinstance(notebook, bytes) else json.dumps(notebook).encode())
    return path


@pytest.fixture(scope="module")
def graded(course):
    """All submissions after one run of the grader: (folder, the run)."""
    blank = course / "released" / "planted.ipynb"
    folder = course / "submissions"

    def answers(student, double=GOOD, total="total = 10"):
        submit(folder, student, handed_in(blank, double, total))

    answers("good")
    answers("wrong", "def double(x):\n    return x**2")
    answers("invalid", "def double(x)\n    return x + x")
    answers("warns", f"%time y = 3\n{hostile.WARNS}")
    submit(folder, "blank", json.loads(blank.read_text()))

    answers("loop", hostile.LOOP)
    answers("loop-in-a-function", hostile.LOOP_IN_A_FUNCTION)
    answers("stubborn", hostile.STUBBORN)
    answers("forks", hostile.FORKS)
    answers("memory", hostile.MEMORY)
    answers("leaves", hostile.LEAVES)
    answers("prints", hostile.PRINTS)
    targets = [ROOT / "attnlib", ROOT / ".venv" / "bin", TOOLS, folder, "/dev/shm/..", "/lib/.."]
    answers("deletes", f"FOLDERS = {list(map(str, targets))}\n{hostile.DELETES}")
    patterns = [f"{ROOT}/**/*.ipynb", f"{course}/**/*", "/tmp/grade-*/[!r]*", "/etc/pass*"]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        answers("reads", f"PATTERNS, PORT = {patterns}, {port}\n{hostile.READS}")
        answers("replaces", hostile.REPLACES)
        answers("hooks", hostile.HOOKS)
        answers("rebinds", GOOD, hostile.REBINDS)
        answers("forges", hostile.FORGES)
        answers("fakes", hostile.FAKES_A_SCORE)

        damaged(folder, blank)
        seconds = ("--cell-seconds", str(CELL_SECONDS), "--seconds", "60")
        run = grade(folder, course, *seconds)
    assert run.returncode == 0, run.stdout + run.stderr
    return course, run


def damaged(folder, blank):
    """Submissions that something went wrong with on their way."""
    whole = json.dumps(handed_in(blank))
    submit(folder, "cut", whole[: whole.index("Task 2")].encode())
    submit(folder, "empty", b"")
    notebook = handed_in(blank, f"{GOOD}  # café")
    notebook["metadata"]["kernelspec"]["name"] = "julia-1.9"
    latin = json.dumps(notebook, ensure_ascii=False).encode("latin-1")
    submit(folder, "Zoë <b>O'Neil", latin, "my homework (1).ipynb")
    unmarked = handed_in(blank)
    unmarked["cells"] = [c for c in unmarked["cells"] if not marked(c).get("locked")]
    for cell in unmarked["cells"]:
        cell["metadata"], cell["id"] = {}, None
    submit(folder, "unmarked", unmarked)
    submit(folder, "other", {"cells": [], "metadata": {}}, "shopping.ipynb")
    huge = submit(folder, "huge", b"")
    os.truncate(huge, 2**30)
    (folder / "nothing").mkdir()


def points(graded, student):
    """(points of test-double, points of test-total)."""
    rows = {row["id"]: row["points"] for row in result(graded[0], student)["tasks"]}
    return rows["test-double"], rows["test-total"]


def message(graded, student, test="test-double"):
    rows = {row["id"]: row["message"] for row in result(graded[0], student)["tasks"]}
    return rows[test]


def notes(graded, student):
    return "; ".join(result(graded[0], student)["notes"])


def flagged(graded, student):
    return "; ".join(result(graded[0], student)["flagged"])


@needs_isolation
@pytest.mark.parametrize("student", ["good", "warns", "forks", "deletes", "reads"])
def test_an_honest_answer_has_full_marks_whatever_is_tried_beside_it(graded, student):
    assert points(graded, student) == (2, 2), result(graded[0], student)
    assert flagged(graded, student) == ""


@needs_isolation
def test_a_wrong_answer_loses_its_points_and_the_check_says_why(graded):
    assert points(graded, "wrong") == (0, 2)
    assert message(graded, "wrong") == "double is right for 2 alone"
    assert points(graded, "invalid") == (0, 2)
    assert "the cell 'double' stopped: the cell is not valid Python" in notes(graded, "invalid")


@needs_isolation
def test_the_release_as_it_was_given_out_has_no_points(graded):
    assert points(graded, "blank") == (0, 0)
    assert "not answered" in message(graded, "blank")
    assert message(graded, "blank", "test-total") == "total is still missing"
    why = result(graded[0], "blank")["tasks"][-1]
    assert (why["points"], why["message"]) == (0, "left blank")


@needs_isolation
@pytest.mark.parametrize(
    ("student", "kept", "words"),
    [
        ("loop", 2, "ran too long: a cell may take 8 s"),
        ("loop-in-a-function", 2, "ran too long: a cell may take 8 s"),
        ("stubborn", 0, "an earlier cell ran too long and could not be stopped"),
        ("memory", 2, "it asked for more memory than a submission may use"),
        ("leaves", 0, "the process ended here: too much memory, too many files, or an exit"),
    ],
)
def test_what_takes_too_much_ends_as_a_grade_that_says_so(graded, student, kept, words):
    assert points(graded, student) == (0, kept)
    said = " ".join([notes(graded, student), message(graded, student)])
    assert words in said
    assert flagged(graded, student) == ""


@needs_isolation
def test_a_gigabyte_of_output_ends_as_a_grade(graded):
    assert points(graded, "prints")[1] == 2
    assert points(graded, "prints")[0] == 2 or "ran too long" in notes(graded, "prints")


@needs_isolation
def test_an_endless_loop_costs_its_limit_and_little_more(graded):
    usual = result(graded[0], "good")["seconds"]
    for student in ("loop", "loop-in-a-function"):
        assert result(graded[0], student)["seconds"] < 2 * usual + CELL_SECONDS + 15


@needs_isolation
def test_nothing_was_deleted_and_nothing_written(graded):
    submissions = graded[0] / "submissions"
    assert len(list(submissions.iterdir())) == 26
    for folder in (ROOT / "attnlib", ROOT / ".venv" / "bin", TOOLS, submissions):
        assert list(folder.iterdir()) and not (folder / "planted.txt").exists()


@needs_isolation
@pytest.mark.parametrize(
    ("student", "words"),
    [
        ("replaces", "alone it fails: AssertionError: double is wrong for fractions"),
        ("replaces", "the submission replaces math.isclose"),
        ("hooks", "test-double: points in the notebook, and alone it fails"),
        ("rebinds", "test-total: points in the notebook, and alone it fails"),
        ("forges", "test-double: the second check answered twice"),
    ],
)
def test_tampering_is_flagged_for_the_lecturer(graded, student, words):
    assert sum(points(graded, student)) >= 2
    assert words in flagged(graded, student)
    page = (graded[0] / "graded" / "feedback" / f"{student}.html").read_text()
    assert "flagged" not in page and "second check" not in page


@needs_isolation
def test_a_printed_score_is_none(graded):
    assert points(graded, "fakes") == (0, 2)
    assert message(graded, "fakes") == "double is right for 2 alone"


@needs_isolation
def test_a_damaged_file_is_graded_as_far_as_it_goes_and_says_so(graded):
    assert points(graded, "cut") == (2, 0)
    assert "the file is damaged" in notes(graded, "cut")
    assert "the cell 'total' is missing" in notes(graded, "cut")
    zoe = "Zoë <b>O'Neil"
    assert points(graded, zoe) == (2, 2)
    assert "not UTF-8" in notes(graded, zoe) and "'julia-1.9'" in notes(graded, zoe)
    assert points(graded, "unmarked") == (2, 2)
    assert "had lost its mark" in notes(graded, "unmarked")
    assert "the test cell 'test-double' was deleted" in notes(graded, "unmarked")
    assert points(graded, "empty") == (0, 0) and "the file is empty" in notes(graded, "empty")
    assert points(graded, "huge") == (0, 0) and "1024 MB" in notes(graded, "huge")


def table(folder):
    with (folder / "graded" / "scores.csv").open(encoding="utf-8", newline="") as file:
        return {row["student"]: row for row in csv.DictReader(file)}


@needs_isolation
def test_the_table_has_a_line_for_every_submission_and_for_what_is_none(graded):
    folder, run = graded
    rows = table(folder)
    assert len(rows) == 26
    assert (rows["good"]["points"], rows["good"]["of"]) == ("4.0", "5.0")
    assert rows["good"]["by hand"] == "why" and rows["good"]["flagged"] == ""
    assert "math.isclose" in rows["replaces"]["flagged"]
    assert "of no assignment" in rows["other"]["error"]
    assert "no notebook in this folder" in rows["nothing"]["error"]
    assert "24 graded, 4 flagged, 2 not gradable" in run.stdout


@needs_isolation
def test_a_student_reads_which_check_failed_and_why(graded):
    pages = graded[0] / "graded" / "feedback"
    page = (pages / "wrong.html").read_text(encoding="utf-8")
    assert "Task 1. Doubling (2 points)" in page and "double is right for 2 alone" in page
    assert "2 of 5 points so far; 1 wait for a person to read your answer" in page
    assert "read by a person" in page and "Assignment 0: a planted one" in page
    assert 'name="viewport"' in page and "prefers-color-scheme: dark" in page
    page = (pages / "Zoë <b>O'Neil.html").read_text(encoding="utf-8")
    assert "<b>" not in page and "Zoë &lt;b&gt;O&#x27;Neil" in page


@needs_isolation
def test_after_an_interruption_only_the_rest_is_graded(course, tmp_path):
    blank = course / "released" / "planted.ipynb"
    shutil.copytree(course / "course", tmp_path / "course")
    folder = tmp_path / "submissions"
    submit(folder, "ann", handed_in(blank))
    submit(folder, "bob", handed_in(blank, hostile.LOOP))
    command = [PYTHON, TOOLS / "grade.py", folder, "--course", tmp_path / "course", "--jobs", "1"]
    running = subprocess.Popen(
        [*map(str, command), "--output", str(tmp_path / "graded")],
        stderr=subprocess.PIPE,
        text=True,
    )
    ann = tmp_path / "graded" / "results" / "ann" / "planted.json"
    while not ann.is_file() and running.poll() is None:
        time.sleep(0.1)
    time.sleep(1)
    running.send_signal(signal.SIGINT)
    said = running.communicate(timeout=60)[1]
    assert running.returncode == 130 and "1 of 2 are graded and kept" in said
    first = ann.stat().st_mtime_ns
    submit(folder, "bob", handed_in(blank))
    again = grade(folder, tmp_path)
    assert again.returncode == 0 and "2 graded" in again.stdout, again.stderr
    assert ann.stat().st_mtime_ns == first
    assert points((tmp_path, None), "bob") == (2, 2)


def test_without_isolation_nothing_is_graded_unless_told_so(course, tmp_path):
    blank = course / "released" / "planted.ipynb"
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "planted.ipynb").write_text(json.dumps(handed_in(blank)))
    shutil.copytree(course / "course", tmp_path / "course")
    command = [PYTHON, TOOLS / "grade.py", folder, "--course", tmp_path / "course"]
    refused = subprocess.run(
        [*map(str, command), "--output", str(tmp_path / "graded")],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": str(PYTHON.parent)},
    )
    assert refused.returncode == 2 and "Nothing was graded" in refused.stderr
    assert "bwrap" in refused.stderr and not (tmp_path / "graded").exists()
    told = grade(folder, tmp_path, "--without-isolation")
    assert told.returncode == 0, told.stderr
    assert points((tmp_path, None), "own") == (2, 2)


def test_make_grade_hands_on_what_it_is_told():
    options = ("SUBMISSIONS=some where", "OUTPUT=out", "JOBS=3", "ISOLATION=none")
    shown = finished(["make", "-C", ROOT, "-n", "grade", *options]).stdout
    assert '"some where" --output "out"' in shown
    assert '--jobs "3" --without-isolation' in shown
    assert finished(["make", "-C", ROOT, "grade"]).returncode == 2
