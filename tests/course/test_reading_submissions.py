"""Whatever a student hands in is read as far as it goes, with a note on what was repaired."""

import json
import os

import nbformat
import pytest
from assignment_cells import read_assignment, stripped
from planted import GOOD, cell_named, handed_in, marked, planted_source
from read_notebook import read_cells
from repaired_submission import repaired
from submissions import Course, found_jobs


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A course with the planted assignment, its release made without nbgrader."""
    folder = tmp_path_factory.mktemp("course")
    source = planted_source(folder / "source" / "planted" / "planted.ipynb")
    notebook = nbformat.read(source, as_version=4)
    for cell, ours in zip(notebook.cells, stripped(read_assignment(source)), strict=True):
        cell.source = ours.source
    (folder / "release" / "planted").mkdir(parents=True)
    nbformat.write(notebook, folder / "release" / "planted" / "planted.ipynb")
    return Course(folder)


def read(course, notebook, tmp_path):
    """(sources of the notebook that is graded, the notes)."""
    path = tmp_path / "planted.ipynb"
    path.write_bytes(notebook if isinstance(notebook, bytes) else json.dumps(notebook).encode())
    submission = repaired(path, nbformat.read(course.release("planted"), as_version=4))
    notes = "; ".join(submission.notes)
    if submission.notebook is None:
        return None, notes
    nbformat.write(submission.notebook, tmp_path / "repaired.ipynb")
    return [cell.source for cell in submission.notebook.cells], notes


@pytest.fixture
def notebook(course):
    return handed_in(course.release("planted"))


def test_an_untouched_notebook_needs_no_repair(course, notebook, tmp_path):
    sources, notes = read(course, notebook, tmp_path)
    assert notes == "" and sources == ["".join(c["source"]) for c in notebook["cells"]]


def test_lost_marks_and_ids_are_found_again(course, notebook, tmp_path):
    for cell in notebook["cells"]:
        cell["metadata"], cell["id"] = {}, None
    sources, notes = read(course, notebook, tmp_path)
    assert GOOD in sources and "total = 10" in sources and "Because." in sources
    for name in ("double", "total", "why"):
        assert f"the cell {name!r} had lost its mark" in notes


def test_a_changed_or_deleted_test_is_put_back(course, notebook, tmp_path):
    cell_named(notebook, "test-double")["source"] = "pass"
    notebook["cells"] = [c for c in notebook["cells"] if marked(c).get("grade_id") != "test-total"]
    sources, notes = read(course, notebook, tmp_path)
    assert "the test cell 'test-double' was changed" in notes
    assert "the test cell 'test-total' was deleted" in notes
    assert "pass" not in sources
    assert any("double(2) is not 4" in source for source in sources)


def test_a_missing_answer_leaves_its_stub(course, notebook, tmp_path):
    notebook["cells"].remove(cell_named(notebook, "double"))
    sources, notes = read(course, notebook, tmp_path)
    assert "the cell 'double' is missing" in notes
    assert any("raise NotImplementedError" in source for source in sources)


def test_cells_that_the_student_added_stay_where_they_are(course, notebook, tmp_path):
    place = notebook["cells"].index(cell_named(notebook, "total"))
    added = {"cell_type": "code", "source": "ten = 10", "metadata": {}, "outputs": []}
    notebook["cells"].insert(place, added)
    sources, notes = read(course, notebook, tmp_path)
    assert notes == "" and sources.index("ten = 10") == sources.index("total = 10") - 1


def test_of_an_answer_split_in_two_both_parts_run(course, notebook, tmp_path):
    cell = cell_named(notebook, "double")
    first = {**cell, "source": "def plus(x, y):\n    return x + y", "id": "other"}
    cell["source"] = "def double(x):\n    return plus(x, x)"
    notebook["cells"].insert(notebook["cells"].index(cell), first)
    sources, notes = read(course, notebook, tmp_path)
    assert sources.index(first["source"]) == sources.index(cell["source"]) - 1
    assert "is there 2 times" in notes


BROKEN = {
    "no text": (b"", "the file is empty"),
    "no JSON": (b"PK\x03\x04 a zip file", "no notebook"),
    "a list": (b"[1, 2]", "no list of cells"),
    "no cells": (b'{"nbformat": 3, "worksheets": []}', "no list of cells"),
    "cells of nothing": (b'{"cells": [1, null, {}]}', "none of the cells for answers"),
    "deep": (b"[" * 100_000, "no notebook"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_notebook_is_said_to_be_none(course, tmp_path, name):
    raw, words = BROKEN[name]
    sources, notes = read(course, raw, tmp_path)
    assert sources is None and words in notes


def test_a_damaged_notebook_gives_its_whole_cells(course, notebook, tmp_path):
    whole = json.dumps(notebook)
    sources, notes = read(course, whole[: whole.index("Task 3")].encode(), tmp_path)
    assert GOOD in sources and "total = 10" in sources
    assert "the file is damaged" in notes and "the cell 'why' is missing" in notes


@pytest.mark.parametrize(
    ("encoding", "words"), [("latin-1", "not UTF-8"), ("utf-16", "UTF-16"), ("utf-8-sig", "")]
)
def test_other_encodings_are_read(course, notebook, tmp_path, encoding, words):
    cell_named(notebook, "double")["source"] = f"{GOOD}  # café"
    raw = json.dumps(notebook, ensure_ascii=False).encode(encoding)
    sources, notes = read(course, raw, tmp_path)
    assert f"{GOOD}  # café" in sources and words in notes


def strange(notebook):
    notebook["metadata"] = {"kernelspec": ["julia"]}
    cell = cell_named(notebook, "double")
    cell["source"] = [GOOD, "\n# \ud800 half a character"]
    notebook["cells"][0].update(metadata={"nbgrader": {"grade_id": ["a", "list"]}}, id=7)
    notebook["cells"][1]["metadata"] = "none"


def test_strange_values_in_a_notebook_do_no_harm(course, notebook, tmp_path):
    strange(notebook)
    sources, _ = read(course, notebook, tmp_path)
    assert any(source.startswith(GOOD) for source in sources)


def test_another_kernel_is_noted(course, notebook, tmp_path):
    notebook["metadata"]["kernelspec"]["name"] = "julia-1.9"
    assert "asks for the kernel 'julia-1.9'" in read(course, notebook, tmp_path)[1]


def test_a_huge_file_is_not_opened(tmp_path):
    path = tmp_path / "huge.ipynb"
    path.touch()
    os.truncate(path, 2**34)
    notes = []
    assert read_cells(path, notes) is None and "clear the outputs" in notes[0]


def test_files_are_found_by_name_or_by_what_they_hold(course, notebook, tmp_path):
    text = json.dumps(notebook)
    unmarked = json.loads(text)
    for cell in unmarked["cells"]:
        cell["metadata"] = {}
    files = {
        "ann/planted.ipynb": text,
        "bob/deep/inside/homework 1.ipynb": text,
        "cyd/unmarked.ipynb": json.dumps(unmarked),
        "dan/planted.ipynb": text,
        "dan/planted (1).ipynb": text,
        "eve/.ipynb_checkpoints/planted-checkpoint.ipynb": text,
        "fay/poem.ipynb": "roses",
        "planted.ipynb": text,
        "gus_4711.ipynb": text,
        "readme.txt": "",
    }
    folder = tmp_path / "mine"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    (folder / "ann" / "link.ipynb").symlink_to("/etc/passwd")
    jobs, strays = found_jobs(folder, tmp_path / "results", course)
    assert {job.student: job.notebook.name for job in jobs} == {
        "ann": "planted.ipynb",
        "bob": "homework 1.ipynb",
        "cyd": "unmarked.ipynb",
        "dan": "planted.ipynb",
        "mine": "planted.ipynb",
        "gus_4711": "gus_4711.ipynb",
    }
    assert {(stray.student, stray.name): stray.reason.split(" (")[0] for stray in strays} == {
        ("ann", "link.ipynb"): "not a plain file",
        ("dan", "planted (1).ipynb"): "planted.ipynb is graded instead",
        ("eve", ""): "no notebook in this folder",
        ("fay", "poem.ipynb"): "the file is no notebook",
    }
