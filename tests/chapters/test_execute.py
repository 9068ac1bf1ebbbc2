"""`make run`: the stale run, a failure leaves the stored file, equal outputs keep their bytes."""

import base64
import io
import json
import shutil
import subprocess
import sys

import pytest
from execute import keep_old_outputs, readable_error, steady
from notebook_form import normal_form, read, same_outputs, same_text, text_of
from page import ROOT
from PIL import Image
from setup_cell import edition, repository_address, setup_cell
from source_hash import code_hash, meaningful, modules_used


def code(source, *tags):
    cell = {"cell_type": "code", "metadata": {"tags": list(tags), "collapsed": True}, "id": "abc"}
    return {**cell, "source": source, "execution_count": None, "outputs": []}


@pytest.fixture
def book(tmp_path):
    """A small book with a package and the tools."""
    tools = tmp_path / "book" / "_tools"
    tools.mkdir(parents=True)
    for tool in (ROOT / "book" / "_tools").glob("*.py"):
        shutil.copy(tool, tools)
    (tmp_path / "attnlib").mkdir()
    (tmp_path / "attnlib" / "__init__.py").write_text("from attnlib.one import first\n")
    (tmp_path / "attnlib" / "one.py").write_text("first = 1\n")
    (tmp_path / "attnlib" / "two.py").write_text("second = 2\n")
    (tmp_path / "chapters" / "1-part").mkdir(parents=True)
    return tmp_path


def store(book, name, *cells):
    path = book / "chapters" / "1-part" / f"{name}.ipynb"
    notebook = {"cells": list(cells), "metadata": {"widgets": {}}, "nbformat": 4}
    path.write_text(json.dumps(notebook), encoding="utf-8")
    return path


def execute(book, *arguments):
    command = [sys.executable, "book/_tools/execute.py", *arguments]
    return subprocess.run(command, cwd=book, capture_output=True, text=True)


def test_a_run_stores_what_works_and_leaves_what_fails(book):
    good = store(
        book, "good", code("print(0.5)\nobject()"), code("import time\ntime.time()", "timing")
    )
    bad = store(book, "bad", code("x = 1\nraise ValueError('too cold')"))
    before = bad.read_bytes()
    assert execute(book, "--check").stdout.count(".ipynb") == 2

    run = execute(book)
    assert run.returncode == 1
    assert "cell 0:" in run.stdout and "ValueError: too cold" in run.stdout
    assert "raise ValueError" in run.stdout and "1 executed, 1 failed" in run.stdout
    assert bad.read_bytes() == before

    notebook = read(good)
    assert notebook["cells"][0]["outputs"][0]["text"] == "0.5\n"
    assert notebook["cells"][0]["outputs"][1]["data"]["text/plain"] == "<object at 0x...>"
    assert notebook["cells"][0]["id"] == "good-000"
    assert notebook["metadata"]["attn"]["memory_mb"] > 10
    bad.unlink()
    assert execute(book, "--check").returncode == 0

    assert execute(book, "good").returncode == 0
    again = read(good)
    for moved in ("seconds", "memory_mb"):
        notebook["metadata"]["attn"][moved] = again["metadata"]["attn"][moved]
    assert again == notebook
    assert [path.name for path in good.parent.iterdir()] == ["good.ipynb"]


def test_an_unknown_name_lists_the_known_ones(book):
    store(book, "good", code("1"))
    run = execute(book, "goood")
    assert run.returncode == 1 and "chapters/1-part/good.ipynb" in run.stderr


def test_the_error_names_cell_source_message_and_place():
    trace = ["\x1b[0;31mTraceback\x1b[0m", "x = 1 / 0"]
    error = {"output_type": "error", "ename": "E", "evalue": "why", "traceback": trace}
    text = readable_error(3, {"source": "x = 1 / 0", "outputs": [error]})
    assert text == "cell 3:\n    x = 1 / 0\n\nE: why\n\n    Traceback\n    x = 1 / 0"


def test_the_hash_follows_the_names_a_page_imports_and_no_others(book):
    page = ["from attnlib import first\nprint(first)"]
    files = {path.name for path in modules_used(page[0], book)}
    assert files == {"one.py"}
    before = code_hash(page, book)
    (book / "attnlib" / "two.py").write_text("second = 3\n")
    assert code_hash(page, book) == before
    (book / "attnlib" / "one.py").write_text("first = 3\n")
    assert code_hash(page, book) != before


@pytest.mark.parametrize(
    "source",
    [
        "import attnlib\nattnlib.two",
        "from attnlib import two",
        "from attnlib.two import second",
        "import attnlib.two as t",
        "def f():\n    from attnlib.two import *",
    ],
)
def test_every_way_to_import_is_seen(book, source):
    assert {path.name for path in modules_used(source, book)} == {"two.py"}


def test_imports_are_followed_and_kernels_found(book):
    (book / "kernels").mkdir()
    (book / "kernels" / "__init__.py").write_text("")
    (book / "kernels" / "fast.py").write_text("")
    (book / "attnlib" / "two.py").write_text("from .kernels import fast\nfrom . import one\n")
    found = modules_used("from attnlib.two import second", book)
    assert {path.name for path in found} == {"two.py", "one.py", "fast.py"}


def test_comments_docstrings_and_blank_lines_do_not_count():
    plain = "def f(x):\n    return x + 1"
    told = 'def f(x):  # a\n    """Add\n\n    one."""\n\n    return x + 1\n\n# end\n'
    assert meaningful(told) == plain
    assert meaningful("x = '# no comment'") == "x = '# no comment'"


def picture(level, dot=None):
    image = Image.new("RGBA", (100, 100), (level, level, level, 255))
    for x in range(dot or 0):
        image.putpixel((x, 0), (255, 0, 0, 255))
    stored = io.BytesIO()
    image.save(stored, "png", compress_level=0)
    return f'<img src="data:image/png;base64,{base64.b64encode(stored.getvalue()).decode()}">'


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("loss 0.123456789", "loss 0.123456780", True),
        ("loss 0.12345", "loss 0.12346", False),
        ("error 2.2e-16", "error 4.4e-16", True),
        ("seed 1", "seed 2", False),
        ("a 1.0", "b 1.0", False),
        (picture(100), picture(101), True),
        (picture(100), picture(140), False),
        (picture(100), picture(100, dot=5), True),
        (picture(100), picture(100, dot=50), False),
    ],
)
def test_texts_are_equal_to_six_digits_and_pictures_to_the_eye(old, new, same):
    assert same_text(old, new) is same


def test_outputs_of_other_kinds_differ():
    stream = {"output_type": "stream", "name": "stdout", "text": "1"}
    shown = {"output_type": "display_data", "data": {"text/plain": "1"}}
    assert same_outputs([stream], [stream])
    assert not same_outputs([stream], [shown])
    assert not same_outputs([stream], [stream, stream])


def timed(source, text, recorded=()):
    cell = {**code(source, "timing"), "execution_count": 1}
    cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": text}]
    return {"cells": [cell], "metadata": {"attn": {"timed": list(recorded)}}}


def test_a_timing_is_kept_until_its_source_changes_or_it_is_asked_for():
    from execute import source_key

    key = source_key({"source": "clock()"})
    for source, timings, kept in (
        ("clock()", False, True),
        ("clock(2)", False, False),
        ("clock()", True, False),
    ):
        old, new = timed(source, "1.0 s", [key]), timed(source, "2.0 s")
        keep_old_outputs(old, new, timings)
        assert (new["cells"][0]["outputs"][0]["text"] == "1.0 s") is kept


def test_seconds_are_replaced_only_when_they_moved_by_a_quarter():
    assert steady(10.0, 12.0) == 10.0
    assert steady(10.0, 13.0) == 13.0
    assert steady(None, 13.0) == 13.0


def test_normal_form_is_stable_and_drops_what_editors_and_widgets_leave(book):
    cell = code("x")
    bar = {"output_type": "stream", "name": "stdout", "text": "10%\r50%\r100%\n"}
    more = {"output_type": "stream", "name": "stdout", "text": "done\n"}
    widget = {"application/vnd.jupyter.widget-view+json": {}}
    cell["outputs"] = [bar, more, {"output_type": "display_data", "data": widget, "metadata": {}}]
    path = store(book, "good", cell)
    once = normal_form(read(path), path, book)
    assert once["cells"][0]["outputs"] == [{**bar, "text": "100%\ndone\n"}]
    assert once["metadata"].keys() == {"kernelspec", "language_info"}
    path.write_text(text_of(once), encoding="utf-8")
    assert text_of(normal_form(read(path), path, book)) == text_of(once)


def test_the_setup_cell_names_the_repository_the_edition_and_the_page():
    cell = setup_cell(ROOT / "chapters" / "1-foundations" / "soft-lookup-in-practice.ipynb")
    assert f'"{repository_address()}"' in cell and f"--branch {edition()} " in cell
    assert 'page = "chapters/1-foundations/soft-lookup-in-practice"' in cell
    compile(cell, "setup", "exec")
    lines = [line for line in cell.splitlines() if line]
    assert len(lines) <= 15 and max(map(len, lines)) < 80


def test_the_setup_cell_keeps_colabs_torch_and_decides_on_triton_before_attnlib():
    cell = setup_cell(ROOT / "chapters" / "x.ipynb")
    assert "--no-deps /content/book" in cell
    assert "torch" not in cell.partition("pip install -q jaxtyping")[2].partition('"')[0]
    assert cell.index("TRITON_INTERPRET") < cell.index("from attnlib")
