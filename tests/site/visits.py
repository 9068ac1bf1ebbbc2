"""Visit a page and note everything that goes wrong while it loads."""

from dataclasses import dataclass, field

HERE = ("file:", "data:", "blob:", "http://127.0.0.1:")
RENDERED = "() => window.MathJax?.startup?.promise?.then(() => true)"


@dataclass
class Visit:
    errors: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def visit(tab, address: str) -> Visit:
    """Open the address, wait until the mathematics is drawn, and return what was noted."""
    noted = Visit()
    tab.on("console", lambda line: line.type == "error" and noted.errors.append(line.text))
    tab.on("pageerror", lambda error: noted.errors.append(str(error)))
    tab.on("request", lambda request: note_request(noted, request.url))
    tab.on("requestfailed", lambda request: noted.failed.append(request.url[:200]))
    tab.on("response", lambda answer: answer.status >= 400 and noted.failed.append(answer.url))
    tab.goto(address)
    tab.evaluate(RENDERED)
    return noted


def note_request(noted: Visit, address: str) -> None:
    if not address.startswith(HERE):
        noted.foreign.append(address[:200])


def assert_clean(noted: Visit) -> None:
    assert noted.foreign == [], "a page may not ask another machine for anything"
    assert noted.failed == []
    assert noted.errors == []
