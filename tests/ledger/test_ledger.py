"""The rules of the ledger, and the card in all its forms."""

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from attnlib import claim_card, ledger
from attnlib.ledger import ClaimError, behaviour, claim, identity, illustration, judged, verdict_of

CORE = "vaswani-2017"


def paper_of_level(level):
    from attnlib.papers import load

    return next(key for key, paper in load().items() if paper.level == level)


def judge(measured=(), verdict=None, reason=None, paper=None):
    return judged(paper or CORE, "says", "tests", measured, verdict, "section 3", reason)


SHOWN = behaviour([0.4, 0.5, 0.45], control=[0.01, -0.02, 0.0], of="gap")
EXACT = identity(1e-15, tolerance=1e-12)
WRONG = identity(1e-3, tolerance=1e-12)


def test_identity_holds_up_to_its_tolerance_and_not_beyond():
    assert identity(1e-12, tolerance=1e-12).holds
    assert not identity(1.1e-12, tolerance=1e-12).holds


@pytest.mark.parametrize("one", [0.5, np.float32(0.5), torch.tensor(0.5), torch.tensor([0.5])])
def test_scalars_of_every_library_are_taken(one):
    assert identity(one, tolerance=1).error == 0.5


@pytest.mark.parametrize(
    ("effects", "expect", "shown"),
    [
        ([0.4, 0.5, 0.45], "positive", True),
        ([-0.4, -0.5, -0.45], "positive", False),
        ([-0.4, -0.5, -0.45], "negative", True),
        ([0.4, 0.5, -0.01], "positive", False),  # one seed on the other side
        ([0.9, 0.1, 0.4], "positive", False),  # all on one side, yet mean 0.47 < 2 x spread 0.40
        ([0.0, 0.0, 0.0], "positive", False),  # zero lies on no side
    ],
)
def test_behaviour_needs_every_seed_on_one_side_and_a_gap_above_twice_the_spread(
    effects, expect, shown
):
    assert behaviour(effects, of="gap", expect=expect).shown is shown


def test_behaviour_fails_when_its_control_shows_the_effect():
    assert SHOWN.holds
    assert not behaviour([0.4, 0.5, 0.45], control=[0.3, 0.35, 0.32], of="gap").holds


def test_a_small_steady_offset_of_the_control_is_no_effect():
    assert behaviour([0.4, 0.5, 0.45], control=[1e-4, 1.1e-4, 0.9e-4], of="gap").holds


def test_spread_is_the_sample_standard_deviation():
    assert behaviour([1, 2, 3], of="gap").spread == 1.0


@pytest.mark.parametrize(
    ("parts", "verdict"),
    [
        ([EXACT, SHOWN], "holds"),
        ([EXACT, WRONG], "holds in part"),
        ([WRONG], "not reproduced at this scale"),
        ([], "not testable here"),
        ([illustration(0.9, "share")], None),
    ],
)
def test_verdict_follows_from_the_parts(parts, verdict):
    assert verdict_of(tuple(parts)) == verdict
    assert judge(parts, verdict, reason="because").verdict == verdict


def test_a_verdict_that_the_data_do_not_give_raises_and_says_why():
    with pytest.raises(ClaimError, match=r"the data say 'holds in part'\n.*above the tolerance"):
        judge([EXACT, WRONG], "holds")
    with pytest.raises(ClaimError, match="the data say 'holds'"):
        judge(EXACT, "not reproduced at this scale")


@pytest.mark.parametrize("level", ["core", "standard", "canonical"])
def test_a_behaviour_of_a_central_paper_needs_a_negative_control(level):
    bare = behaviour([0.4, 0.5, 0.45], of="gap")
    with pytest.raises(ValueError, match="negative control"):
        judge(bare, "holds", paper=paper_of_level(level))
    assert judge(bare, "holds", paper=paper_of_level("aside")).verdict == "holds"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: behaviour([1, 2], of="gap"), "at least 3 seeds, got 2"),
        (lambda: behaviour([1, 2, float("nan")], of="gap"), "finite"),
        (lambda: behaviour([1, 2, 3], of="gap", expect="up"), "'positive' or 'negative'"),
        (lambda: identity(-1.0, tolerance=1), ">= 0"),
        (lambda: identity(float("inf"), tolerance=1), "finite"),
        (lambda: judge(EXACT, "true"), "expected one of holds"),
        (lambda: judge((), "not testable here"), "reason"),
        (lambda: judge(illustration(1, "x"), "holds"), "an illustration has none"),
        (lambda: judge([illustration(1, "x"), EXACT], "holds"), "cannot be mixed"),
    ],
)
def test_wrong_input_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


def test_wrong_types_are_named():
    with pytest.raises(TypeError, match="expected one number"):
        identity(torch.zeros(2), tolerance=1)
    with pytest.raises(TypeError, match="got float"):
        judge([0.5], "holds")


def test_an_unknown_paper_is_refused():
    with pytest.raises(KeyError, match="vaswani-2017"):
        judge(EXACT, "holds", paper="vaswani-2071")


class Tags(HTMLParser):
    """Checks that tags are balanced and collects the words."""

    def __init__(self, text):
        super().__init__()
        self.open, self.words = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag != "br":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


@pytest.mark.parametrize(
    "arguments",
    [
        {"measured": [EXACT, SHOWN], "verdict": "holds"},
        {"measured": [EXACT, WRONG], "verdict": "holds in part", "reason": "a < b & c"},
        {"measured": illustration("blue", "the color"), "verdict": None},
        {"verdict": "not testable here", "reason": "it needs people"},
    ],
)
def test_every_form_of_the_card_tells_the_same(arguments):
    facts = judge(**arguments).facts()
    page = Tags(claim_card.html(facts))
    assert page.open == []
    for words in (page.words, claim_card.markdown(facts), claim_card.plain(facts)):
        flat = " ".join(words.split())
        for told in (facts["verdict"], facts["reason"], "Vaswani et al. (2017), section 3"):
            assert told is None or told in flat
        assert all(part["measured"] in flat for part in facts["parts"])
    assert max(map(len, claim_card.plain(facts).splitlines())) <= 78


def test_the_card_escapes_what_it_is_given():
    facts = judged(CORE, "<b>x</b>", "a & b", EXACT, "holds").facts()
    assert "&lt;b&gt;x&lt;/b&gt;" in claim_card.html(facts)


def test_signs_of_verdicts_differ_by_shape():
    assert len(set(ledger.SYMBOLS.values())) == len(ledger.SYMBOLS)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.12345, "0.123"),
        (-2.5, "−2.5"),
        (9.8e-4, "9.8 × 10⁻⁴"),
        (1e-12, "10⁻¹²"),
        (2.23e-16, "2.2 × 10⁻¹⁶"),
        (999.6, "1000"),
        (12345, "12345"),
        (1.5e7, "1.5 × 10⁷"),
    ],
)
def test_numbers_are_printed_with_few_digits(value, text):
    assert ledger.number(value) == text


def test_claims_are_read_back_from_a_notebook_with_the_standard_library_only():
    facts = judge([EXACT, SHOWN], "holds").facts()
    bundle = json.loads(json.dumps(claim_card.mime_bundle(facts)))
    cell = {"cell_type": "code", "id": "x-001", "outputs": [{"data": bundle}]}
    notebook = {"cells": [{"cell_type": "markdown", "source": ""}, cell]}
    code = (
        "import importlib.util, json, sys\n"
        "spec = importlib.util.spec_from_file_location('ledger', sys.argv[1])\n"
        "ledger = importlib.util.module_from_spec(spec); sys.modules['ledger'] = ledger\n"
        "spec.loader.exec_module(ledger)\n"
        "print(json.dumps(ledger.claims_of(json.load(sys.stdin))))\n"
        "assert 'torch' not in sys.modules and 'attnlib' not in sys.modules\n"
    )
    command = [sys.executable, "-c", code, str(Path(ledger.__file__))]
    done = subprocess.run(
        command, input=json.dumps(notebook), capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [{**facts, "cell": "x-001"}]


def test_outside_a_notebook_the_card_is_printed(capsys):
    claim(paper=CORE, says="says", tests="tests", measured=EXACT, verdict="holds")
    assert "● holds (identity) · Vaswani et al. (2017)" in capsys.readouterr().out


def test_a_wrong_verdict_shows_no_card(capsys):
    with pytest.raises(ClaimError):
        claim(paper=CORE, says="says", tests="tests", measured=WRONG, verdict="holds")
    assert capsys.readouterr().out == ""
