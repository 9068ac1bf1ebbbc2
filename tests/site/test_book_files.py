"""The files the site is made from agree with each other and with the code."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
import yaml
from built_site import ROOT

PIN = re.compile(r"([A-Za-z0-9._-]+)==([^ ;]+)")
SHARED = ("_config.yml", "README.md", "CITATION.cff")


def pins(name):
    """The pinned versions of each package; a package may be pinned once per Python version."""
    found = {}
    for line in (ROOT / name).read_text().splitlines():
        if match := PIN.match(line):
            found.setdefault(match[1].lower(), set()).add(line)
    return found


def test_both_requirements_pin_the_same_versions():
    full, book = pins("requirements.txt"), pins("requirements-book.txt")
    assert book
    assert {name: lines for name, lines in book.items() if full.get(name) != lines} == {}
    assert "torch" not in book


@pytest.mark.parametrize(
    "name", ["requirements.txt", "requirements-book.txt", "requirements-course.txt"]
)
def test_requirements_are_exact_and_name_no_host(name):
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not PIN.match(line)] == []
    assert not re.search(r"--|https?:|/", "\n".join(lines))
    assert not re.search(r"^(nvidia|cuda)-", "\n".join(lines), re.M)


def test_requirements_hold_what_pyproject_asks_for():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(want for extra in extras for want in extra)]
    names = {re.match(r"[A-Za-z0-9._-]+", want)[0].lower() for want in wanted}
    assert names - set(pins("requirements.txt")) == set()


def repository_address():
    return yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]


def tracked_files():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_the_public_address_is_the_same_everywhere():
    address = repository_address()
    owner, name = address.removesuffix("/").split("/")[-2:]
    known = {f"github.com/{owner}/{name}", f"{owner}.github.io/{name}"}
    ours = re.compile(rf"(?:github\.com/[\w.-]+/{name}\b(?![-\w])|[\w-]+\.github\.io/[\w.-]+)")
    other = {
        (path.relative_to(ROOT).as_posix(), found.removesuffix(".git"))
        for path in tracked_files()
        if path.suffix in (".md", ".py", ".ipynb", ".yml", ".yaml", ".cff", ".toml", ".html", "")
        for found in ours.findall(path.read_text(encoding="utf-8", errors="ignore"))
        if found.removesuffix(".git") not in known
    }
    assert other == set()


def test_citation_has_the_address_and_edition_of_the_book():
    import tomllib

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["repository-code"] == repository_address()
    assert citation["version"] == project["version"]
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()
    assert f"v{project['version']}" in (ROOT / "book" / "errata.md").read_text()


def test_every_chapter_of_the_papers_is_in_the_list_of_chapters():
    from book_data import STEPS, chapters, papers

    slugs = [chapter.slug for chapter in chapters()]
    assert len(slugs) == len(set(slugs)) == len({chapter.number for chapter in chapters()})
    assert {paper["chapter"] for paper in papers()} <= set(slugs)
    assert all(set(chapter.steps) <= set(STEPS) for chapter in chapters())


def test_every_notebook_is_in_the_table_of_contents():
    contents = (ROOT / "_toc.yml").read_text()
    for notebook in ROOT.glob("chapters/*/*.ipynb"):
        assert f"file: {notebook.relative_to(ROOT).with_suffix('').as_posix()}\n" in contents


def test_the_steps_have_the_colors_of_the_figures():
    palette = json.loads((ROOT / "attnlib" / "figures" / "palette.json").read_text())
    style = (ROOT / "book" / "_static" / "steps.css").read_text()
    for step, color in palette.items():
        assert f"--{step}: {color.lower()};" in style


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_words_and_code_are_legible_in_both_themes(theme):
    colors = theme_colors(theme)
    steps = [f"{step}-text" for step in ("score", "support", "weight", "read", "memory")]
    for ink in ("ink", "ink-2", "accent", *steps):
        for ground in ("paper", "paper-2"):
            assert contrast(colors[ink], colors[ground]) >= 4.5


def theme_colors(theme):
    """The color variables of a theme on a screen: those of all, overwritten by its own."""
    colors = {}
    for name in ("book.css", "steps.css"):
        style = (ROOT / "book" / "_static" / name).read_text().split("@media print")[0]
        for selector, body in re.findall(r"([^{}]+)\{([^{}]*)\}", style):
            themes = re.findall(r"data-theme=\"(\w+)\"", selector)
            if "--" in body and "@" not in selector and (not themes or theme in themes):
                colors.update(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", body))
    return colors


def contrast(one, other):
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(color):
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_fonts_are_small_and_bring_their_licences():
    fonts = list((ROOT / "book" / "_static" / "fonts").glob("*.woff2"))
    assert fonts
    assert sum(font.stat().st_size for font in fonts) < 300_000
    for font in fonts:
        family = font.name.split("-latin")[0]
        assert "SIL Open Font License" in font.with_name(f"{family}-LICENSE.txt").read_text()


def test_the_glossary_has_forty_terms_in_order():
    terms = re.findall(r"^## (.+)$", (ROOT / "book" / "glossary.md").read_text(), re.M)
    assert len(terms) >= 40
    assert terms == sorted(terms, key=lambda term: term.lower().replace("-", ""))


def make(*words, **settings):
    return subprocess.run(["make", *words], cwd=ROOT, capture_output=True, text=True, **settings)


def test_make_alone_lists_the_targets():
    listed = make()
    assert listed.returncode == 0
    for target in ("book", "test", "serve", "lab", "run", "study", "pdf", "gpu", "clean"):
        assert re.search(rf"^  {target} +\S", listed.stdout, re.M)


def test_an_old_python_is_told_what_to_do(tmp_path):
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" && exit 0\nexit 1\n')
    old.chmod(0o755)
    told = make("check-python", f"PYTHON={old}")
    assert told.returncode != 0
    assert "needs Python 3.11 or newer" in told.stdout
    assert "3.9.2" in told.stdout


def test_a_study_without_a_chapter_asks_for_one():
    told = make("study", "FULL_ENV=" + str(ROOT / "_build" / "tests" / "none"), "--dry-run")
    assert "CHAPTER=1-foundations/soft-lookup" in told.stdout


def test_continuous_integration_runs_the_command_of_the_reader():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert lines[-1] == "make test"
    assert "set -eu" in lines


def test_the_page_is_announced_where_there_is_no_display(monkeypatch, capsys, tmp_path):
    import open_page

    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "argv", ["open_page.py", str(tmp_path / "index.html")])
    open_page.main()
    assert (tmp_path / "index.html").as_uri() in capsys.readouterr().out


def test_a_machine_without_a_browser_is_told_how_to_get_one(monkeypatch):
    import browser

    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setattr(browser.shutil, "which", lambda name: None)
    monkeypatch.setattr(browser, "APPLICATIONS", ())
    assert browser.chromium() is None
    assert "apt-get install chromium" in browser.MISSING


def test_the_build_needs_no_torch():
    for path in (ROOT / "book" / "_ext").glob("*.py"):
        assert not re.search(r"^\s*(import|from) (torch|attnlib)\b", path.read_text(), re.M)
    assert find_spec("torch"), "this test means something only where torch could be imported"
