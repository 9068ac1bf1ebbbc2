"""Every assignment: the reference scores everything, the release nothing, wrong answers lose.

In this process and without nbgrader, so that it is quick; test_grading.py runs an assignment
through nbgrader and the sandbox.
"""

import ast
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from assignment_cells import (
    KINDS,
    answered,
    mutants_module,
    outcome,
    read_assignment,
    stripped,
    without_tests_before,
)
from execute import notebooks
from matplotlib import pyplot
from setup_cell import setup_cell

ROOT = Path(__file__).resolve().parents[2]
ASSIGNMENTS = sorted((ROOT / "chapters").glob("*/assignments/*.ipynb"))
MUTANTS = [(path, mutant) for path in ASSIGNMENTS for mutant in mutants_module(path).MUTANTS]

each_assignment = pytest.mark.parametrize("path", ASSIGNMENTS, ids=[p.stem for p in ASSIGNMENTS])
each_mutant = pytest.mark.parametrize(
    ("path", "mutant"), MUTANTS, ids=[f"{p.stem}: {mutant.name}" for p, mutant in MUTANTS]
)


@pytest.fixture(autouse=True)
def no_figures_left():
    yield
    pyplot.close("all")


def test_every_chapter_has_an_assignment_and_every_assignment_a_chapter():
    chapters = {path for path in (ROOT / "chapters").glob("*/*.ipynb")}
    chapters = {path for path in chapters if not path.stem.endswith("-in-practice")}
    assert {path.parents[1] / path.name for path in ASSIGNMENTS} == chapters


@each_assignment
def test_the_reference_scores_full_marks(path):
    failed = {name: words for name, words in outcome(read_assignment(path)).items() if words}
    assert not failed


@each_assignment
def test_the_release_scores_nothing_and_every_test_says_why(path):
    messages = outcome(stripped(read_assignment(path)))
    assert messages and all(messages.values()), messages


@each_mutant
def test_a_wrong_answer_loses_the_points_that_it_should(path, mutant):
    cells = read_assignment(path)
    wrong = answered(cells, mutant.cell, mutant.old, mutant.new)
    messages = outcome(without_tests_before(wrong, mutant.cell))
    lost = {name: words for name, words in messages.items() if words}
    assert lost.keys() == mutant.loses.keys(), lost
    for name, words in mutant.loses.items():
        assert words in lost[name], lost[name]


@each_assignment
def test_an_assignment_has_twenty_points_three_to_six_tasks_and_a_question_read_by_a_person(path):
    cells = read_assignment(path)
    assert sum(cell.points for cell in cells) == 20
    assert 3 <= sum(cell.source.startswith("## Task ") for cell in cells) <= 6
    assert sum(cell.kind == "manual" for cell in cells) >= 1
    names = [cell.name for cell in cells if cell.name]
    assert len(set(names)) == len(names)


@each_assignment
def test_the_points_in_a_heading_are_those_of_its_tests(path):
    """`## Task 2. Attention that keeps its promises (7 points)`."""
    promised, given = {}, {}
    for cell in read_assignment(path):
        if cell.source.startswith("## Task "):
            heading = cell.source.splitlines()[0]
            promised[heading] = int(heading.rpartition("(")[2].split()[0])
        elif cell.points:
            given[heading] = given.get(heading, 0) + cell.points
    assert promised == given


@each_assignment
def test_typical_wrong_answers_are_there_of_all_kinds_and_lose_every_test(path):
    module = mutants_module(path)
    kinds = {mutant.kind for mutant in module.MUTANTS}
    absent = getattr(module, "ABSENT", {})
    assert len(module.MUTANTS) >= 8 and len(kinds) >= 6
    assert KINDS - kinds == absent.keys() and len(absent) <= 2 and all(absent.values())
    tests = {cell.name for cell in read_assignment(path) if cell.kind == "test"}
    assert tests == {name for mutant in module.MUTANTS for name in mutant.loses}
    names = [mutant.name for mutant in module.MUTANTS]
    assert len(set(names)) == len(names)


@each_assignment
def test_a_test_cell_is_locked_and_an_answer_keeps_nothing_secret_outside_its_solution(path):
    for cell in nbformat.read(path, as_version=4).cells:
        facts = cell.metadata.get("nbgrader")
        if facts is None:
            assert "### BEGIN" not in cell.source, cell.id
        elif facts["grade"] and not facts["solution"]:
            assert facts["locked"] and cell.source.count("### BEGIN HIDDEN TESTS") == 1, cell.id
        elif facts["solution"] and cell.cell_type == "code":
            marks = [cell.source.count(f"### {end} SOLUTION") for end in ("BEGIN", "END")]
            assert marks[0] == marks[1] >= 1, cell.id


@each_assignment
def test_hidden_tests_import_what_they_use_of_the_checks(path):
    """They run after the student's code, which may rebind a name."""
    for cell in read_assignment(path):
        if cell.kind != "test":
            continue
        tree = ast.parse(cell.source)
        imported = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        checks = {"call", "close", "compared", "require", "require_support", "seen_keys"}
        stored = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and is_stored(n)}
        assert not (checks & used) - imported - stored, cell.name


def is_stored(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)


@each_assignment
def test_the_notebook_is_stored_without_outputs_and_with_the_setup_cell_of_the_book(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    setup = [cell for cell in code if "setup" in cell.metadata.get("tags", [])]
    assert [cell.source for cell in setup] == [setup_cell(path)] and code[0] is setup[0]
    facts = notebook.metadata["attn"]["assignment"]
    assert facts["chapter"] == path.relative_to(ROOT / "chapters").parents[1].as_posix() + (
        f"/{path.stem}"
    )
    assert 30 <= facts["minutes"] <= 180 and facts["goals"]


def test_assignments_are_no_chapters_for_make_run_and_nbval():
    """Their tests fail for students by design; they are run here."""
    assert not [path for path in notebooks() if "assignments" in path.parts]
    collected = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "--nbval-lax",
            "--collect-only",
            "-q",
            "chapters/1-foundations",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "soft-lookup.ipynb" in collected and "assignments" not in collected
