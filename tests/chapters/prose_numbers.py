"""Decimals in prose must come from the page: each rounds to a number in a stored output."""

import re

from page import Page
from page_checks import without_code

DECIMAL = re.compile(r"(?<![\w.])(\d+\.\d+)(?![\w.]*\d)(\s*(?:%|percent|per cent))?")
IN_OUTPUT = re.compile(
    r"(?<![\w.])(\d+(?:\.\d*)?(?:e[-+]?\d+)?|\.\d+)(?:\s*×\s*10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))?", re.I
)
# A number that names a place or a version, not a quantity: "chapters 1.2, 1.3 and 2.1".
NAME = re.compile(
    r"\b(?:chapters?|sections?|parts?|exercises?|equations?|figures?|tables?|version|python|torch|"
    r"triton|numpy|appendix)\s+\d[\d.]*(?:(?:,| and| to| or)+\s+\d+\.[\d.]+)*",
    re.I,
)
NOT_PROSE = [
    re.compile(r"\$\$.*?\$\$", re.S),
    re.compile(r"\$[^$\n]+\$"),
    re.compile(r"<span class=\"quoted\">.*?</span>", re.S),
    re.compile(r"(?<=\])\([^)]*\)"),  # where a link leads
    re.compile(r"(?<=\[)\d+\.\d+(?=\s)"),  # the number of the chapter that a link names
    re.compile(r"^#+ \d+\.\d+", re.M),
    re.compile(r"<[^>]+>"),
    NAME,
]
SUPERSCRIPTS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


def prose(text: str) -> str:
    """Markdown without code, mathematics, quotations, link targets and numbers that are names."""
    text = without_code(text)
    for pattern in NOT_PROSE:
        text = pattern.sub(" ", text)
    return text


def decimals(text: str) -> list[tuple[str, bool]]:
    """The decimals in prose, and whether each is a percentage."""
    return [(number, bool(percent)) for number, percent in DECIMAL.findall(prose(text))]


def output_numbers(page: Page) -> list[float]:
    """Every number in the stored outputs, without sign."""
    numbers = []
    for cell in page.code:
        for text in page.texts(cell):
            for digits, power in IN_OUTPUT.findall(text):
                exponent = int(power.translate(SUPERSCRIPTS)) if power else 0
                numbers.append(float(digits) * 10.0**exponent)
    return numbers


def rounds_to(value: float, decimal: str) -> bool:
    """Whether `value`, rounded to the places of `decimal`, is `decimal`."""
    places = len(decimal.partition(".")[2])
    return abs(value - float(decimal)) <= 0.5 * 10.0**-places * (1 + 1e-9)


def decimals_in_prose_were_computed(page: Page, book: list[Page]) -> list[str]:
    computed = output_numbers(page)
    complaints = []
    for cell in page.cells:
        if cell["cell_type"] != "markdown":
            continue
        for decimal, percent in decimals(cell["source"]):
            scales = (1, 100) if percent else (1,)
            if not any(rounds_to(scale * value, decimal) for value in computed for scale in scales):
                complaints.append(
                    f"cell {cell['id']}: {decimal} is in no stored output of this page "
                    '(compute it, or mark it <span class="quoted">)'
                )
    return complaints
