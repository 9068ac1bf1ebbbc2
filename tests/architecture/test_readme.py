"""What the README tells a newcomer to type works."""

import re

import pytest
from imports import ROOT
from readme import blocks, known_targets, make_targets

README = ROOT / "README.md"


@pytest.fixture(scope="module")
def readme():
    return README.read_text(encoding="utf-8")


def run_python(text):
    """Runs the Python blocks of a page one after the other, in one namespace."""
    namespace = {"__name__": "readme"}
    for number, code in enumerate(blocks(text, "python"), start=1):
        exec(compile(code, f"README.md, Python block {number}", "exec"), namespace)


def test_python_blocks_run_in_order(readme):
    assert blocks(readme, "python"), "the README shows no Python"
    run_python(readme)


def test_make_targets_exist(readme):
    known = known_targets((ROOT / "Makefile").read_text(encoding="utf-8"))
    named = make_targets(readme)
    assert {"book", "test"} <= set(named)
    assert [target for target in named if target not in known] == []


def test_every_block_says_its_language(readme):
    assert blocks(readme, "") == []


def test_files_that_the_pages_name_exist():
    missing = [
        f"{page.name}: {target}"
        for page in (README, ROOT / "CONTRIBUTING.md")
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert missing == []


def test_test_files_have_names_of_their_own():
    """pytest imports test files by their bare name, so two of one name cannot be collected."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []


PAGE = """
```bash
git clone x && make book   # then make nothing
make study CHAPTER=1-foundations/soft-lookup
```
```python
x = 1
```
```python
assert x == 2, "x is one"
```
"""


def test_targets_and_blocks_are_found():
    assert make_targets(PAGE) == ["book", "study"]
    assert known_targets(".PHONY: a\nbook: x ## y\nA := 3\ncheck-it:\n") == {"book", "check-it"}


def test_a_block_that_fails_is_reported():
    with pytest.raises(AssertionError, match="x is one"):
        run_python(PAGE)
