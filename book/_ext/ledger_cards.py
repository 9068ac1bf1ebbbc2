"""The ledger: every claim that a chapter tests, read from the stored outputs of the notebooks."""

from html import escape

from book_data import notebooks


def ledger_cards(link) -> str:
    found = [(book, claim) for book in notebooks() for claim in book.claims]
    if not found:
        return "<p>No chapter has stored a claim yet.</p>"
    return "".join(card(book, claim, link) for book, claim in found)


def card(book, claim, link) -> str:
    return f"<p>{escape(str(claim))}</p>"
