"""Makes a deck of slides of every chapter that is written: a page for each, and the list of them.

Everything a deck takes from its chapter is looked up in the stored notebook when the site is built.
A reference that leads nowhere, or a chapter without a deck, stops the build.
"""

from html import escape
from pathlib import Path

from book_data import chapters
from data_pages import directive
from slide_page import deck_address, deck_page
from slide_source import SlideError
from sphinx.errors import ExtensionError


def setup(app):
    app.add_directive("slides-list", directive(slides_list))
    app.connect("builder-inited", make_decks)
    app.connect("build-finished", write_decks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def make_decks(app):
    """Before anything else is built, so that a mistake is told at once."""
    app.decks = {}
    if app.builder.name == "html":
        for chapter in with_decks():
            try:
                app.decks[deck_address(chapter)] = deck_page(chapter)
            except (SlideError, OSError) as error:
                raise ExtensionError(f"slides of chapter {chapter.number}: {error}") from error


def write_decks(app, error):
    if error is None:
        for address, page in app.decks.items():
            target = Path(app.outdir) / address
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(page, encoding="utf-8")


def with_decks():
    return [chapter for chapter in chapters() if chapter.built]


def slides_list(link) -> str:
    items = "".join(entry(chapter, link) for chapter in with_decks())
    return f'<dl class="chapters">{items}</dl>'


def entry(chapter, link) -> str:
    # the deck is no page of Sphinx's, so its address is made from that of the list
    deck = deck_address(chapter).removeprefix("book/")
    return (
        f'<dt><span class="map-number">{chapter.number}</span> '
        f'<a href="{deck}">{escape(chapter.title)}</a></dt>'
        f"<dd>{escape(chapter.idea)} "
        f'<span class="chapter-facts"><a href="{link(chapter.page)}">The chapter</a></span></dd>'
    )
