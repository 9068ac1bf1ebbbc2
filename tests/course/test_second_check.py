"""The second check agrees with honest notebooks and undoes what a dishonest one did."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import sandbox
from assignment_cells import read_assignment
from second_opinion import Opinion, cells_for, modules_used, names_set, read, verdicts

sys.path.insert(0, str(sandbox.INSIDE))
import second_check

ROOT = Path(__file__).resolve().parents[2]
ASSIGNMENTS = sorted((ROOT / "chapters").glob("*/assignments/*.ipynb"))


@pytest.fixture(autouse=True)
def main_module_kept(monkeypatch):
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])


def checked(*cells, answers=(), modules=("math", "torch"), seconds=20):
    """The messages of the tests, and what was replaced; a cell is (kind, source)."""
    listed = [
        {"id": f"{kind} {place}", "kind": kind, "source": source, "seconds": seconds}
        for place, (kind, source) in enumerate(cells)
    ]
    messages = {}
    replaced = second_check.run(listed, messages.__setitem__, list(answers), list(modules))
    return list(messages.values()), replaced


GIVEN = ("given", "import math\nimport torch\n\ndef triangle(n):\n    return n * (n + 1) // 2")
HONEST = {
    "two names at once": ("a, (b, *rest) = 1, (2, 3)", "assert (a, b, rest) == (1, 2, [3])"),
    "a name with its type": ("share: float = 0.5", "assert share == 0.5"),
    "a sum in a loop": ("s = 0\nfor n in range(5):\n    s += n", "assert s == triangle(4)"),
    "an attribute": ("def f():\n    return f.seen\nf.seen = 3", "assert f() == 3"),
    "an item and a method": ("t = {}\nt['x'] = []\nt['x'].append(1)", "assert t == {'x': [1]}"),
    "a seed": ("torch.manual_seed(3)\nx = torch.rand(1)", "assert 0 <= x < 1"),
    "an error after the answer": ("y = 1\nraise NotImplementedError", "assert y == 1"),
    "a magic": ("%matplotlib inline\n%%time\nz = 2\n!ls\nz?", "assert z == 2"),
    "IPython": ("get_ipython().run_line_magic('time', '1')\nw = 1\ndisplay(w)", "assert w == 1"),
    "a given function rebound": ("def triangle(n):\n    return 0", "assert triangle(4) == 10"),
    "a name of Python rebound": ("sum = 3\nv = sum", "assert sum([v, 1]) == 4"),
    "an import of its own": ("from math import pi\ndef g():\n    return pi", "assert g() > 3"),
    "a global": (
        "n = 0\ndef h():\n    global n\n    n += 1\n    return n",
        "assert h() + h() == 3",
    ),
    "source of a function": (
        "def q():\n    return 4",
        "import inspect\nassert 'return 4' in inspect.getsource(q)",
    ),
    "a class": ("class C:\n    x = 1\n    def m(self):\n        return C.x", "assert C().m() == 1"),
}


@pytest.mark.parametrize("name", HONEST)
def test_what_an_honest_cell_does_is_carried_over(name):
    answer, test = HONEST[name]
    assert checked(GIVEN, ("answer", answer), ("test", test)) == ([""], [])


def test_names_that_a_test_sets_are_seen_by_the_next_cells():
    messages, _ = checked(
        GIVEN,
        ("answer", "def twice(x):\n    return 2 * x"),
        ("test", "seven = 7\nassert twice(seven) == 14"),
        ("given", "eight = seven + 1"),
        ("test", "assert twice(eight) == 16"),
    )
    assert messages == ["", ""]


def test_a_test_may_put_its_own_in_place_of_one_answer_to_judge_another():
    messages, _ = checked(
        ("answer", "def part():\n    return 1\n\n\ndef whole():\n    return 2 * part()"),
        ("test", "own = part\ndef part():\n    return 3\nassert whole() == 6\npart = own"),
        ("test", "assert whole() == 2"),
        ("test", "del part\nassert [x for x in (whole,)][0]() == 2"),
    )
    assert messages == ["", "", "NameError: name 'part' is not defined"]


def test_a_name_that_the_assignment_asks_to_change_may_be_changed():
    cells = ("given", "table = None"), ("answer", "table = 3"), ("test", "assert table == 3, 'no'")
    assert checked(*cells, answers=["table"])[0] == [""]
    assert checked(*cells)[0] == ["AssertionError: no"]


TAMPERED = {
    "torch.allclose": "torch.allclose = lambda *a, **k: True",
    "math.isclose": "import math as m\nsetattr(m, 'isclose', lambda *a, **k: True)",
    "builtins.abs": "import builtins\nbuiltins.abs = lambda x: 0",
    "Tensor.__eq__": "torch.Tensor.__eq__ = lambda *a: True",
    "attnlib.exercises.answers.require": (
        "import attnlib.exercises.answers as a\na.require = lambda *given: None"
    ),
    "attnlib.exercises.answers.close": (
        "from attnlib.exercises.answers import close\n"
        "close.__code__ = (lambda a, b, tolerance=0: True).__code__"
    ),
    "attnlib.exercises.answers": "import sys\nsys.modules['attnlib.exercises.answers'] = None",
}
HARD = """from attnlib.exercises.answers import close, require
require(close(answer(), 1.0), "answer is wrong")
assert math.isclose(answer(), 1) and abs(answer() - 1) < 1e-6, "answer is wrong"
"""


@pytest.fixture
def torch_kept():
    """Should the check not put something back, the tests after this one shall not suffer."""
    kept = second_check.KeptModules(["math", "torch", "attnlib.exercises.answers"])
    yield
    kept.put_back()


@pytest.mark.usefixtures("torch_kept")
@pytest.mark.parametrize("name", TAMPERED)
def test_what_a_submission_replaces_is_put_back_and_named(name):
    answer = f"import torch\n{TAMPERED[name]}\ndef answer():\n    return 2.0"
    modules = ("math", "torch", "attnlib.exercises.answers")
    messages, replaced = checked(GIVEN, ("answer", answer), ("test", HARD), modules=modules)
    assert "answer is wrong" in messages[0]
    assert name in replaced


def test_what_a_function_replaces_while_it_is_tested_is_named():
    answer = "def answer():\n    torch.allclose = lambda *a, **k: True\n    return torch.zeros(1)"
    test = "given = answer()\nassert torch.allclose(given, torch.ones(1))"
    assert checked(GIVEN, ("answer", f"import torch\n{answer}"), ("test", test)) == (
        [""],
        ["torch.allclose"],
    )


def test_a_cell_that_never_ends_is_stopped_and_the_rest_is_run():
    messages, _ = checked(
        ("answer", "x = 1\nwhile True:\n    pass"), ("test", "assert x == 1"), seconds=0.2
    )
    assert messages == [""]
    assert checked(("test", "while True:\n    pass"), seconds=0.2)[0] == ["TooLong"]


@pytest.mark.parametrize("path", ASSIGNMENTS, ids=[p.stem for p in ASSIGNMENTS])
def test_the_second_check_agrees_with_every_reference(path):
    """Also: the references replace nothing, so that an honest student is not accused."""
    source = nbformat.read(path, as_version=4)
    cells = cells_for(source, source, sandbox.Limits())
    messages = {}
    answers, modules = names_set(source), modules_used(source)
    replaced = second_check.run(cells, messages.__setitem__, list(answers), list(modules))
    tests = {cell.name for cell in read_assignment(path) if cell.kind == "test"}
    assert messages == dict.fromkeys(tests, "") and replaced == []


def test_the_program_keeps_what_is_printed_apart_from_its_answer():
    printing = "import os\nprint('{\"id\": \"t\"}')\nos.write(1, b'[1]')\nx = 1"
    cells = [
        {"id": "cell 0", "kind": "answer", "source": printing},
        {"id": "t", "kind": "test", "source": "assert x == 2, 'x is not 2'"},
    ]
    ran = subprocess.run(
        [sys.executable, sandbox.INSIDE / "second_check.py"],
        input=json.dumps({"cells": cells, "answers": ["x"], "modules": []}),
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert lines == [
        {"id": "t", "message": "AssertionError: x is not 2"},
        {"end": True, "replaced": []},
    ]


def test_a_disagreement_is_flagged_and_a_lack_of_time_or_memory_is_not():
    points = {"a": 2.0, "b": 2.0, "c": 0.0, "d": 2.0, "e": 2.0, "why": None, "f": 0.0}
    messages = {"a": "", "b": "AssertionError: wrong", "c": "", "d": "TooLong", "f": "wrong"}
    flagged, notes = verdicts(Opinion(messages, ended="its 240 s were over"), points)
    assert flagged == ["b: points in the notebook, and alone it fails: AssertionError: wrong"]
    assert notes == [
        "c: no points in the notebook, passes alone",
        "d: not confirmed, it ran too long or took too much memory",
        "e: not confirmed, its 240 s were over",
    ]


def test_lines_of_the_check_are_read_whatever_is_written_among_them():
    lines = ["5", "{", '{"id": "t", "message": ""}', '{"id": "t", "message": "no"}']
    opinion = read(lines)
    assert opinion.ended and opinion.twice == ["t"] and opinion.messages == {"t": "no"}
    assert read([*lines, '{"end": true, "replaced": 3}']).ended == ""
