"""The ledger: every claim that a chapter tests, as the card that its notebook has stored."""

from html import escape

from atlas_table import choice, find_controls
from book_data import notebooks

VERDICTS = ("holds", "holds in part", "not reproduced at this scale", "not testable here")
ILLUSTRATION = "illustration, no verdict"


def ledger_cards(link) -> str:
    found = [(book, claim) for book in notebooks() for claim in book.claims]
    if not found:
        return "<p>No chapter has stored a claim yet.</p>"
    types = sorted({claim.facts["type"] for _, claim in found if claim.facts["type"]})
    controls = choice("verdict", [*VERDICTS, ILLUSTRATION]) + choice("type", types)
    cards = "".join(entry(book, claim, link) for book, claim in found)
    return (
        f"{summary([claim for _, claim in found])}"
        f'<div class="filtered" id="ledger-cards" data-rows=".ledger-entry">'
        f"{find_controls(controls)}{cards}</div>"
    )


def summary(claims) -> str:
    """How many claims have each verdict. Illustrations are shown and not counted."""
    counted = [verdict_words(claim) for claim in claims if claim.facts["verdict"]]
    counts = ", ".join(
        f"{verdict} <strong>{counted.count(verdict)}</strong>"
        for verdict in VERDICTS
        if verdict in counted
    )
    shown = len(claims) - len(counted)
    more = f" {shown} illustration{'s' * (shown != 1)} besides." if shown else ""
    return f'<p class="ledger-summary">{len(counted)} claims checked: {counts}.{more}</p>'


def verdict_words(claim) -> str:
    return claim.facts["verdict"] or ILLUSTRATION


def entry(book, claim, link) -> str:
    where = link(book.page, claim.facts["anchor"])
    return (
        f'<div class="ledger-entry" data-verdict="{escape(verdict_words(claim))}" '
        f'data-type="{claim.facts["type"] or ""}">{claim.card}'
        f'<p class="ledger-where">tested in <a href="{where}">{escape(book.title)}</a></p></div>'
    )
