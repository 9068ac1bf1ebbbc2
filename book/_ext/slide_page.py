"""Writes a deck as one page of HTML that needs nothing but the site's own static files."""

import posixpath
import re
from html import escape

from book_data import ROOT, STEPS, chapters
from slide_parts import DECIMAL, Chapter, Part
from slide_source import Reference, Slide, SlideError, read_slides

FOLDER = "book/slides"
STYLES = ("fonts", "steps", "book", "slides")
KEYS = "Keys: arrows move, N notes, W notes in a second window, F full screen, T light or dark"


def deck_page(chapter) -> str:
    """The page of a chapter's deck; SlideError says what in its source cannot be shown."""
    source = ROOT / f"chapters/{chapter.slug}.slides.md"
    notebook = Chapter(ROOT / f"{chapter.page}.ipynb", chapter.page, FOLDER)
    slides = read_slides(source)
    shown = []
    for slide in slides:
        try:
            shown.append(section(slide, len(slides), chapter, notebook))
        except SlideError as error:
            raise SlideError(f"{source.name}, slide {slide.number}: {error}") from None
    return page(f"Slides: {chapter.number} {chapter.title}", "\n".join(shown), len(slides))


def deck_address(chapter) -> str:
    return f"{FOLDER}/{posixpath.basename(chapter.slug)}.html"


def section(slide: Slide, count: int, chapter, notebook: Chapter) -> str:
    check_numbers(slide, notebook)
    blocks = [
        (
            notebook.part(block)
            if isinstance(block, Reference)
            else with_steps(notebook.markdown(block))
        )
        for block in slide.blocks
    ]
    kinds = [block.kind if isinstance(block, Reference) else "words" for block in slide.blocks]
    parts = [block for block in blocks if isinstance(block, Part)]
    words, things = "", ""
    for kind, block in zip(kinds, blocks, strict=True):
        html = block.html if isinstance(block, Part) else block
        if kind in ("words", "equation"):
            words += html
        else:
            things += html
    beside = len(kinds) > 1 and any(part.beside for part in parts)
    shape = slide.layout or ("side" if beside else "stack")
    words = tags_apart(words) if shape == "side" else words
    first = slide.number == 1
    head = "h1" if first else "h2"
    message = inline(with_steps(notebook.markdown(slide.message)))
    title = f"{chapter.number} {escape(chapter.title)}"
    above = f'<p class="slide-chapter">{title}</p>{band(notebook.steps)}'
    return f"""<section class="slide {"first" if first else ""}" id="{slide.number}"
 aria-labelledby="message-{slide.number}">
<div class="stage">{strip(notebook.steps)}
{above if first else ""}
<{head} id="message-{slide.number}">{message}</{head}>
<div class="body {shape}"><div class="words">{words}</div><div class="things">{things}</div></div>
<p class="foot"><span>{KEYS if first else title}</span>
{source_link(parts, notebook)}<span class="count">{slide.number} / {count}</span></p>
</div>
<details class="notes"><summary>Notes</summary>{notes(slide, parts, notebook)}</details>
</section>"""


def tags_apart(html: str) -> str:
    """In a narrow column the number of an equation stands beside it and takes room on one side."""
    wide = r'(<div class="math" data-tag="(.+?)">.*?)\\tag\{.+?\}(.*?</div>)'
    apart = r'<div class="numbered">\1\3<span class="eqno">(\2)</span></div>'
    return re.sub(wide, apart, html, flags=re.S)


def check_numbers(slide: Slide, notebook: Chapter) -> None:
    """A decimal number that we write must be one that the chapter says or prints."""
    known = {chapter.number for chapter in chapters()}
    for number in DECIMAL.findall(slide.words):
        if number not in known and number not in notebook.text:
            raise SlideError(f"the chapter does not say the number {number}")


def inline(html: str) -> str:
    return re.sub(r"^<p>|</p>$", "", html.strip())


def with_steps(html: str) -> str:
    """A bold name of a step has the step's color."""
    bold = rf"<strong>({'|'.join(STEPS)})</strong>"
    return re.sub(bold, r'<strong class="step-name \1">\1</strong>', html)


def strip(lit: set[str]) -> str:
    """A thin line of five steps, those that the chapter changes lit."""
    marks = "".join(f'<span class="{step}{" on" if step in lit else ""}"></span>' for step in STEPS)
    return f'<div class="strip" aria-hidden="true">{marks}</div>'


def band(lit: set[str]) -> str:
    steps = " ".join(
        f'<span class="step {step}{" on" if step in lit else ""}">{step}</span>' for step in STEPS
    )
    return f'<p class="steps">{steps}</p>'


def source_link(parts: list[Part], notebook: Chapter) -> str:
    """Where in the chapter the first part of a slide stands."""
    if not parts:
        return f'<a href="{notebook.address}">in the chapter</a>'
    place = parts[0].place
    anchor = f"#{place.anchor}" if place.anchor else ""
    return f'<a href="{notebook.address}{anchor}">{escape(place.title)}</a>'


def notes(slide: Slide, parts: list[Part], notebook: Chapter) -> str:
    captions = [escape(part.more) for part in parts if part.more]
    whole = "".join(f'<p class="caption">Whole caption: {words}</p>' for words in captions)
    return notebook.markdown(slide.notes) + whole


def page(title: str, slides: str, count: int) -> str:
    root = posixpath.relpath(".", FOLDER)
    styles = "\n".join(
        f'<link rel="stylesheet" href="{root}/_static/{name}.css">' for name in STYLES
    )
    return f"""<!DOCTYPE html>
<html lang="en" data-theme="light">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
{styles}
<link rel="icon" href="{root}/_static/favicon.svg">
<script>
window.MathJax = {{
  options: {{enableMenu: false, processHtmlClass: "math", ignoreHtmlClass: "bd-article"}},
  svg: {{fontCache: "local", scale: 1}},
}};
</script>
<script src="{root}/_static/book.js"></script>
<script src="{root}/_static/slides.js"></script>
<script defer src="{root}/_static/mathjax/tex-svg-full.js"></script>
</head>
<body>
<main class="bd-article deck">
{slides}
</main>
<nav class="controls" aria-label="Slides">
<a href="../slides.html">all slides</a>
<button type="button" data-move="-1" aria-label="previous slide">&larr;</button>
<button type="button" data-move="1" aria-label="next slide">&rarr;</button>
<button type="button" data-do="n" aria-pressed="false">notes</button>
<button type="button" data-do="t">light or dark</button>
</nav>
</body>
</html>
"""
