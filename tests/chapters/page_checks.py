"""What every notebook must be. Each check returns its complaints; no complaint means it passes."""

import re

from execute import is_stale
from notebook_form import normal_form, read, tags, text_of
from page import Page
from setup_cell import setup_cell

TAGS = {
    "setup",
    "exercise",
    "solution",
    "timing",
    "hide-input",
    "hide-output",
    "hide-cell",
    "listing",
}
TAGS |= {"nbval-check-output", "nbval-skip", "nbval-raises-exception"}
STEPS = ["score", "support", "weight", "read", "memory"]
KINDS = {"derivation": 2, "programming": 2, "measurement": 1, "open": 1}  # at least, in a chapter
OTHER_KINDS = {"pencil"}
EXERCISE = re.compile(
    r"^\*\*Exercise (?P<number>\S+)\*\* · (?P<kind>\w+) · (?P<difficulty>easy|medium|hard)"
    r" · (?P<minutes>\d+) min$"
)
REFERENCE = re.compile(r"\(((?:P|(?:\d+|[A-Z])\.\d+)\.\d+)\)")
LINK = re.compile(r"\]\(<?([^)\s>]+)|(?:href|src)=\"([^\"]+)\"")
MACHINE = re.compile(r"(?<![\w.])/(?:home|root|Users|tmp|work|opt|usr/lib|var)/\S*|[A-Z]:\\Users")
MEGABYTE = 2**20


def stored_in_normal_form(page: Page, book: list[Page]) -> list[str]:
    stored = page.path.read_text(encoding="utf-8")
    if stored == text_of(normal_form(read(page.path), page.path, page.root)):
        return []
    return ["not in normal form: run `make run`"]


def executed_and_current(page: Page, book: list[Page]) -> list[str]:
    stale = is_stale(page.path, page.notebook, page.root)
    return ["its code changed since it was executed: run `make run`"] if stale else []


def second_cell_is_the_common_setup(page: Page, book: list[Page]) -> list[str]:
    second = page.cells[1] if len(page.cells) > 1 else {"metadata": {}, "source": ""}
    complaints = [] if "setup" in tags(second) else ["the second cell is not tagged `setup`"]
    if second["source"] != setup_cell(page.path, page.root):
        complaints.append("the setup cell is not the common one: `make run` writes it")
    return complaints


def code_cells_are_short(page: Page, book: list[Page]) -> list[str]:
    complaints = []
    for cell in page.code:
        lines = cell["source"].splitlines()
        if len(lines) > 15:
            complaints.append(f"cell {cell['id']}: {len(lines)} lines, at most 15")
        complaints += [f"cell {cell['id']}: 80 or more columns: {x}" for x in lines if len(x) >= 80]
    return complaints


def file_is_small(page: Page, book: list[Page]) -> list[str]:
    size = page.path.stat().st_size / MEGABYTE
    return [f"{size:.2f} MB, at most 1"] if size > 1 else []


def tags_are_known(page: Page, book: list[Page]) -> list[str]:
    return [
        f"cell {cell['id']}: unknown tag {tag!r}"
        for cell in page.cells
        for tag in tags(cell)
        if tag not in TAGS
    ]


def equation_tags(page: Page) -> list[str]:
    return re.findall(r"\\tag\{([^}]*)\}", "\n".join(page.markdown))


def equations_are_numbered_and_references_exist(page: Page, book: list[Page]) -> list[str]:
    complaints, own = [], equation_tags(page)
    for tag in own:
        if not re.fullmatch(re.escape(page.number) + r"\.\d+", tag):
            complaints.append(f"equation ({tag}) does not begin with {page.number}.")
    everywhere = own + [
        t for other in book if other.path != page.path for t in equation_tags(other)
    ]
    complaints += [f"equation ({t}) occurs twice" for t in set(own) if everywhere.count(t) > 1]
    for referred in sorted(set(REFERENCE.findall(without_code("\n".join(page.markdown))))):
        if referred not in everywhere:
            complaints.append(f"there is no equation ({referred})")
    return complaints


def relative_links_resolve(page: Page, book: list[Page]) -> list[str]:
    complaints = []
    for target in (a or b for a, b in LINK.findall(without_code("\n".join(page.markdown)))):
        file = target.partition("#")[0]
        if file and not re.match(r"[a-z]+:", target) and not (page.path.parent / file).exists():
            complaints.append(f"link to {target}: no such file")
    return complaints


def no_errors_or_warnings_are_stored(page: Page, book: list[Page]) -> list[str]:
    complaints = []
    for cell in page.code:
        for output in cell["outputs"]:
            if output["output_type"] == "error" and "nbval-raises-exception" not in tags(cell):
                complaints.append(f"cell {cell['id']}: stored error {output['ename']}")
            if output.get("name") == "stderr":
                complaints.append(f"cell {cell['id']}: stored stderr: {output['text'][:80]!r}")
    return complaints


def no_paths_of_a_machine(page: Page, book: list[Page]) -> list[str]:
    texts = [(cell["id"], cell["source"]) for cell in page.cells]
    texts += [(cell["id"], text) for cell in page.code for text in page.texts(cell)]
    return [
        f"cell {name}: path {path}"
        for name, text in texts
        for path in MACHINE.findall(text)
        if path
    ]


def pictures_have_words_and_stay_in_budget(page: Page, book: list[Page]) -> list[str]:
    complaints = []
    for cell in page.code:
        for output in cell["outputs"]:
            data = output.get("data", {})
            markup = data.get("text/html", "")
            if any(mime.startswith("image/") for mime in data):
                complaints.append(f"cell {cell['id']}: a bare picture; use figures.show")
            if re.search(r"<img(?![^>]*\balt=\"[^\"]+\")", markup):
                complaints.append(f"cell {cell['id']}: a picture without alternative text")
            if len(markup) > 150 * 1024:
                complaints.append(f"cell {cell['id']}: {len(markup) // 1024} KB, at most 150")
            if markup.count("iVBORw0KGgo") > 24:
                complaints.append(f"cell {cell['id']}: more than 24 frames")
    return complaints


def exercise_headings(page: Page) -> list[tuple[int, str]]:
    """Index of the cell and first line of every exercise."""
    return [
        (i, cell["source"].splitlines()[0])
        for i, cell in enumerate(page.cells)
        if cell["cell_type"] == "markdown" and cell["source"].startswith("**Exercise")
    ]


def exercises_state_kind_and_have_a_check_or_solution(page: Page, book: list[Page]) -> list[str]:
    complaints, numbers = [], []
    found = exercise_headings(page)
    ends = [start for start, _ in found[1:]] + [len(page.cells)]
    for (start, heading), end in zip(found, ends, strict=False):
        match = EXERCISE.match(heading.strip())
        if not match or match["kind"] not in KINDS.keys() | OTHER_KINDS:
            complaints.append(
                f"{heading!r}: expected **Exercise {page.number or '1.1'}.k** · kind · difficulty"
                f" · minutes min, kind one of {', '.join([*KINDS, *OTHER_KINDS])}"
            )
            continue
        numbers.append(match["number"])
        cells = page.cells[start:end]
        words = "\n".join(c["source"] for c in cells if c["cell_type"] == "markdown")
        folded = re.search(r"<summary>[^<]*(Solution|Answer)", words)
        if not folded and not any("solution" in tags(cell) for cell in cells):
            complaints.append(f"exercise {match['number']}: neither a check nor a folded solution")
        for cell in cells:
            checked = set(re.findall(r"\bcheck\(\s*[\"']([^\"']+)", cell["source"]))
            if set(tags(cell)) & {"exercise", "solution"} and checked - {match["number"]}:
                complaints.append(f"exercise {match['number']}: its cell checks {checked}")
    for number in numbers:
        if not number.startswith(f"{page.number}."):
            complaints.append(f"exercise {number} does not begin with {page.number}.")
        if numbers.count(number) > 1:
            complaints.append(f"exercise {number} occurs twice")
    return complaints


def chapter_has_its_parts(page: Page, book: list[Page]) -> list[str]:
    if not page.is_chapter:
        return []
    complaints, opening = [], page.markdown[0] if page.markdown else ""
    if not page.number or not opening.startswith(f"# {page.number} "):
        complaints.append(
            f"the title is not `# {page.number or 'P.C'} ...` (metadata attn.chapter)"
        )
    if re.findall(r'<span class="step (\w+)', opening) != STEPS:
        complaints.append(f"the opening has no band of the five steps {', '.join(STEPS)}")
    elif not re.search(r'<span class="step \w+ on"', opening):
        complaints.append("the band lights no step (class `on`)")
    if not 3 <= len(re.findall(r"^[-*] ", opening, re.M)) <= 12:
        complaints.append("the opening lists no three to five things that one will be able to do")
    complaints += [
        f"no attn.{x}" for x in ("step", "minutes", "prerequisites") if x not in page.facts
    ]
    if page.facts.get("seconds", 0) > 60 or page.facts.get("memory_mb", 0) > 2048:
        complaints.append("over 60 s or 2 GB: make it a study")
    places = {}
    for heading in ("Cost", "When to use", "Summary", "Exercises", "Notes"):
        found = re.search(rf"^##+ .*{heading}", "\n".join(page.markdown), re.M | re.I)
        if not found:
            complaints.append(f"no section {heading!r}")
        places[heading] = found.start() if found else -1
    present = [place for place in places.values() if place >= 0]
    if present != sorted(present):
        complaints.append(f"sections are not in the order {', '.join(places)}")
    return complaints + missing_exercises(page)


def missing_exercises(page: Page) -> list[str]:
    matches = [EXERCISE.match(heading.strip()) for _, heading in exercise_headings(page)]
    kinds = [match["kind"] for match in matches if match]
    complaints = [] if len(kinds) >= 6 else [f"{len(kinds)} exercises, at least 6"]
    for kind, least in KINDS.items():
        if kinds.count(kind) < least:
            complaints.append(f"{kinds.count(kind)} exercises of kind {kind}, at least {least}")
    return complaints


def without_code(text: str) -> str:
    """Markdown without fenced and inline code."""
    return re.sub(r"`[^`\n]*`", " ", re.sub(r"^(```|~~~).*?^\1", " ", text, flags=re.M | re.S))
