"""Finds in a stored notebook what a slide refers to, and makes the HTML that shows it.

A figure is named by the first words of its caption, an equation by its tag, code by what it
defines, a cell by words in it, print by words of it, a claim by its paper or its first words, a
table by words of it, an exercise by its number. Each reference must mean exactly one thing.
"""

import ast
import json
import posixpath
import re
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from pathlib import Path
from urllib.parse import urlsplit

from book_data import CLAIM
from bs4 import BeautifulSoup
from docutils.nodes import make_id
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from slide_source import Reference, SlideError

HIDDEN = {"exercise", "solution", "setup"}  # cells whose code is not the chapter's
DECIMAL = re.compile(r"(?<![\w.])\d+\.\d+(?![\w.]*\.\d)")
ASKS = re.compile(r"(Click|Choose|Walk|Stand|Try|Move|The last button)\b")  # for a live figure only
SQUARE = 1.55  # a picture less wide than this stands beside the words


@dataclass(frozen=True)
class Place:
    """A section of the chapter."""

    title: str
    anchor: str


@dataclass(frozen=True)
class Part:
    """What a slide shows of the chapter: its HTML, where it stands, and how it likes to lie."""

    html: str
    place: Place
    beside: bool = False
    more: str = ""  # words for the speaker


@dataclass(frozen=True)
class Found:
    """A candidate for a reference: what it may be called, and the part that it would be."""

    names: tuple[str, ...]
    part: Part


class Chapter:
    """One stored notebook; `base` is the folder of the page that shows its parts."""

    def __init__(self, path: Path, page: str, base: str):
        self.path, self.page, self.base = path, page, base
        self.stored = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for cell in self.stored:
            cell["source"] = "".join(cell["source"])
            cell["tags"] = set(cell["metadata"].get("tags", []))
        self.markdown = markdown(self.link)

    def part(self, reference: Reference) -> Part:
        """The one part that it means, among `self.figures`, `self.equations` and so on."""
        words, state = reference.words, ""
        if reference.kind == "figure":
            words, _, state = words.partition(" | ")
        search = getattr(self, f"{reference.kind}s")
        found = [each for each in search if names(each, Reference(reference.kind, words))]
        if len(found) == 1:
            return moved(found[0].part, state.strip()) if state else found[0].part
        known = "\n".join(f"  {each.names[0][:90]}" for each in (found or search))
        problem = "more than one" if found else "no"
        raise SlideError(
            f"{problem} {reference.kind} of {self.path.name} is called {reference.words!r}; "
            f"there are:\n{known}"
        )

    def link(self, address: str) -> str:
        """An address as the notebook writes it, for the page of the deck."""
        parts = urlsplit(address)
        if parts.scheme or not parts.path:
            return address if parts.scheme else f"{self.link(self.page)}{address}"
        target = posixpath.normpath(posixpath.join(posixpath.dirname(self.page), parts.path))
        target = re.sub(r"\.(ipynb|md)$|$", ".html", target, count=1)
        anchor = f"#{parts.fragment}" if parts.fragment else ""
        return posixpath.relpath(target, self.base) + anchor

    @property
    def address(self) -> str:
        return posixpath.relpath(f"{self.page}.html", self.base)

    @cached_property
    def steps(self) -> set[str]:
        """The steps that the band at the head of the chapter lights."""
        return set(re.findall(r'class="step (\w+) on"', self.stored[0]["source"]))

    @cached_property
    def text(self) -> str:
        """Every word that the chapter says or prints."""
        words = [cell["source"] for cell in self.stored]
        words += [plain(output) for cell in self.stored for output in cell.get("outputs", [])]
        return "\n".join(words)

    @cached_property
    def places(self) -> list[Place]:
        """The section in which each cell begins."""
        here, found = Place("the chapter", ""), []
        for cell in self.stored:
            found.append(here)
            if cell["cell_type"] == "markdown":
                for heading in re.findall(r"^#{2,3} (.+)$", cell["source"], re.M):
                    here = place(heading)
        return found

    def outputs(self):
        """Each output with its cell and the cell's place."""
        for cell, where in zip(self.stored, self.places, strict=True):
            for output in cell.get("outputs", []):
                yield cell, where, output

    def texts(self):
        """Each cell of Markdown and its place, which a heading in it may change."""
        for cell, where in zip(self.stored, self.places, strict=True):
            if cell["cell_type"] == "markdown":
                yield cell["source"], where

    def code_cells(self):
        for cell, where in zip(self.stored, self.places, strict=True):
            if cell["cell_type"] == "code" and not cell["tags"] & HIDDEN:
                yield cell, where

    @cached_property
    def figures(self) -> list[Found]:
        found = []
        for _, where, output in self.outputs():
            html = "".join(output.get("data", {}).get("text/html", ""))
            if html.startswith("<figure"):
                found.append(figure(html, where, self.address))
        return found

    @cached_property
    def equations(self) -> list[Found]:
        found = []
        for source, where in self.texts():
            for match in re.finditer(r"\$\$(.+?)\$\$", source, re.S):
                if tag := re.search(r"\\tag\{(.+?)\}", match[1]):
                    here = last_place(source[: match.start()], where)
                    html = f'<div class="math" data-tag="{tag[1]}">\\[{escape(match[1])}\\]</div>'
                    found.append(Found((tag[1],), Part(html, here)))
        return found

    @cached_property
    def codes(self) -> list[Found]:
        """Everything that a cell defines, and what a printed listing defines."""
        found = []
        for cell, where in self.code_cells():
            listings = [plain(o) for o in cell["outputs"] if "listing" in cell["tags"]]
            for source in [cell["source"], *listings]:
                for name, lines in definitions(source):
                    found.append(Found((name,), Part(code(lines), where)))
        return found

    @cached_property
    def cells(self) -> list[Found]:
        return [
            Found((cell["source"],), Part(code(cell["source"]), where))
            for cell, where in self.code_cells()
        ]

    @cached_property
    def prints(self) -> list[Found]:
        return [
            Found((text,), Part(f'<div class="print"><pre>{escape(text)}</pre></div>', where))
            for cell, where, output in self.outputs()
            if output["output_type"] in ("stream", "execute_result")
            and (text := plain(output).rstrip())
            and not cell["tags"] & HIDDEN
        ]

    @cached_property
    def claims(self) -> list[Found]:
        found = []
        for _, _, output in self.outputs():
            if facts := output.get("data", {}).get(CLAIM):
                html = "".join(output["data"]["text/html"])
                where = Place("the claim in the chapter", facts["anchor"])
                called = (facts["says"], facts["paper"], facts["anchor"])
                found.append(Found(called, Part(card(html), where)))
        return found

    @cached_property
    def tables(self) -> list[Found]:
        found = []
        for source, where in self.texts():
            for match in re.finditer(r"(?:^\|.*\|[ \t]*$\n?){3,}", source, re.M):
                here = last_place(source[: match.start()], where)
                found.append(Found((match[0],), Part(self.markdown(match[0]), here)))
        return found

    @cached_property
    def exercises(self) -> list[Found]:
        found = []
        for source, where in self.texts():
            if match := re.match(r"\*\*Exercise ([\w.]+)\*\*", source):
                words = source.split("<details")[0].strip()
                html = f'<div class="exercise">{self.markdown(words)}</div>'
                found.append(Found((match[1],), Part(html, where)))
        return found


def names(found: Found, reference: Reference) -> bool:
    """Whether the reference calls this candidate, in the way of its kind."""
    words = " ".join(reference.words.split())
    called = [" ".join(name.split()) for name in found.names]
    if reference.kind == "figure":
        return called[0].startswith(words)
    if reference.kind == "claim":
        return called[0].startswith(words) or words in called[1:]
    if reference.kind in ("cell", "print", "table"):
        return words in called[0]
    return words == called[0]


def markdown(link):
    """A function from Markdown to HTML; `link` makes addresses fit the page."""
    parser = MarkdownIt("commonmark", {"html": True}).enable("table").use(dollarmath_plugin)

    def math(self, tokens, place, options, env):
        return f'<span class="math">\\({escape(tokens[place].content)}\\)</span>'

    def opened(self, tokens, place, options, env):
        tokens[place].attrSet("href", link(tokens[place].attrGet("href")))
        return self.renderToken(tokens, place, options, env)

    parser.add_render_rule("math_inline", math)
    parser.add_render_rule("link_open", opened)
    return parser.render


def figure(html: str, where: Place, address: str) -> Found:
    """The picture of a figure with its caption. Sliders stay; other viewers stand still, and the
    deck leads to where they live."""
    soup = BeautifulSoup(html, "html.parser")
    outer, caption, images = soup.figure, soup.figcaption, soup.find_all("img")
    words = caption.get_text() if caption else images[0]["alt"]
    for image in images:
        del image["style"]
    kept = {name: outer[name] for name in ("data-frames", "data-alts") if outer.has_attr(name)}
    classes = "attn-figure attn-frames" if kept else "attn-figure"
    facts = "".join(f' {name}="{escape(value)}"' for name, value in kept.items())
    sliders = "".join(str(slider) for slider in soup.select(".attn-sliders"))
    true = "true-colors " if soup.select_one(".true-colors") else ""
    wide = max(int(image["width"]) / int(image["height"]) for image in images)
    pictures = "".join(
        f'<div class="{true}picture attn-wide" style="--ratio:{image["width"]}/{image["height"]}">'
        f"{image}</div>"
        for image in images
    )
    said, live = words, ""
    if soup.select_one(".attn-live"):
        said = " ".join(sentence for sentence in sentences(words) if not ASKS.match(sentence))
        live = f' <a href="{address}#{where.anchor}">Live in the chapter.</a>'
    shown = (
        f'<figure class="{classes}"{facts}>{pictures}{sliders}'
        f"<figcaption>{escape(opening(said))}{live}</figcaption></figure>"
    )
    more = words if opening(said) != words else ""
    return Found((words,), Part(shown, where, wide < SQUARE, more))


def moved(part: Part, state: str) -> Part:
    """A figure with sliders that begins where the words of its picture have `state` in them."""
    soup = BeautifulSoup(part.html, "html.parser")
    words = json.loads(soup.figure.get("data-alts", "[]"))
    frames = [number for number, text in enumerate(words) if state in text]
    if not frames:
        raise SlideError(f"no state {state!r} of the figure; there are: {words}")
    number = frames[0]
    soup.img["src"] = "data:image/png;base64," + json.loads(soup.figure["data-frames"])[number]
    soup.img["alt"] = words[number]
    for slider in reversed(soup.find_all("input")):  # the last slider moves fastest
        number, value = divmod(number, int(slider["max"]) + 1)
        slider["value"] = value
        said = json.loads(slider["data-values"])[value]
        slider["aria-valuetext"] = slider.find_next_sibling("output").string = said
    return replace(part, html=str(soup))


def opening(caption: str, room: int = 190) -> str:
    """The first sentences of a caption that fit on a slide."""
    kept = ""
    for sentence in sentences(caption):
        if kept and len(kept) + len(sentence) > room:
            break
        kept = f"{kept} {sentence}".strip()
    return kept


def sentences(caption: str) -> list[str]:
    return re.split(r"(?<=[.?!])\s+", caption)


def code(source: str) -> str:
    shown = highlight(source.strip("\n"), PythonLexer(), HtmlFormatter(cssclass="highlight"))
    return f'<div class="code">{shown}</div>'


def definitions(source: str):
    """Name and lines of each function, class and assignment at the top of a source."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return
    lines = source.splitlines()
    for node in tree.body:
        named = [getattr(node, "name", None)]
        if isinstance(node, ast.Assign):
            named = [target.id for target in node.targets if isinstance(target, ast.Name)]
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        for name in filter(None, named):
            yield name, "\n".join(lines[first - 1 : node.end_lineno])


def card(html: str) -> str:
    """A stored claim without the styles that it carries for readers of the notebook; its parts
    in groups, and what the marks of a measurement mean said once."""
    soup = BeautifulSoup(html, "html.parser")
    for tag in soup.find_all(style=True):
        del tag["style"]
    del soup.div["id"]
    for old in soup.find_all("svg"):
        old["preserveaspectratio"] = "xMinYMid"
    legends = soup.find_all("small")
    for legend in legends:
        legend.find_previous_sibling("br").decompose()
        legend.extract()
    for term in soup.find_all("dt"):
        group = soup.new_tag("div", attrs={"class": "group"})
        term.insert_before(group)
        parts = [term]
        while (follower := parts[-1].find_next_sibling()) and follower.name == "dd":
            parts.append(follower)
            group["class"] = "group several" if len(parts) > 3 else "group"
            if parts[-1].find_next_sibling() is None:
                break
        for part in parts:
            group.append(part.extract())
    if legends:
        soup.div.append(legends[0])
    return str(soup)


def place(heading: str) -> Place:
    """The section that a heading begins, with the name that the site gives its anchor."""
    title = re.sub(r"[`$*]", "", heading).strip()
    return Place(title, make_id(title))


def last_place(text: str, where: Place) -> Place:
    headings = re.findall(r"^#{2,3} (.+)$", text, re.M)
    return place(headings[-1]) if headings else where


def plain(output: dict) -> str:
    return "".join(output.get("text") or output.get("data", {}).get("text/plain", ""))
