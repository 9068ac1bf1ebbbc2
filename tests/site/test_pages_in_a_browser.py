"""Every page, opened in a real browser without a network."""

import io

import pytest
from built_site import page_names
from PIL import Image
from visits import assert_clean, visit

pytestmark = pytest.mark.site
PAGES = page_names()
MEGABYTE = 1e6

# text with TeX in it that is neither code nor drawn by MathJax
RAW_MATHEMATICS = r"""() => {
  const tex = /\$\$|\\\(|\\\[|\\(frac|sum|mathrm|begin)\b/;
  const article = document.querySelector('.bd-article');
  const walker = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const {textContent, parentElement} = walker.currentNode;
    const drawn = parentElement.closest('pre, code, script, style, mjx-container');
    if (!drawn && tex.test(textContent)) found.push(textContent.trim().slice(0, 80));
  }
  return found;
}"""
MATHEMATICS_ERRORS = (
    "() => [...document.querySelectorAll('[data-mjx-error], mjx-merror, merror')]"
    ".map(e => e.dataset.mjxError || e.textContent)"
)
OVERFLOW = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
# What is wider than its box with every fold open: equations, code, pages of print without a scroll
# bar, tables of the pages made from data; and folds that are called by no words or by hidden ones.
TOO_WIDE = """() => {
  const all = (kind) => [...document.querySelectorAll(`.bd-article ${kind}`)];
  all('details').forEach(fold => { fold.open = true; });
  const wide = (kind) => all(kind).filter(box => box.scrollWidth > box.clientWidth + 1);
  const scrolls = (box) => getComputedStyle(box).overflowX === 'auto';
  const words = (box) => (box.querySelector('mjx-assistive-mml') || box).textContent.trim();
  return {
    equations: wide('div.math').map(words),
    code: wide('div.cell_input pre').map(words),
    print: wide('div.cell_output pre').filter(box => !scrolls(box)).map(words),
    tables: wide('.table-wrapper:not(:has(.kernel-times))').map(words),
    folds: all('details.hide > summary').filter(
      box => box.ariaLabel || !box.innerText.trim()).map(words),
  };
}"""
NOTHING = {"equations": [], "code": [], "print": [], "tables": [], "folds": []}
WEIGHT = """() => performance.getEntriesByType('resource')
  .concat(performance.getEntriesByType('navigation'))
  .reduce((total, entry) => total + entry.decodedBodySize, 0)"""


def test_there_are_pages_to_look_at(site):
    assert "book/index" in PAGES
    assert any(page.startswith("chapters/") for page in PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_page_opens_from_disk_without_network_or_errors(tab, site, page):
    assert_clean(visit(tab, (site / f"{page}.html").as_uri()))
    assert tab.evaluate(MATHEMATICS_ERRORS) == []
    assert tab.evaluate(RAW_MATHEMATICS) == []
    check_sliders(tab)
    for width in (1440, 820):
        tab.set_viewport_size({"width": width, "height": 900})
        assert tab.evaluate(TOO_WIDE) == NOTHING
    tab.set_viewport_size({"width": 390, "height": 844})
    assert tab.evaluate(OVERFLOW) <= 0, "the page scrolls sideways on a phone"


def check_sliders(tab):
    """Each slider changes its picture and says where it stands."""
    for slider in tab.query_selector_all(".attn-frames input[type=range]"):
        frames = slider.evaluate_handle("e => e.closest('.attn-frames')")
        look = "e => [...e.querySelectorAll('img')].map(i => i.src + i.alt).join()"
        before = frames.evaluate(look)
        at_end = slider.evaluate("e => e.value === e.max")
        slider.press("Home" if at_end else "End")
        assert frames.evaluate(look) != before, "the slider moved and the picture did not"
        assert slider.get_attribute("aria-valuetext"), "a screen reader hears no value"


@pytest.mark.parametrize("page", PAGES)
def test_page_opens_from_a_server_and_is_light(light, served, page):
    tab = light.new_page()
    noted = visit(tab, f"{served}/{page}.html")
    weight = tab.evaluate(WEIGHT)
    tab.close()
    assert_clean(noted)
    assert weight < 5 * MEGABYTE, f"first visit loads {weight / MEGABYTE:.1f} MB"


def test_a_phone_breaks_equations_and_scrolls_pictures(browser, site, served):
    """A page of our own, so that no chapter can take away what this needs."""
    page = (site / "book" / "errata.html").read_text(encoding="utf-8")
    page = page.replace("</article>", WIDE + "</article>", 1)
    tab = browser.new_page(viewport={"width": 390, "height": 844})
    tab.route("**/errata.html", lambda route: route.fulfill(body=page, content_type="text/html"))
    visit(tab, f"{served}/book/errata.html")
    tab.wait_for_function("document.querySelector('#picture').closest('.attn-wide').tabIndex === 0")
    equation = tab.locator("#probe")
    assert equation.evaluate("box => box.scrollWidth <= box.clientWidth")
    assert equation.locator("[data-mml-node=mtr]").count() == 2, "two statements, two lines"
    assert tab.locator("#picture").evaluate("image => image.getBoundingClientRect().width") > 500
    assert tab.evaluate(OVERFLOW) <= 0
    lines = tab.locator("#probe ~ p .one-line").all_text_contents()
    assert [line[0] + line[-1] for line in lines] == ["(."]
    tab.close()


WIDE = r"""<div class="math notranslate nohighlight" id="probe">
\[ \frac{\partial L}{\partial q_i} = c \sum_j \frac{\partial L}{\partial s_{ij}} k_j, \qquad
\frac{\partial L}{\partial k_j} = c \sum_i \frac{\partial L}{\partial s_{ij}} q_i. \tag{1} \]</div>
<p>Words (<span class="math notranslate nohighlight">\(x\)</span>).</p>
<figure class="attn-figure"><img id="picture" alt="a square" width="650" height="300"
src="data:image/gif;base64,R0lGODlhAQABAAAAACw="></figure>"""


FIGURE = """() => {
  const image = document.createElement('canvas');
  image.width = image.height = 40;
  const pen = image.getContext('2d');
  pen.fillStyle = '#1B1F24';
  pen.fillRect(15, 15, 10, 10);
  const figure = document.createElement('figure');
  figure.className = 'attn-figure';
  figure.innerHTML = '<img style="background-color:#fff;padding:6px">';
  figure.firstChild.src = image.toDataURL();
  document.querySelector('.bd-article').prepend(figure);
  return figure.firstChild.decode();
}"""


def test_figures_are_not_white_boxes_in_the_dark_theme(browser, site):
    with_figures = [page for page in PAGES if "attn-figure" in (site / f"{page}.html").read_text()]
    tab = browser.new_page(color_scheme="dark", viewport={"width": 1280, "height": 900})
    visit(tab, (site / "book" / "index.html").as_uri())
    tab.evaluate(FIGURE)
    assert_dark_figures(tab, 1)
    for page in with_figures:
        visit(tab, (site / f"{page}.html").as_uri())
        assert_dark_figures(tab, 3)
    tab.close()


def assert_dark_figures(tab, most):
    """The corners of a picture have the ground of the page."""
    for image in tab.query_selector_all(".attn-figure img")[:most]:
        image.scroll_into_view_if_needed()
        picture = Image.open(io.BytesIO(image.screenshot())).convert("L")
        width, height = picture.size
        corners = [picture.getpixel((x, y)) for x in (1, width - 2) for y in (1, height - 2)]
        assert max(corners) < 70, f"a figure has a light ground in the dark theme: {corners}"


def test_search_finds_online_softmax(tab, site):
    noted = visit(tab, (site / "search.html").as_uri() + "?q=online+softmax")
    tab.wait_for_selector("#search-results li a")
    found = tab.eval_on_selector_all("#search-results li a", "links => links.map(a => a.href)")
    assert any("book/glossary.html" in address for address in found)
    assert_clean(noted)


def test_atlas_filters_and_sorts(tab, site):
    visit(tab, (site / "book" / "atlas.html").as_uri())
    shown = "#table-of-mechanisms tbody tr:not([hidden])"
    before = tab.locator(shown).count()
    tab.select_option("#table-of-mechanisms select", "weight")
    steps = tab.eval_on_selector_all(shown, "rows => rows.map(row => row.dataset.step)")
    assert 0 < len(steps) < before
    assert set(steps) == {"weight"}
    tab.select_option("#table-of-mechanisms select", "")
    tab.get_by_role("button", name="mechanism").press("Enter")
    names = tab.eval_on_selector_all(f"{shown} th", "cells => cells.map(cell => cell.textContent)")
    assert names == sorted(names)
    tab.get_by_role("button", name="mechanism").press("Enter")
    names = tab.eval_on_selector_all(f"{shown} th", "cells => cells.map(cell => cell.textContent)")
    assert names == sorted(names, reverse=True)


def test_atlas_finds_a_paper_by_a_word(tab, site):
    visit(tab, (site / "book" / "atlas.html").as_uri())
    tab.fill("#table-of-papers input", "pointer networks")
    titles = tab.eval_on_selector_all(
        "#table-of-papers tbody tr:not([hidden]) th", "cells => cells.map(cell => cell.textContent)"
    )
    assert titles
    assert all("pointer" in title.lower() for title in titles)


def test_map_shows_an_idea_on_focus_and_hides_it_on_escape(tab, site):
    visit(tab, (site / "book" / "index.html").as_uri())
    stop = tab.locator(".map-stop.mechanism").first
    stop.locator("a").focus()
    assert stop.locator(".map-detail").is_visible()
    tab.keyboard.press("Escape")
    assert not stop.locator(".map-detail").is_visible()
