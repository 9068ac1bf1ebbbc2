"""The grid viewer, in static HTML and in a real browser."""

import numpy as np
import pytest
import torch

from attnlib import figures
from attnlib.figures.grid_viewer import laid_out
from attnlib.support import causal, window

WORDS = {"caption": "c", "alt": "the keys of one query"}
# Place i of a 2 x 3 grid sees itself and the place below it.
BELOW = torch.eye(6, dtype=torch.bool) | torch.diag(torch.ones(3), 3).bool()


def test_the_viewer_is_self_contained_and_repeats(shown):
    figures.grid_viewer({"below": BELOW, "causal": causal}, (2, 3), **WORDS)
    (output,) = shown
    assert set(output) == {"text/html", "text/plain"}
    markup = output["text/html"]
    assert "http" not in markup.replace("http://www.w3.org/2000/svg", "")
    assert markup == figures.grid_viewer_html({"below": BELOW, "causal": causal}, (2, 3), **WORDS)


@pytest.mark.parametrize(
    ("supports", "grid", "start", "message"),
    [
        ({}, (4,), None, "supports: it is empty"),
        (np.ones((4, 4)), (4,), None, r"a bool table \(4, 4\), got float64"),
        (np.ones((3, 3), dtype=bool), (4,), None, r"got bool \(3, 3\)"),
        (causal, (2, 2, 2, 2), None, "expected one to three sizes"),
        (causal, (0, 4), None, "expected one to three sizes"),
        (causal, (33, 32), None, "1024 places at most"),
        (causal, (4, 4), (4, 0), r"expected row, column below \(4, 4\)"),
        (causal, (4, 4), (1,), "expected row, column"),
        ({str(k): window(9) for k in range(3)}, (32, 32), None, "show fewer supports"),
    ],
)
def test_the_viewer_refuses_what_it_cannot_show(supports, grid, start, message):
    with pytest.raises(ValueError, match=message):
        figures.grid_viewer_html(supports, grid, start=start, **WORDS)


def test_frames_lie_side_by_side_and_long_lines_are_broken():
    places, begins = laid_out((2, 2, 2))
    assert places.tolist() == [[0, 1, -1, 4, 5], [2, 3, -1, 6, 7]] and begins == [0, 3]
    assert laid_out((48,))[0].shape == (2, 24)
    assert laid_out((33,))[0].tolist()[1] == [*range(17, 33), -1]


def lit(page):
    return page.evaluate(
        "[...document.querySelectorAll('rect')].map((r, n) => [n, r]).filter(([n, r]) =>"
        "r.classList.contains('attn-lit')).map(([n, r]) => r.getAttribute('x') + ','"
        "+ r.getAttribute('y')).sort()"
    )


def test_a_click_and_the_arrow_keys_choose_the_query(page):
    markup = figures.grid_viewer_html(
        {"below": BELOW, "all": torch.ones(6, 6).bool()}, (2, 3), start=(0, 0), **WORDS
    )
    page.set_content(markup)
    said = page.locator(".attn-said")
    assert lit(page) == ["0,0", "0,1"]
    assert "row 0, column 0 sees 2 of 6 keys" in said.inner_text()
    assert "9 of 36 pairs (25.0 %)" in said.inner_text()
    page.locator("rect[x='2'][y='0']").click()
    assert lit(page) == ["2,0", "2,1"]
    page.locator(".attn-places").focus()
    page.keyboard.press("ArrowDown")
    assert lit(page) == ["2,1"] and "row 1, column 2 sees 1 of 6" in said.inner_text()
    page.keyboard.press("ArrowDown")  # there is no row below
    assert lit(page) == ["2,1"]
    page.get_by_role("button", name="all").click()
    assert len(lit(page)) == 6
    assert page.get_by_role("button", name="all").get_attribute("aria-pressed") == "true"


def test_the_words_that_are_read_are_said(page):
    words = ["the", "cat", "sat"]
    page.set_content(figures.grid_viewer_html(causal, (3,), start=(1,), names=words, **WORDS))
    assert "place 1 (cat) sees 2 of 3 keys: the, cat." in page.locator(".attn-said").inner_text()
    with pytest.raises(ValueError, match="names: got 3 words, expected one for each of 4"):
        figures.grid_viewer_html(causal, (4,), names=words, **WORDS)


def test_frames_of_a_video_are_told_apart(page):
    same_frame = torch.block_diag(*[torch.ones(4, 4)] * 3).bool()
    page.set_content(figures.grid_viewer_html(same_frame, (3, 2, 2), start=(1, 0, 1), **WORDS))
    assert page.locator(".attn-panel").count() == 3
    assert page.locator(".attn-panel").nth(1).locator(".attn-lit").count() == 4
    page.locator(".attn-places").focus()
    page.keyboard.press("PageDown")
    assert page.locator(".attn-panel").nth(2).locator(".attn-lit").count() == 4
    assert "frame 2, row 0, column 1" in page.locator(".attn-said").inner_text()
