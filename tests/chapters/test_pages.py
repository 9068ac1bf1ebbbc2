"""Every notebook of the book passes every check, and every check refuses a bad notebook."""

import copy
import json
import shutil

import page_checks
import prose_numbers
import pytest
from execute import executed_hash
from notebook_form import normal_form, read, text_of
from page import ROOT, Page, pages

CHECKS = [
    page_checks.stored_in_normal_form,
    page_checks.executed_and_current,
    page_checks.second_cell_is_the_common_setup,
    page_checks.code_cells_are_short,
    page_checks.file_is_small,
    page_checks.tags_are_known,
    page_checks.equations_are_numbered_and_references_exist,
    page_checks.relative_links_resolve,
    page_checks.no_errors_or_warnings_are_stored,
    page_checks.no_paths_of_a_machine,
    page_checks.pictures_have_words_and_stay_in_budget,
    page_checks.exercises_state_kind_and_have_a_check_or_solution,
    page_checks.chapter_has_its_parts,
    prose_numbers.decimals_in_prose_were_computed,
]
BOOK = pages()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("page", BOOK, ids=lambda page: page.name)
def test_page(page, check):
    complaints = check(page, BOOK)
    assert not complaints, f"{page.name}:\n" + "\n".join(f"  {line}" for line in complaints)


STEPS = " ".join(
    f'<span class="step {step}{" on" * (step == "score")}">{step}</span>'
    for step in page_checks.STEPS
)
OPENING = f"""# 1.1 Title

<p class="steps">{STEPS}</p>

- derive
- build
- measure"""
KINDS = ["derivation", "derivation", "programming", "programming", "measurement", "open"]


def markdown(source):
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def code(source, *tags, outputs=()):
    cell = {"cell_type": "code", "metadata": {"tags": list(tags)}, "source": source}
    return {**cell, "execution_count": 1, "outputs": list(outputs)}


def printed(text, name="stdout"):
    return {"output_type": "stream", "name": name, "text": text}


def drawn(markup, mime="text/html"):
    return {"output_type": "display_data", "data": {mime: markup}, "metadata": {}}


def good_cells():
    cells = [markdown(OPENING), code("", "setup")]
    cells.append(markdown("Equation (1.1.1) gives 0.27 and 41.2 %.\n\n$$ 0.99 = x \\tag{1.1.1} $$"))
    cells.append(code("print(x)", outputs=[printed("0.2689 tensor([0.4121])\n")]))
    cells.append(
        markdown('See [itself](good.ipynb#top). It said <span class="quoted">28.4</span>.')
    )
    cells.append(markdown("## Cost\n\n## When to use it\n\n## Summary\n\n## Exercises"))
    for k, kind in enumerate(KINDS, start=1):
        cells.append(
            markdown(f"**Exercise 1.1.{k}** · {kind} · easy · 5 min\n\nText of chapter 1.4.")
        )
        cells.append(markdown("<details><summary>Solution</summary>\n\nSo.\n\n</details>"))
    return [*cells, markdown("## Notes")]


@pytest.fixture
def make_page(tmp_path):
    """Writes a page into a small book of its own, in normal form and marked as executed."""
    folder = tmp_path / "chapters" / "1-part"
    folder.mkdir(parents=True)
    for name in ("_config.yml", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)

    def make(cells, facts=()):
        path = folder / "good.ipynb"
        attn = {"chapter": "1.1", "step": "score", "minutes": 60, "prerequisites": ["x"]}
        notebook = {"cells": copy.deepcopy(cells), "metadata": {"attn": {**attn, **dict(facts)}}}
        cells[1]["source"] = notebook["cells"][1]["source"] = page_checks.setup_cell(path, tmp_path)
        notebook = normal_form(notebook, path, tmp_path)
        if "executed" not in notebook["metadata"]["attn"]:
            notebook["metadata"]["attn"]["executed"] = executed_hash(path, notebook, tmp_path)
        path.write_text(text_of(notebook), encoding="utf-8")
        return Page(path, tmp_path)

    return make


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_good_page_passes(make_page, check):
    page = make_page(good_cells())
    assert check(page, [page]) == []


BAD = [
    ("code_cells_are_short", code("x = 1\n" * 16), "16 lines"),
    ("code_cells_are_short", code("x = " + "1" * 80), "80 or more columns"),
    ("file_is_small", markdown("x" * 2**20), "at most 1"),
    ("tags_are_known", code("x", "nbval-check"), "unknown tag"),
    ("equations_are_numbered_and_references_exist", markdown("$$ \\tag{1.2.1} $$"), "begin with"),
    ("equations_are_numbered_and_references_exist", markdown("$$ \\tag{1.1.1} $$"), "twice"),
    (
        "equations_are_numbered_and_references_exist",
        markdown("By (1.1.9)."),
        r"no equation \(1.1.9",
    ),
    (
        "equations_are_numbered_and_references_exist",
        markdown("By (K.1.9)."),
        r"no equation \(K.1.9",
    ),
    ("relative_links_resolve", markdown("[x](../nowhere.md)"), "nowhere.md: no such file"),
    ("relative_links_resolve", markdown('<a href="gone.ipynb">x</a>'), "gone.ipynb"),
    (
        "no_errors_or_warnings_are_stored",
        code("x", outputs=[{"output_type": "error", "ename": "E", "evalue": "", "traceback": []}]),
        "stored error E",
    ),
    ("no_errors_or_warnings_are_stored", code("x", outputs=[printed("w", "stderr")]), "stderr"),
    ("no_paths_of_a_machine", code("x", outputs=[printed("in /home/me/x.py")]), "/home/me/x.py"),
    ("no_paths_of_a_machine", markdown("cd /home/x"), "path /home/x"),
    (
        "pictures_have_words_and_stay_in_budget",
        code("x", outputs=[drawn('<img src="data:,">')]),
        "without alternative text",
    ),
    ("pictures_have_words_and_stay_in_budget", code("x", outputs=[drawn("x" * 2**18)]), "256 KB"),
    (
        "pictures_have_words_and_stay_in_budget",
        code("x", outputs=[drawn("iVBORw0KGgo," * 25)]),
        "more than 24 frames",
    ),
    (
        "pictures_have_words_and_stay_in_budget",
        code("x", outputs=[drawn("iVBO", "image/png")]),
        "bare picture",
    ),
    (
        "exercises_state_kind_and_have_a_check_or_solution",
        markdown("**Exercise 1.1.7** · open · easy · 5 min"),
        "neither a check nor",
    ),
    (
        "exercises_state_kind_and_have_a_check_or_solution",
        markdown("**Exercise 1.1.7**, five minutes"),
        "expected",
    ),
    (
        "exercises_state_kind_and_have_a_check_or_solution",
        markdown("**Exercise 1.2.7** · open · easy · 5 min\n\n<summary>Answer</summary>"),
        "does not begin with",
    ),
    (
        "exercises_state_kind_and_have_a_check_or_solution",
        code('check("1.1.99", f)', "solution"),
        "its cell checks",
    ),
    ("decimals_in_prose_were_computed", markdown("It gives 0.28."), "0.28 is in no stored output"),
    ("decimals_in_prose_were_computed", markdown("It gives 42.3 %."), "42.3 is in no"),
]


@pytest.mark.parametrize(("name", "cell", "complaint"), BAD)
def test_a_bad_cell_is_refused(make_page, name, cell, complaint):
    page = make_page([*good_cells(), cell])
    check = next(check for check in CHECKS if check.__name__ == name)
    with pytest.raises(AssertionError, match=complaint):
        assert not check(page, [page]), "\n".join(check(page, [page]))


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("# 1.1 Title", "# The title", "the title is not"),
        ('<span class="step memory">memory</span>', "", "no band"),
        (" on", "", "lights no step"),
        ("- derive\n- build", "", "three to five things"),
        ("## Cost", "", "no section 'Cost'"),
        (
            "## Cost\n\n## When to use it\n\n## Summary",
            "## Summary\n\n## Cost\n\n## When to use it",
            "not in the order",
        ),
        ("· open ·", "· measurement ·", "0 exercises of kind open"),
    ],
)
def test_a_chapter_without_one_of_its_parts_is_refused(make_page, old, new, complaint):
    cells = good_cells()
    for cell in cells:
        cell["source"] = cell["source"].replace(old, new)
    page = make_page(cells)
    assert complaint in "\n".join(page_checks.chapter_has_its_parts(page, [page]))


def test_a_chapter_over_its_budget_of_seconds_is_refused(make_page):
    page = make_page(good_cells(), {"seconds": 61})
    assert "over 60 s" in page_checks.chapter_has_its_parts(page, [page])[0]


def test_another_setup_cell_is_refused(make_page):
    page = make_page(good_cells())
    page.notebook["cells"][1]["source"] += "\nimport os"
    assert page_checks.second_cell_is_the_common_setup(page, [page])
    page.notebook["cells"][1]["metadata"] = {}
    assert "not tagged" in page_checks.second_cell_is_the_common_setup(page, [page])[0]


def test_changed_code_and_missing_counts_are_stale(make_page):
    page = make_page(good_cells(), {"executed": "0" * 16})
    assert page_checks.executed_and_current(page, [page])
    cells = [*good_cells(), {**code("x = 1"), "execution_count": None}]
    page = make_page(cells)
    assert page_checks.executed_and_current(page, [page])


def test_a_notebook_saved_by_an_editor_is_not_in_normal_form(make_page):
    page = make_page(good_cells())
    notebook = read(page.path)
    notebook["cells"][2]["id"] = "f00ba4"
    page.path.write_text(json.dumps(notebook), encoding="utf-8")
    assert page_checks.stored_in_normal_form(page, [page])


@pytest.mark.parametrize(
    "text",
    [
        "see chapters 1.2, 1.3 and 2.1",
        "## 1.1 Title",
        "[1.2 Scores](x.ipynb)",
        "by (1.1.3)",
        "`0.5`",
        "$0.5$",
        "```\n0.5\n```",
        "section 3.2.1",
        "Python 3.11",
        "version 2.13.0",
    ],
)
def test_names_code_and_mathematics_are_no_decimals_of_prose(text):
    assert prose_numbers.decimals(text) == []


def test_powers_of_ten_on_a_card_are_read(make_page):
    card = code("x", outputs=[drawn("error: 2.5 × 10⁻²")])
    page = make_page([*good_cells(), card])
    assert 0.025 in prose_numbers.output_numbers(page)
