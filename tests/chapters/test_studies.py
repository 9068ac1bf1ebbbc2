"""Stored studies belong to their code; the runner never destroys what is stored."""

import json

import pytest
from page import ROOT, Page
from study import partial_file, run_study, study_file, study_hash

from attnlib import study

STUDIES = sorted((ROOT / "chapters").rglob("*.study.py"))
CODE = '''"""Does the sum grow?"""
from pathlib import Path
from attnlib.study import grid
CELLS = grid(size=[1, 2], kind=["a"])
SEEDS = range(3)

def run(cell, seed):
    if Path(__file__).with_name("broken").exists() and cell["size"] == 2:
        raise RuntimeError("out of memory")
    return {"total": cell["size"] + 0.1 * seed}
'''


@pytest.mark.parametrize("code", STUDIES, ids=lambda path: path.name)
def test_a_stored_study_is_complete_and_belongs_to_its_code(code):
    stored = study.load(code.with_suffix(".json"))
    assert stored.facts["code"] == study_hash(code), f"stale, run {stored.command}"
    module = study.load_code(code)
    for cell in module.CELLS:
        seeds = [r["seed"] for r in stored.facts["results"] if r["cell"] == cell]
        assert seeds == list(module.SEEDS), f"{cell} misses seeds: run {stored.command}"


@pytest.mark.parametrize("code", STUDIES, ids=lambda path: path.name)
def test_the_page_of_a_study_shows_its_command_and_runs_one_cell_again(code):
    page = Page(code.with_name(code.name.replace(".study.py", ".ipynb")))
    texts = [cell["source"] for cell in page.cells]
    texts += [text for cell in page.code for text in page.texts(cell)]
    command = study.load(code.with_suffix(".json")).command
    assert any(command in text for text in texts), f"{page.name} does not show `{command}`"
    assert any("rerun_one(" in text for text in texts), f"{page.name} runs no cell again"


@pytest.fixture
def code(tmp_path):
    path = tmp_path / "chapters" / "1-part" / "slug.study.py"
    path.parent.mkdir(parents=True)
    path.write_text(CODE, encoding="utf-8")
    return path


def run(code):
    return run_study(code, "1-part/slug", code.parents[2])


def test_a_study_runs_every_cell_with_every_seed_and_says_how(code):
    assert run(code) == 0
    stored = study.load(code.with_suffix(".json"))
    assert stored.cells == [{"size": 1, "kind": "a"}, {"size": 2, "kind": "a"}]
    assert stored.values("total", size=2, kind="a") == pytest.approx([2, 2.1, 2.2])
    assert stored.command == "make study CHAPTER=1-part/slug"
    assert {"question", "code", "seeds", "versions", "device", "seconds"} <= stored.facts.keys()
    assert not partial_file(code).exists()


def test_a_failed_cell_leaves_the_stored_results_and_keeps_the_finished_ones(code, capsys):
    assert run(code) == 0
    stored = code.with_suffix(".json").read_bytes()
    broken = code.with_name("broken")
    broken.touch()
    assert run(code) == 1
    assert code.with_suffix(".json").read_bytes() == stored
    assert len(json.loads(partial_file(code).read_text())["results"]) == 3
    assert "out of memory" in capsys.readouterr().out

    marked = json.loads(partial_file(code).read_text())
    marked["results"][0]["values"]["total"] = 1.01
    partial_file(code).write_text(json.dumps(marked))
    broken.unlink()
    assert run(code) == 0
    assert study.load(code.with_suffix(".json")).values("total", size=1, kind="a")[0] == 1.01


def test_a_value_that_is_no_finite_number_is_a_failure(code, capsys):
    code.write_text(CODE.replace("+ 0.1 * seed", '* float("nan")'), encoding="utf-8")
    assert run(code) == 1
    assert "total: expected a finite number" in capsys.readouterr().out


def test_an_interrupted_run_of_other_code_is_not_resumed(code):
    code.with_name("broken").touch()
    run(code)
    code.with_name("broken").unlink()
    code.write_text(CODE.replace("+ 0.1", "+ 0.2"), encoding="utf-8")
    assert run(code) == 0
    values = study.load(code.with_suffix(".json")).values("total", size=1, kind="a")
    assert values == pytest.approx([1, 1.2, 1.4])


def test_one_cell_runs_again_and_must_lie_within_the_stored_spread(code):
    run(code)
    stored = study.load(code.with_suffix(".json"))
    assert stored.rerun_one(seed=1, size=1, kind="a") == {"total": 1.1}
    code.write_text(CODE.replace('cell["size"] +', '2 * cell["size"] +'), encoding="utf-8")
    with pytest.raises(AssertionError, match=r"total of .* is 2.1 here.* allow 0.9 to 1.3"):
        stored.rerun_one(seed=1, size=1, kind="a")


def test_other_code_has_another_hash(code):
    before = study_hash(code, code.parents[2])
    code.write_text(CODE.replace("+ 0.1", "+ 0.2"), encoding="utf-8")
    assert study_hash(code, code.parents[2]) != before


def test_wrong_names_are_answered_with_the_right_ones(code):
    run(code)
    stored = study.load(code.with_suffix(".json"))
    with pytest.raises(ValueError, match="stores total; got 'sum'"):
        stored.values("sum", size=1, kind="a")
    with pytest.raises(ValueError, match="has no cell"):
        stored.values("total", size=3, kind="a")
    with pytest.raises(ValueError, match="seed"):
        stored.rerun_one(seed=9, size=1, kind="a")
    with pytest.raises(FileNotFoundError, match="make study"):
        study.load(code.with_name("gone.study.json"))
    with pytest.raises(SystemExit, match="1-part/slug"):
        study_file("1-part/slag", code.parents[2])


def test_fewer_than_three_seeds_are_refused(code):
    code.write_text(CODE.replace("range(3)", "range(2)"), encoding="utf-8")
    with pytest.raises(ValueError, match="at least 3 seeds"):
        run(code)
