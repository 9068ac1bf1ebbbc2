"""The atlas: every mechanism that can be called, and every paper with its state."""

from html import escape

from book_data import STEPS, chapters, equation, mechanisms, papers

STATES = ("built", "to come")


def mechanism_table(link) -> str:
    known = {chapter.slug: chapter for chapter in chapters()}
    rows = "".join(mechanism_row(mechanism, known, link) for mechanism in mechanisms())
    filters = choice("step", STEPS)
    return filtered_table(
        "mechanisms", filters, ("mechanism", "step", "idea", "promises", "cost"), rows
    )


def mechanism_row(mechanism, known, link) -> str:
    chapter = known.get(mechanism["chapter"])
    name = escape(mechanism["key"])
    if chapter and chapter.built:
        name = f'<a href="{link(chapter.page, mechanism.get("section") or "")}">{name}</a>'
    step = mechanism["step"]
    return (
        f'<tr id="{escape(mechanism["key"])}" data-step="{step}"><th scope="row">{name}</th>'
        f'<td data-label="step"><span class="step-name {step}">{step}</span></td>'
        f'<td data-label="idea">{escape(mechanism["idea"])}{equation(mechanism)}</td>'
        f'<td data-label="promises">{promise_words(mechanism)}</td>'
        f'<td data-label="cost">{escape(mechanism.get("cost") or "")}</td></tr>'
    )


PROMISES = {
    "exact": "exact",
    "causal": "causal form",
    "cross": "cross form",
    "grouped_query": "grouped heads",
    "normalized": "rows sum to one",
    "positive": "no negative weight",
    "key_invariant": "keys in any order",
    "constant_state": "constant state",
}


def promise_words(mechanism) -> str:
    """The promises that it makes, in words; a fast form also names what it equals."""
    promises = mechanism["promises"]
    if promises is None:
        return "has a form of its own, held by tests of its own"
    words = [text for name, text in PROMISES.items() if promises.get(name)]
    if promises.get("error"):
        words.insert(0, f"within {promises['error']:g}")
    if mechanism.get("oracle"):
        words.insert(1, f"equals {mechanism['oracle']}")
    if promises.get("score_range"):
        words.append(f"finite for scores up to {promises['score_range']:,.0f}")
    return escape(", ".join(words))


def paper_table(link) -> str:
    known = {chapter.slug: chapter for chapter in chapters()}
    rows = "".join(paper_row(paper, known, link) for paper in papers())
    parts = sorted({paper["chapter"].split("/")[0] for paper in papers()}, key=part_order)
    filters = (
        choice("state", STATES)
        + choice("part", parts)
        + choice("level", ("core", "standard", "aside", "canonical"))
    )
    return filtered_table("papers", filters, ("paper", "year", "chapter", "level", "state"), rows)


def part_order(part) -> int:
    number = part.split("-")[0]
    return int(number) if number.isdigit() and int(number) else 99


def paper_row(paper, known, link) -> str:
    state = "built" if paper["built"] else "to come"
    part = paper["chapter"].split("/")[0]
    chapter = known.get(paper["chapter"])
    where = escape(paper["chapter"])
    if chapter:
        address = link(chapter.page) if chapter.built else link("book/chapters", chapter.anchor)
        where = f'<a href="{address}">{chapter.number} {escape(chapter.title)}</a>'
    mark = f'<span aria-hidden="true">{"●" if paper["built"] else "○"}</span>'
    source = link("book/sources", paper["key"])
    mechanism = f'<div class="paper-mechanism">{escape(paper["mechanism"])}</div>'
    return (
        f'<tr data-state="{state}" data-part="{escape(part)}" data-level="{paper["level"]}">'
        f'<th scope="row"><a href="{source}">{escape(paper["title"])}</a>{mechanism}</th>'
        f'<td data-label="year">{escape(paper["year"])}</td><td data-label="chapter">{where}</td>'
        f'<td data-label="level">{escape(paper["level"])}</td>'
        f'<td data-label="state" class="state">{mark} {state}</td></tr>'
    )


def choice(name, values) -> str:
    options = "".join(f'<option value="{escape(v)}">{escape(v)}</option>' for v in values)
    return (
        f'<label>{name} <select data-filter="{name}"><option value="">all</option>{options}'
        "</select></label>"
    )


def find_controls(filters) -> str:
    """A field for words and a choice for each filter; book.js makes them work."""
    return (
        '<div class="table-controls"><label>find '
        f'<input type="search" data-filter="words" autocomplete="off"></label>{filters}'
        '<span class="table-count" role="status"></span></div>'
    )


def filtered_table(name, filters, columns, rows) -> str:
    heads = "".join(f'<th scope="col">{column}</th>' for column in columns)
    return (
        f'<div class="filtered" id="table-of-{name}">{find_controls(filters)}'
        f'<div class="table-wrapper" tabindex="0" role="region" aria-label="Table of {name}">'
        f'<table class="sortable wide-rows"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody>'
        "</table></div></div>"
    )


def chapter_list(link) -> str:
    """All chapters by part: what each is about, what it changes, whether it is written."""
    counts = {}
    for paper in papers():
        counts[paper["chapter"]] = counts.get(paper["chapter"], 0) + 1
    out, part = "", None
    for chapter in chapters():
        if chapter.part != part:
            out += "</dl>" if part else ""
            out += f'<h2 class="part">{escape(chapter.part)}</h2><dl class="chapters">'
            part = chapter.part
        out += chapter_entry(chapter, counts.get(chapter.slug, 0), link)
    return out + "</dl>"


def chapter_entry(chapter, count, link) -> str:
    title = escape(chapter.title)
    title = f'<a href="{link(chapter.page)}">{title}</a>' if chapter.built else title
    steps = ", ".join(f'<span class="step-name {s}">{s}</span>' for s in chapter.steps)
    changes = f"changes {steps} · " if steps else ""
    state = "written" if chapter.built else "to come"
    return (
        f'<dt id="{chapter.anchor}" class="{"built" if chapter.built else "coming"}">'
        f'<span class="map-number">{chapter.number}</span> {title}</dt>'
        f"<dd>{escape(chapter.idea)}"
        f'<div class="chapter-facts">{changes}{count} papers · {state}</div></dd>'
    )
