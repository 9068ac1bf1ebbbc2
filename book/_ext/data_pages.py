"""Directives that write pages from data: map, atlas, ledger, kernels, sources, a course.

Each is one line in a page of the book, such as `{atlas-map}`, and becomes plain HTML when the site
is built. Pages that use one are built anew each time, because their data may have changed.
"""

from atlas_map import atlas_map
from atlas_table import chapter_list, mechanism_table, paper_table
from budget_table import budget_table
from course_tables import assignment_table, syllabus_table
from docutils import nodes
from kernel_results import kernel_results
from ledger_cards import ledger_cards
from pdf_link import pdf_link
from sources_list import source_anchors, sources_list
from sphinx.util.docutils import SphinxDirective

PAGES = {
    "atlas-map": atlas_map,
    "atlas-table": mechanism_table,
    "paper-table": paper_table,
    "chapter-list": chapter_list,
    "ledger-cards": ledger_cards,
    "budget-table": budget_table,
    "syllabus-table": syllabus_table,
    "assignment-table": assignment_table,
    "kernel-results": kernel_results,
    "sources-list": sources_list,
    "pdf-link": pdf_link,
}


def setup(app):
    for name, writer in PAGES.items():
        app.add_directive(name, directive(writer))
    app.connect("env-get-outdated", pages_with_data)
    app.connect("doctree-read", announce_anchors)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def directive(writer):
    """A directive whose content is the HTML that `writer(link)` returns."""

    class DataDirective(SphinxDirective):
        def run(self):
            here = self.env.docname
            self.env.metadata[here]["made-from-data"] = "yes"

            def link(page, anchor=""):
                address = self.env.app.builder.get_relative_uri(here, page)
                return f"{address}#{anchor}" if anchor else address

            return [nodes.raw("", writer(link), format="html")]

    return DataDirective


def pages_with_data(app, env, added, changed, removed):
    return [page for page in env.found_docs if "made-from-data" in env.metadata[page]]


def announce_anchors(app, doctree):
    """Let Markdown links such as `sources.md#vaswani-2017` find the entries written as HTML."""
    env = app.env
    if env.docname == "book/sources":
        slugs = env.metadata[env.docname].setdefault("myst_slugs", {})
        slugs.update({key: (0, key, text) for key, text in source_anchors().items()})
