"""Minutes of a reader, seconds and megabytes of a machine, for every notebook."""

from html import escape

from book_data import notebooks

COLUMNS = ("notebook", "reading (minutes)", "running (seconds)", "memory (MB)", "file (KB)")


def budget_table(link) -> str:
    rows = "".join(row(notebook, link) for notebook in notebooks())
    heads = "".join(f'<th scope="col">{head}</th>' for head in COLUMNS)
    return (
        '<div class="table-wrapper" tabindex="0" role="region" aria-label="Budget">'
        f'<table class="numbers"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def row(notebook, link) -> str:
    facts = notebook.facts
    cells = "".join(
        f"<td>{number(value)}</td>"
        for value in (facts.get("minutes"), facts.get("seconds"), facts.get("memory_mb"))
    )
    return (
        f'<tr><th scope="row"><a href="{link(notebook.page)}">{escape(notebook.title)}</a></th>'
        f"{cells}<td>{notebook.weight / 1000:.0f}</td></tr>"
    )


def number(value) -> str:
    return "not measured" if value is None else f"{value:.0f}"
