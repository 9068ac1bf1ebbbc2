"""The map on the landing page: five lines, one a step; a stop for each chapter and mechanism."""

from html import escape

from book_data import STEPS, chapters, equation, mechanisms, papers

STEP_SENTENCES = {
    "score": "how a query is compared with a key",
    "support": "which keys a query may see",
    "weight": "how scores become weights",
    "read": "how values are gathered",
    "memory": "how keys and values are kept",
}


def atlas_map(link) -> str:
    first, *others = [chapter for chapter in chapters() if chapter.steps]
    lines = "".join(step_line(step, first, others, link) for step in STEPS)
    return (
        '<nav class="map" aria-label="Map of the book: what each chapter changes">'
        f'<p class="map-trunk">{chapter_link(first, link)} '
        '<span class="map-trunk-note">names the five steps and walks through all of them</span></p>'
        f'<div class="map-lines">{lines}</div>'
        '<p class="map-key"><span class="map-dot built" aria-hidden="true"></span> written '
        '<span class="map-dot" aria-hidden="true"></span> to come '
        '<span class="map-dot small" aria-hidden="true"></span> a mechanism you can call</p>'
        "</nav>"
    )


def step_line(step, first, others, link) -> str:
    stops = mechanism_stops(step, first, link)
    for chapter in others:
        own = chapter.steps[0] == step
        found = mechanism_stops(step, chapter, link)
        stops += (chapter_stop(chapter, link) if own else "") + found
    return (
        f'<section class="map-line {step}" aria-labelledby="map-{step}">'
        f'<h3 id="map-{step}">{step}</h3><p class="map-step">{STEP_SENTENCES[step]}</p>'
        f"<ol>{stops}</ol></section>"
    )


def chapter_stop(chapter, link) -> str:
    state = "built" if chapter.built else "coming"
    count = sum(paper["chapter"] == chapter.slug for paper in papers())
    also = "".join(f' <span class="map-also {step}">{step}</span>' for step in chapter.steps[1:])
    also = f'<p class="map-facts">changes also{also}</p>' if also else ""
    word = "written" if chapter.built else "to come"
    detail = (
        f"<p>{escape(chapter.idea)}</p>{also}"
        f'<p class="map-facts">{escape(chapter.part)} · {count} papers · {word}</p>'
    )
    return stop(f"chapter {state}", chapter_link(chapter, link), detail)


def chapter_link(chapter, link) -> str:
    address = link(chapter.page) if chapter.built else link("book/chapters", chapter.anchor)
    coming = "" if chapter.built else ' <span class="visually-hidden">(to come)</span>'
    return (
        f'<a href="{address}"><span class="map-number">{chapter.number}</span> '
        f"{escape(chapter.title)}{coming}</a>"
    )


def mechanism_stops(step, chapter, link) -> str:
    return "".join(
        mechanism_stop(mechanism, chapter, link)
        for mechanism in mechanisms()
        if mechanism["step"] == step and mechanism["chapter"] == chapter.slug
    )


def mechanism_stop(mechanism, chapter, link) -> str:
    section = mechanism.get("section") or ""
    address = (
        link(chapter.page, section) if chapter.built else link("book/chapters", chapter.anchor)
    )
    detail = f"<p>{escape(mechanism['idea'])}</p>{equation(mechanism, 'map-equation')}"
    return stop("mechanism", f'<a href="{address}">{escape(mechanism["key"])}</a>', detail)


def stop(kind, anchor, detail) -> str:
    return f'<li class="map-stop {kind}">{anchor}<div class="map-detail">{detail}</div></li>'
