"""What students get shows no solution and no hidden test, and nbgrader makes it as we think."""

import json
import shutil

import nbformat
import pytest
from assignment_cells import read_assignment, stripped
from leaks import leaked
from planted import ROOT, cell_named, planted_source, release

SOURCES = sorted((ROOT / "chapters").glob("*/assignments/*.ipynb"))


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """The release of all assignments of the book."""
    folder = tmp_path_factory.mktemp("release")
    made = release(SOURCES, folder)
    assert made.returncode == 0, made.stdout + made.stderr
    return folder


def test_the_students_notebooks_are_the_sources_with_stubs_and_without_hidden_tests(course):
    for source in SOURCES:
        released = read_assignment(course / "released" / source.name)
        ours = [cell.source for cell in stripped(read_assignment(source)) if cell.kind != "manual"]
        assert [c.source.rstrip() for c in released if c.kind != "manual"] == ours


def test_no_line_of_a_solution_or_hidden_test_is_in_the_students_notebooks(course):
    found = {path.name for path in (course / "released").iterdir()}
    assert found == {source.name for source in SOURCES}
    for source in SOURCES:
        assert leaked(source, course / "released" / source.name) == []


def test_no_mark_of_secrecy_and_no_output_is_in_the_students_notebooks(course):
    for path in (course / "released").iterdir():
        text = path.read_text(encoding="utf-8")
        assert "### BEGIN" not in text and "### END" not in text
        assert "# YOUR CODE HERE" in text
        code = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
        assert not any(cell.outputs for cell in code)


def test_test_cells_cannot_be_edited_by_accident(course):
    for path in (course / "released").iterdir():
        for cell in nbformat.read(path, 4).cells:
            facts = cell.metadata.get("nbgrader", {})
            if facts.get("locked"):
                assert cell.metadata.editable is False and cell.metadata.deletable is False


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """(the source of the planted assignment, the folder of its release)."""
    folder = tmp_path_factory.mktemp("planted")
    source = planted_source(folder / "planted.ipynb")
    made = release([source], folder)
    assert made.returncode == 0, made.stdout + made.stderr
    return source, folder


def in_a_text(notebook):
    notebook["cells"][0]["source"] = "# Assignment 0\nreturn 2 * x"


def in_metadata(notebook):
    notebook["metadata"]["hint"] = "write total = sum(range(5)), and think"


def as_a_mark(notebook):
    notebook["cells"][4]["source"] += "\n### BEGIN HIDDEN TESTS"


def as_an_output(notebook):
    notebook["cells"][3]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "4"}]


def a_hidden_line_left(notebook):
    notebook["cells"][8]["source"] += (
        '\nassert total == triangle(4), "the numbers from 0 to 4 have another sum"'
    )


@pytest.mark.parametrize(
    "leak", [in_a_text, in_metadata, as_a_mark, as_an_output, a_hidden_line_left]
)
def test_a_planted_leak_is_found(planted, tmp_path, leak):
    source, folder = planted
    path = tmp_path / "planted.ipynb"
    notebook = json.loads((folder / "released" / "planted.ipynb").read_text(encoding="utf-8"))
    path.write_text(json.dumps(notebook), encoding="utf-8")
    assert leaked(source, path) == []
    leak(notebook)
    path.write_text(json.dumps(notebook), encoding="utf-8")
    assert leaked(source, path)


def test_a_source_that_would_leak_is_refused_and_the_old_release_stays(planted, tmp_path):
    source, folder = planted
    shutil.copytree(folder, tmp_path / "copy")
    notebook = json.loads(source.read_text(encoding="utf-8"))
    notebook["metadata"]["hint"] = "write total = sum(range(5)), and think"
    leaking = tmp_path / "planted.ipynb"
    leaking.write_text(json.dumps(notebook), encoding="utf-8")
    refused = release([leaking], tmp_path / "copy")
    assert refused.returncode and "total = sum(range(5))" in refused.stderr
    for kind in ("released/planted.ipynb", "course/release/planted/planted.ipynb"):
        assert (tmp_path / "copy" / kind).read_bytes() == (folder / kind).read_bytes()


def test_a_source_that_nbgrader_refuses_is_named(planted, tmp_path):
    source, _ = planted
    notebook = json.loads(source.read_text(encoding="utf-8"))
    cell_named(notebook, "test-total")["metadata"]["nbgrader"]["grade_id"] = "double"
    twice = tmp_path / "twice.ipynb"
    twice.write_text(json.dumps(notebook), encoding="utf-8")
    refused = release([twice], tmp_path)
    assert refused.returncode and "twice: nbgrader refuses it" in refused.stderr


def test_a_folder_that_is_no_course_is_left_alone(planted, tmp_path):
    source, _ = planted
    (tmp_path / "course").mkdir()
    (tmp_path / "course" / "thesis.txt").write_text("years of work")
    refused = release([source], tmp_path)
    assert refused.returncode and "is no course" in refused.stderr
    assert (tmp_path / "course" / "thesis.txt").read_text() == "years of work"


def test_the_courses_pins_are_those_of_the_book():
    def pins(name):
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        found = {}
        for line in lines:
            if "==" in line and not line.startswith("#"):
                pin = line.partition(" ;")[0]
                found.setdefault(pin.partition("==")[0].lower(), set()).add(pin)
        return found

    book, course = pins("requirements.txt"), pins("requirements-course.txt")
    assert "nbgrader" in course and "nbgrader" not in book and "torch" not in course
    shared = course.keys() & book.keys()
    assert len(shared) > 50
    assert {name for name in shared if course[name] != book[name]} == set()
