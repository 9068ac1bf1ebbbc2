"""The slides of each chapter: taken from it, complete, and legible on a projector."""

import json
import re
from types import SimpleNamespace

import pytest
from book_data import ROOT, chapters
from bs4 import BeautifulSoup
from slide_page import deck_address, deck_page
from slide_parts import Chapter
from slide_source import FEWEST, MOST, Reference, SlideError, read_slides
from visits import assert_clean, visit

WRITTEN = [chapter for chapter in chapters() if chapter.built]
SLUGS = [chapter.slug.split("/")[-1] for chapter in WRITTEN]
SOFT_LOOKUP = WRITTEN[0]


def source_of(chapter):
    return ROOT / f"chapters/{chapter.slug}.slides.md"


def notebook_of(chapter):
    return Chapter(ROOT / f"{chapter.page}.ipynb", chapter.page, "book/slides")


@pytest.mark.parametrize("chapter", WRITTEN, ids=SLUGS)
def test_every_written_chapter_has_a_deck(chapter):
    slides = read_slides(source_of(chapter))
    assert FEWEST <= len(slides) <= MOST
    assert slides[0].message.endswith("?"), "a deck begins with the question of the chapter"
    assert all(slide.notes for slide in slides)
    taken = {block.kind for slide in slides for block in slide.blocks if not isinstance(block, str)}
    assert {"figure", "equation"} <= taken
    assert any("In class" in slide.message for slide in slides)


@pytest.mark.parametrize("chapter", WRITTEN, ids=SLUGS)
def test_every_reference_resolves_and_pictures_are_those_of_the_notebook(chapter):
    page = BeautifulSoup(deck_page(chapter), "html.parser")
    stored = (ROOT / f"{chapter.page}.ipynb").read_text(encoding="utf-8")
    pictures = [image["src"].split("base64,")[1] for image in page.select("img")]
    assert pictures
    assert all(picture in stored for picture in pictures)
    tags = [box["data-tag"] for box in page.select("div.math")]
    assert tags
    assert len(tags) == len(set(tags))


def test_no_deck_is_left_over():
    sources = {path.relative_to(ROOT) for path in ROOT.glob("chapters/*/*.slides.md")}
    assert sources == {source_of(chapter).relative_to(ROOT) for chapter in WRITTEN}


BROKEN = {
    "figure": "Weighing is always worse",
    "equation": "1.1.99",
    "code": "no_such_function",
    "cell": "no such words in any cell",
    "print": "no such words in any output",
    "claim": "no paper says this",
    "table": "no such column",
    "exercise": "1.1.99",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_reference_that_leads_nowhere_is_refused(kind):
    with pytest.raises(SlideError, match=f"no {kind} of soft-lookup.ipynb is called"):
        notebook_of(SOFT_LOOKUP).part(Reference(kind, BROKEN[kind]))


def test_a_reference_must_mean_one_thing():
    with pytest.raises(SlideError, match="more than one figure"):
        notebook_of(SOFT_LOOKUP).part(Reference("figure", "W"))
    with pytest.raises(SlideError, match="no state 'β = 7'"):
        notebook_of(SOFT_LOOKUP).part(Reference("figure", "β decides | β = 7"))


def test_a_figure_with_a_slider_begins_where_it_is_told():
    part = notebook_of(SOFT_LOOKUP).part(Reference("figure", "β decides | β = 8"))
    figure = BeautifulSoup(part.html, "html.parser").figure
    frames = json.loads(figure["data-frames"])
    assert figure.img["src"].endswith(frames[3])
    assert figure.input["value"] == "3"
    assert figure.output.text == figure.input["aria-valuetext"] == "8"


def slide(number, body="Words.\n", notes="\nNotes:\nSay: this.\n"):
    mark = "#" if number == 1 else "##"
    return f"{mark} Message {number}\n\n{body}{notes}\n"


WRONG = {
    "7 slides; a deck has 8 to 12": "".join(slide(n) for n in range(1, 8)),
    "no notes for the speaker": "".join(slide(n, notes="") for n in range(1, 9)),
    "not understood: !picture": "".join(slide(n, "!picture a cat\n") for n in range(1, 9)),
    "is the question": "".join(slide(n) for n in range(2, 11)),
}


@pytest.mark.parametrize("words", WRONG)
def test_a_source_out_of_form_is_refused(tmp_path, words):
    path = tmp_path / "deck.slides.md"
    path.write_text(WRONG[words], encoding="utf-8")
    with pytest.raises(SlideError, match=re.escape(words)):
        read_slides(path)


@pytest.fixture
def with_source(monkeypatch):
    """Lets the deck of the first chapter have another source."""
    import slide_page

    def replaced(text):
        slides = [slide(n, text if n == 2 else "Words.\n") for n in range(1, 9)]

        def read(path):
            copy = ROOT / "_build" / "tests" / path.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text("".join(slides), encoding="utf-8")
            return read_slides(copy)

        monkeypatch.setattr(slide_page, "read_slides", read)

    return replaced


def test_a_number_that_the_chapter_does_not_have_is_refused(with_source):
    with_source("The error falls to 0.4242.\n")
    with pytest.raises(SlideError, match=r"slide 2: the chapter does not say the number 0\.4242"):
        deck_page(SOFT_LOOKUP)


def test_a_broken_deck_stops_the_build(with_source):
    from slides import make_decks
    from sphinx.errors import ExtensionError

    with_source("!equation 1.1.99\n")
    app = SimpleNamespace(builder=SimpleNamespace(name="html"))
    with pytest.raises(ExtensionError, match=r"slides of chapter 1\.1: .*slide 2: no equation"):
        make_decks(app)


def test_the_list_leads_to_every_deck(site):
    page = BeautifulSoup((site / "book" / "slides.html").read_text(), "html.parser")
    links = {a["href"] for a in page.select("dl.chapters dt a")}
    assert links == {deck_address(chapter).removeprefix("book/") for chapter in WRITTEN}


# What does not lie where it should: heading, words and things, and the foot, from top to bottom
# within the stage; code that is cut; letters too small to read from the last row.
CROWDED = """() => [...document.querySelectorAll('.slide')].flatMap(slide => {
  const find = (kind) => [...slide.querySelectorAll(kind)].filter(box => box.offsetParent);
  const area = (box) => box.getBoundingClientRect();
  const stage = area(slide.querySelector('.stage')), foot = area(slide.querySelector('.foot'));
  const head = area(slide.querySelector('h1, h2')), said = [];
  const name = (box) => box.className || box.tagName;
  const note = (box, what) => said.push(`slide ${slide.id}: ${name(box)} ${what}`);
  for (const box of find('.words > *, .things > *, figcaption, .picture')) {
    const {left, right, top, bottom} = area(box);
    if (top < head.bottom - 2) note(box, 'over the heading');
    if (bottom > foot.top + 2) note(box, 'over the foot');
    if (left < stage.left || right > stage.right + 1) note(box, 'beyond the edge');
  }
  if (foot.bottom > stage.bottom + 1) note(slide, 'higher than the screen');
  for (const box of find('pre, div.math')) {
    if (box.scrollWidth > box.clientWidth + 2) note(box, 'cut');
  }
  const letters = (box) => parseFloat(getComputedStyle(box).fontSize);
  const least = {'.words p': 17, 'pre': 14, '.attn-claim': 15, 'td': 15, 'div.math': 18};
  for (const kind in least) {
    find(kind).filter(box => letters(box) < least[kind]).forEach(box => note(box, 'too small'));
  }
  find('.picture').filter(box => box.clientHeight < 190).forEach(box => note(box, 'small'));
  return said;
})"""
GROUND = "() => getComputedStyle(document.body).backgroundColor"
READY = "() => document.documentElement.dataset.ready === 'yes'"


@pytest.mark.site
@pytest.mark.parametrize("chapter", WRITTEN, ids=SLUGS)
def test_no_slide_is_crowded_light_or_dark(browser, site, chapter):
    tab = browser.new_page(color_scheme="light", viewport={"width": 1280, "height": 720})
    assert_clean(visit(tab, (site / deck_address(chapter)).as_uri()))
    tab.wait_for_function(READY)
    assert tab.evaluate(CROWDED) == []
    light = tab.evaluate(GROUND)
    tab.keyboard.press("t")
    assert tab.evaluate(CROWDED) == []
    assert tab.evaluate(GROUND) != light
    tab.close()


@pytest.mark.site
def test_keys_move_and_show_the_notes(browser, site):
    tab = browser.new_page(viewport={"width": 1280, "height": 720})
    visit(tab, (site / deck_address(SOFT_LOOKUP)).as_uri())
    tab.wait_for_function(READY)
    for key in ("ArrowRight", "Space", "PageDown", "ArrowLeft"):
        tab.keyboard.press(key)
    assert tab.url.endswith("#3")
    notes = tab.locator("section[id='3'] .notes p").first
    assert not notes.is_visible()
    tab.keyboard.press("n")
    assert notes.is_visible()
    assert tab.evaluate(CROWDED.replace("parseFloat(getComputedStyle(box).fontSize)", "99")) == []
    tab.keyboard.press("n")
    tab.keyboard.press("End")
    count = len(read_slides(source_of(SOFT_LOOKUP)))
    assert tab.url.endswith(f"#{count}")
    tab.close()


@pytest.mark.site
def test_the_notes_in_a_second_window_follow(browser, site):
    tab = browser.new_page(viewport={"width": 1280, "height": 720})
    visit(tab, (site / deck_address(SOFT_LOOKUP)).as_uri())
    tab.wait_for_function(READY)
    with tab.expect_popup() as opened:
        tab.keyboard.press("w")
    speaker = opened.value
    speaker.wait_for_function(READY)
    assert speaker.locator("section[id='1'] .notes p").first.is_visible()
    speaker.keyboard.press("ArrowRight")
    tab.wait_for_function("location.hash === '#2'")
    tab.close()


@pytest.mark.site
def test_a_deck_prints_one_slide_a_page(browser, site):
    tab = browser.new_page(viewport={"width": 1280, "height": 720})
    visit(tab, (site / deck_address(SOFT_LOOKUP)).as_uri())
    tab.wait_for_function(READY)
    printed = tab.pdf(prefer_css_page_size=True, print_background=True)
    pages = len(re.findall(rb"/Type\s*/Page\b(?!s)", printed))
    assert pages == len(read_slides(source_of(SOFT_LOOKUP)))
    tab.close()
