"""The table of papers is complete, consistent and readable without torch."""

import collections
import csv
import dataclasses
import re
import subprocess
import sys

import pytest

from attnlib import papers

PAPERS = papers.load()
SOURCES = [paper for paper in PAPERS.values() if paper.kind != "K"]
CANONICAL = [paper for paper in PAPERS.values() if paper.kind == "K"]

# The chapters of the book with the number of source papers that each treats.
CHAPTERS = {
    "1-foundations/soft-lookup": 11,
    "1-foundations/sets-graphs-events": 10,
    "1-foundations/scores-and-positions": 11,
    "1-foundations/exact-and-cached": 9,
    "2-weights/beyond-softmax": 8,
    "2-weights/rank-and-entropy": 6,
    "3-linear/feature-maps": 10,
    "3-linear/recurrent-and-chunked": 7,
    "3-linear/convolutions-and-gates": 7,
    "4-sinks/where-sinks-come-from": 4,
    "4-sinks/living-with-sinks": 4,
    "5-heads/roles-and-circuits": 11,
    "5-heads/pruning-and-mixing": 9,
    "5-heads/mixtures-of-heads": 6,
    "5-heads/expert-routing": 10,
    "5-heads/multi-task-experts": 7,
    "6-sparse/content-routing": 8,
    "6-sparse/estimated-sparsity": 7,
    "6-sparse/token-budgets": 5,
    "7-memory/icl-as-learning": 6,
    "7-memory/test-time-memory": 7,
    "7-memory/episodic-memory": 7,
    "8-vision/windows-and-neighbourhoods": 10,
    "8-vision/channel-and-spatial-gates": 10,
    "8-vision/dense-prediction": 8,
    "8-vision/pooling-and-probing": 8,
    "9-crossmodal/masks-and-routes": 8,
    "9-crossmodal/fusion-blocks": 10,
    "9-crossmodal/grounding": 7,
    "9-crossmodal/diffusion-control": 12,
    "9-crossmodal/hallucination-lab": 12,
    "10-reading/attribution": 7,
    "10-reading/faithful-attention": 6,
    "10-reading/layers-bias-transfer": 8,
    "11-minds/gaze-and-search": 7,
    "11-minds/brains-and-workspaces": 9,
    "0-context/appendix": 41,
}


def test_the_333_source_papers_are_all_there():
    assert [paper.number for paper in SOURCES] == list(range(1, 334))


def test_every_chapter_has_its_source_papers():
    assert collections.Counter(paper.chapter for paper in SOURCES) == CHAPTERS


def test_canonical_works_belong_to_a_chapter_of_the_book():
    assert {paper.chapter for paper in CANONICAL} <= set(CHAPTERS)


def test_keys_are_unique_and_fit_in_an_address():
    with papers.TABLE.open(encoding="utf-8", newline="") as table:
        keys = [row["key"] for row in csv.DictReader(table)]
    assert len(keys) == len(set(keys)) == len(PAPERS)
    assert [key for key in keys if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", key)] == []


def test_no_paper_is_listed_twice():
    titles = collections.Counter(paper.title.lower() for paper in PAPERS.values())
    assert [title for title, times in titles.items() if times > 1] == []
    identifiers = collections.Counter(
        paper.identifier for paper in PAPERS.values() if paper.identifier
    )
    assert [name for name, times in identifiers.items() if times > 1] == []


def test_kinds_and_levels_are_known():
    assert {paper.kind for paper in PAPERS.values()} == set(papers.KINDS)
    assert {paper.level for paper in SOURCES} == {"core", "standard", "aside"}
    assert {paper.level for paper in CANONICAL} == {"canonical"}


def test_every_paper_says_what_it_is_in_one_line():
    assert [paper.key for paper in PAPERS.values() if not paper.title] == []
    too_long = [paper.key for paper in PAPERS.values() if not 0 < len(paper.mechanism) <= 160]
    assert too_long == []


def record(paper):
    return (paper.authors, paper.year, paper.venue, paper.identifier)


def test_canonical_works_have_a_complete_record():
    assert [paper.key for paper in CANONICAL if not all(record(paper))] == []
    assert len(CANONICAL) >= 50


def test_a_record_is_complete_or_empty():
    half = [paper.key for paper in SOURCES if any(record(paper)) and not all(record(paper))]
    assert half == []


def test_papers_of_the_first_chapter_have_a_record():
    first = [paper for paper in SOURCES if paper.chapter == "1-foundations/soft-lookup"]
    assert [paper.key for paper in first if not all(record(paper))] == []


def test_identifiers_lead_to_an_address():
    known = re.compile(r"arXiv:\d{4}\.\d{4,5}|doi:10\.\S+/\S+|https://\S+")
    found = [paper for paper in PAPERS.values() if paper.identifier]
    assert [paper.key for paper in found if not known.fullmatch(paper.identifier)] == []
    assert all(paper.url.startswith("https://") for paper in found)


def test_a_paper_is_not_older_than_its_arxiv_number():
    for paper in PAPERS.values():
        if paper.identifier.startswith("arXiv:"):
            assert paper.year >= 2000 + int(paper.identifier[6:8]), paper.key


def test_a_canonical_key_names_the_first_author_and_the_year():
    for paper in CANONICAL:
        name = papers.family_name(paper.authors[0]).split()[-1].lower()
        assert str(paper.year) in paper.key, paper.key
        plain = name.replace("č", "c").replace("ć", "c").removesuffix("-ai")
        assert paper.key.startswith(plain), paper.key


@pytest.mark.parametrize(
    ("key", "cite"),
    [
        ("dao-2024", "Dao (2024)"),
        ("attention-marginal-probability", "Singh and Buckley (2023)"),
        ("vaswani-2017", "Vaswani et al. (2017)"),
        ("oord-2018", "van den Oord et al. (2018)"),
        ("elhage-2021", "Elhage et al. (2021)"),
    ],
)
def test_a_citation_names_the_authors_and_the_year(key, cite):
    assert PAPERS[key].cite == cite


def test_a_paper_without_a_record_is_cited_by_its_title():
    paper = dataclasses.replace(PAPERS["bidaf"], authors=(), year=None, identifier="")
    assert paper.cite == "Bidirectional Attention Flow for Machine Comprehension"
    assert paper.url == ""


def test_an_anchor_is_made_from_the_key():
    assert PAPERS["vaswani-2017"].anchor == "vaswani-2017"


def test_an_unknown_key_names_the_nearest_one():
    with pytest.raises(KeyError, match=r"vaswany-2017.*vaswani-2017"):
        PAPERS["vaswany-2017"]


def test_the_table_loads_by_file_path_and_without_torch():
    program = (
        "import importlib.util, sys;"
        f"spec = importlib.util.spec_from_file_location('papers', {papers.__file__!r});"
        "module = importlib.util.module_from_spec(spec);"
        "spec.loader.exec_module(module);"
        "assert len(module.load()) > 333;"
        "assert 'torch' not in sys.modules and 'attnlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
