"""The sources: every paper the book builds on, by first author's key, with where it is used."""

from html import escape

from book_data import chapters, citations, papers


def source_anchors() -> dict[str, str]:
    """The anchor of each entry and the words for a link without words."""
    return citations()


def sources_list(link) -> str:
    canonical = [paper for paper in papers() if paper["kind"] == "K"]
    others = [paper for paper in papers() if paper["kind"] != "K"]
    return section(
        "canonical-works", "Works that the chapters build on", canonical, link
    ) + section("source-papers", "The source papers", others, link)


def section(anchor, title, entries, link) -> str:
    items = "".join(entry(paper, link) for paper in sorted(entries, key=order))
    return f'<h2 id="{anchor}">{title}</h2><ul class="sources">{items}</ul>'


def order(paper) -> tuple[str, str]:
    return (citations()[paper["key"]].lower(), paper["title"].lower())


def entry(paper, link) -> str:
    known = {chapter.slug: chapter for chapter in chapters()}
    authors = escape(paper["authors"].replace(";", ","))
    facts = ". ".join(escape(paper[name]) for name in ("venue", "identifier") if paper[name])
    year = f" ({escape(paper['year'])})" if paper["year"] else ""
    chapter = known.get(paper["chapter"])
    where = ""
    if chapter:
        address = link(chapter.page) if chapter.built else link("book/chapters", chapter.anchor)
        where = f' <a class="source-use" href="{address}">chapter {chapter.number}</a>'
    return (
        f'<li id="{escape(paper["key"])}"><span class="source-authors">{authors}{year}</span> '
        f"<cite>{escape(paper['title'])}</cite>. {facts + '.' if facts else ''}{where}</li>"
    )
