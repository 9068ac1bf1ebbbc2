"""The card of a claim, drawn from the object that the ledger stores (attnlib/ledger.py).

One output in four forms: HTML (the class `attn-claim` belongs to the book's style; the small inline
styles serve JupyterLab, Colab and GitHub), Markdown, plain text, and the object itself.
"""

import textwrap
from html import escape

from attnlib.ledger import MIME, number

# Okabe and Ito's palette; the sign and the words say the same without color.
COLORS = {
    "holds": "#009e73",
    "holds in part": "#e69f00",
    "not reproduced at this scale": "#d55e00",
    "not testable here": "#777777",
    None: "#0072b2",
}
FRAME = (
    "border:1px solid rgba(128,128,128,.4);border-left:5px solid {color};border-radius:4px;"
    "padding:.6em 1em;margin:1em 0;max-width:42em;overflow-wrap:anywhere;line-height:1.5"
)
LABEL = "margin:.5em 0 0;font-size:.8em;font-weight:600;letter-spacing:.02em"
TEXT = "margin:0"


def show(facts: dict) -> None:
    """Displays the card; prints it where there is no IPython."""
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        get_ipython = None
    if get_ipython is None or get_ipython() is None:
        print(plain(facts))
    else:
        display(mime_bundle(facts), raw=True)


def mime_bundle(facts: dict) -> dict:
    """All forms of the card."""
    return {
        "text/html": html(facts),
        "text/markdown": markdown(facts),
        "text/plain": plain(facts),
        MIME: facts,
    }


def verdict_words(facts: dict) -> str:
    """The verdict in words; an illustration says what it is."""
    return facts["verdict"] or "illustration, no verdict"


def fields(facts: dict) -> list[tuple[str, list[str]]]:
    """The separate fields of the card: label and lines."""
    rows = [
        ("The paper says", [facts["says"]]),
        ("We test" if facts["verdict"] else "We show", [facts["tests"]]),
    ]
    if facts["parts"]:
        signs = {True: "● ", False: "○ ", None: ""} if len(facts["parts"]) > 1 else {}
        lines = [signs.get(part["holds"], "") + part["measured"] for part in facts["parts"]]
        rows.append(("We measured" if facts["verdict"] else "We find", lines))
    if facts["reason"]:
        rows.append(("Why", [facts["reason"]]))
    return rows


def source(facts: dict) -> str:
    """Author, year and place in the paper."""
    return f"{facts['citation']}, {facts['where']}" if facts["where"] else facts["citation"]


def html(facts: dict) -> str:
    """The card as HTML: a head with sign, verdict and source, then the fields as a list."""
    color, words = COLORS[facts["verdict"]], verdict_words(facts)
    cited = escape(source(facts))
    if facts["link"]:
        cited = f'<a href="{escape(facts["link"])}">{escape(facts["citation"])}</a>'
        cited += f", {escape(facts['where'])}" if facts["where"] else ""
    kind = f' <span class="attn-claim-type">({facts["type"]})</span>' if facts["verdict"] else ""
    kind = kind if facts["type"] else ""
    rows = []
    for label, lines in fields(facts):
        rows.append(f'<dt style="{LABEL}">{label}</dt>')
        parts = facts["parts"] if label == "We measured" else [{"kind": "words"}] * len(lines)
        for line, part in zip(lines, parts, strict=True):
            drawn = "<br>" + strip(part) if part["kind"] == "behaviour" else ""
            rows.append(f'<dd style="{TEXT}">{escape(line)}{drawn}</dd>')
    return (
        f'<div class="attn-claim" id="{escape(facts["anchor"])}" role="group" '
        f'aria-label="Claim of {escape(facts["citation"])}: {words}" '
        f'data-verdict="{words}" style="{FRAME.format(color=color)}">'
        f'<div class="attn-claim-head"><span aria-hidden="true">{facts["symbol"]}</span>'
        f' <strong class="attn-claim-verdict">{words}</strong>{kind}'
        f' · <cite class="attn-claim-source">{cited}</cite></div>'
        f'<dl style="margin:0">{"".join(rows)}</dl></div>'
    )


def strip(part: dict) -> str:
    """The effects of the seeds as dots on a line with its zero; squares are the control."""
    control = part["control"] or []
    low, high = min([0, *part["effects"], *control]), max([0, *part["effects"], *control])
    width = (high - low) or 1.0

    def place(value: float) -> float:
        return round(10 + 280 * (value - low) / width, 1)

    marks = [f'<circle cx="{place(v)}" cy="9" r="4" fill="currentColor"/>' for v in part["effects"]]
    marks += [
        f'<rect x="{place(v) - 3.5:.1f}" y="18.5" width="7" height="7" fill="none" '
        'stroke="currentColor"/>'
        for v in control
    ]
    words = f"{len(part['effects'])} seeds from {number(min(part['effects']))} to "
    words += number(max(part["effects"]))
    if control:
        words += f"; control from {number(min(control))} to {number(max(control))}"
    legend = "dots: seeds" + ("; squares: negative control" if control else "") + "; bar: zero"
    zero = place(0)
    return (
        f'<svg viewBox="0 0 300 30" width="300" height="30" role="img" aria-label="{words}" '
        'style="max-width:100%;height:auto">'
        f'<path d="M10 {14 if control else 9}H290M{zero} 2V28" stroke="currentColor" '
        f'stroke-opacity=".45" fill="none"/>{"".join(marks)}</svg>'
        f"<br><small>{legend}</small>"
    )


def markdown(facts: dict) -> str:
    """The card as a quoted block of Markdown."""
    kind = f" ({facts['type']})" if facts["verdict"] and facts["type"] else ""
    cited = f"[{source(facts)}]({facts['link']})" if facts["link"] else source(facts)
    blocks = [f"{facts['symbol']} **{verdict_words(facts)}**{kind} · {cited}"]
    blocks += [f"**{label}.** " + "; ".join(lines) for label, lines in fields(facts)]
    return "\n>\n".join(f"> {block}" for block in blocks)


def plain(facts: dict) -> str:
    """The card as plain text, 76 columns wide."""
    kind = f" ({facts['type']})" if facts["verdict"] and facts["type"] else ""
    lines = [f"{facts['symbol']} {verdict_words(facts)}{kind} · {source(facts)}"]
    for label, texts in fields(facts):
        for text in texts:
            lines.append(textwrap.fill(f"{label}: {text}", 76, subsequent_indent="    "))
    return "\n".join(lines)
