"""axe finds nothing that we have made: structure in the light theme, contrast in both."""

from importlib.resources import files

import pytest
from built_site import page_names
from visits import visit

pytestmark = pytest.mark.site

# Findings of the theme itself, by rule and by the element they are about.
OF_THE_THEME = {
    "label-content-name-mismatch": ("search-button",),
    "region": ("navbar-brand", "logo"),
}
# What repeats one structure is read once: the first rows of long tables, no single word of a code
# block (test_book_files looks at its colors), and equations, which MathJax describes itself.
REPEATED = [
    ".math",
    ".highlight pre > span",
    "tbody tr:nth-child(n + 9)",
    "ul.sources li:nth-child(n + 9)",
    "dl.chapters :nth-child(n + 9)",
]
MATHJAX = "**/mathjax/*.js*"
RUN = f"""(rules) => axe.run({{exclude: {REPEATED}}}, {{
  resultTypes: ['violations'],
  ...(rules ? {{runOnly: {{type: 'rule', values: rules}}}} : {{}}),
}}).then(result => result.violations.flatMap(
  rule => rule.nodes.map(node => [rule.id, node.html.slice(0, 200), node.target.join(' ')])))"""


@pytest.fixture(scope="module")
def axe():
    return (files("axe_playwright_python") / "axe.min.js").read_text()


def findings(tab, axe, rules=None):
    tab.evaluate(axe)
    return [found for found in tab.evaluate(RUN, rules) if not of_the_theme(*found)]


def of_the_theme(rule, html, target):
    return any(word in html + target for word in OF_THE_THEME.get(rule, ()))


@pytest.mark.parametrize("page", page_names())
def test_axe_finds_nothing(tab, site, axe, page):
    tab.route(MATHJAX, lambda route: route.fulfill(body=""))
    visit(tab, (site / f"{page}.html").as_uri())
    assert findings(tab, axe) == []
    tab.evaluate("document.documentElement.dataset.theme = 'dark'")
    assert findings(tab, axe, ["color-contrast"]) == []


def test_axe_would_find_an_image_without_words(tab, site, axe):
    visit(tab, (site / "book" / "errata.html").as_uri())
    tab.evaluate("document.querySelector('.bd-article').append(document.createElement('img'))")
    assert "image-alt" in {rule for rule, *_ in findings(tab, axe)}
