"""A line that offers the book as a PDF, where `make pdf` has written one."""

from book_data import ROOT

PDF = ROOT / "_build" / "html" / "book.pdf"


def pdf_link(link) -> str:
    if not PDF.exists():
        return ""
    size = PDF.stat().st_size / 1e6
    return f'<p>The whole book as one file: <a href="../book.pdf">PDF, {size:.1f} MB</a>.</p>'
