"""What can be read off the built files without a browser."""

import functools
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup
from built_site import SITE, page_names

PAGES = page_names()
MEGABYTE = 1e6


@functools.cache
def parsed(page):
    return BeautifulSoup((SITE / f"{page}.html").read_text(encoding="utf-8"), "html.parser")


@functools.cache
def anchors(page):
    return {element.get("id") or element.get("name") for element in parsed(page).find_all(True)}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(site, page):
    lost = [link for link in internal_links(page) if not leads_somewhere(site, page, link)]
    assert lost == []


def internal_links(page):
    links = {a["href"] for a in parsed(page).find_all("a", href=True)}
    return sorted(link for link in links if not urlsplit(link).scheme)


def leads_somewhere(site, page, link):
    parts = urlsplit(link)
    if not parts.path:
        return not parts.fragment or unquote(parts.fragment) in anchors(page)
    target = (site / page).parent / unquote(parts.path)
    if not target.resolve().is_file():
        return False
    if not parts.fragment or target.suffix != ".html":
        return True
    name = target.resolve().relative_to(site.resolve()).with_suffix("").as_posix()
    return unquote(parts.fragment) in anchors(name)


@pytest.mark.parametrize("page", PAGES)
def test_every_picture_has_words(page):
    pictures = parsed(page).select(".bd-article img")
    assert [str(image)[-300:] for image in pictures if not says_something(image)] == []
    drawings = parsed(page).select(".bd-article svg[role=img]")
    assert all(drawing.get("aria-label") or drawing.find("title") for drawing in drawings)


def says_something(image):
    alt = image.get("alt", "").strip()
    is_a_path = " " not in alt and ("/" in alt or alt.endswith((".png", ".svg")))
    return len(alt) > 3 and not is_a_path


@pytest.mark.parametrize("page", PAGES)
def test_no_page_names_a_foreign_script_or_style(page):
    page = parsed(page)
    sources = [script["src"] for script in page.find_all("script", src=True)]
    sources += [link["href"] for link in page.find_all("link", rel=["stylesheet", "preload"])]
    sources += [image["src"] for image in page.find_all("img", src=True)]
    assert [address for address in sources if foreign(address)] == []


def foreign(address):
    return address.startswith("//") or urlsplit(address).scheme not in ("", "data")


def test_the_first_address_leads_to_the_landing_page(site):
    assert "book/index.html" in (site / "index.html").read_text()


def test_the_site_is_under_thirty_megabytes(site):
    files = [path for path in site.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    assert size < 30 * MEGABYTE, f"{size / MEGABYTE:.1f} MB"


def test_each_chapter_of_the_map_leads_to_its_page_or_its_plan():
    from book_data import chapters

    links = {a["href"] for a in parsed("book/index").select(".map a[href]")}
    for chapter in chapters():
        page = f"../{chapter.page}.html" if chapter.built else f"chapters.html#{chapter.anchor}"
        assert not chapter.steps or page in links


def test_the_atlas_shows_every_mechanism_and_every_paper():
    from book_data import mechanisms, papers

    atlas = parsed("book/atlas")
    assert len(atlas.select("#table-of-mechanisms tbody tr")) == len(mechanisms())
    assert len(atlas.select("#table-of-papers tbody tr")) == len(papers()) >= 333


def test_the_ledger_shows_every_stored_claim():
    from book_data import notebooks

    stored = sum(len(notebook.claims) for notebook in notebooks())
    assert len(parsed("book/ledger").select(".ledger-entry .attn-claim")) == stored


def test_the_budget_has_every_notebook():
    from book_data import notebooks

    rows = parsed("book/budget").select("table.numbers tbody tr")
    assert len(rows) == len(notebooks())
