"""Sliders and the attention viewer, in static HTML and in a real browser."""

import re

import numpy as np
import pytest
from matplotlib import pyplot as plt

from attnlib import figures

TOKENS = ["the", "cat", "<sat>", "on"]


def bar(height, base=0):
    figure, axes = plt.subplots(figsize=(2, 1.5))
    axes.bar([0], [height], bottom=base)
    axes.set(xlabel="key", ylabel="weight", ylim=(0, 5))
    return figure


@pytest.fixture
def static(monkeypatch):
    monkeypatch.setenv("ATTN_STATIC", "1")


def softmax(scores):
    weights = np.exp(scores)
    return weights / weights.sum(axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def weights():
    return softmax(np.random.default_rng(3).normal(size=(2, 3, 4, 4)) * 2)


def test_frames_are_one_static_output_with_a_text_for_each_frame(shown, static):
    words = "a bar of height {height} on {base}"
    figures.frames(bar, caption="c", alt=words, height=[1, 2], base=[0, 1, 2])
    (output,) = shown
    assert set(output) == {"text/html", "text/plain"}
    markup = output["text/html"]
    assert markup.count("<img") == 1 and "<script" not in markup
    assert not re.search(r"\sid=", markup)
    assert markup.count("a bar of height") == 6 + 1  # six in the data, one on the image
    assert not plt.get_fignums()


def test_frames_give_the_same_bytes_again(shown, static):
    for _ in range(2):
        figures.frames(bar, caption="c", alt="height {height}", height=[1, 2])
    assert shown[0] == shown[1]


def test_the_alternative_text_may_come_from_a_function_or_use_what_fn_says(shown, static):
    figures.frames(bar, caption="c", alt=lambda height: f"tall {height}", height=[1, 2])
    figures.frames(
        lambda height: (bar(height), f"double {2 * height}"),
        caption="c",
        alt="{text}",
        height=[1, 2],
    )
    assert 'alt="tall 1"' in shown[0]["text/html"]
    assert 'alt="double 2"' in shown[1]["text/html"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alt": "a bar", "height": [1, 2]}, "name the parameters"),
        ({"alt": "", "height": [1, 2]}, "alt: it is empty"),
        ({"alt": "{height}", "height": range(25)}, "25 frames, expected at most 24"),
        ({"alt": "{height}", "height": [1]}, "height: got 1 values"),
        ({"alt": "a"}, "got 0 parameters"),
    ],
)
def test_frames_refuse_what_a_page_cannot_carry(options, message):
    with pytest.raises(ValueError, match=message):
        figures.frames(bar, caption="c", **options)


def test_frames_refuse_too_many_bytes(static):
    def noise(seed):
        figure, axes = plt.subplots()
        axes.imshow(np.random.default_rng(seed).random((200, 200)))
        axes.set(xlabel="x", ylabel="y")
        return figure

    with pytest.raises(ValueError, match="KB, expected at most 150 KB"):
        figures.frames(noise, caption="c", alt="noise {seed}", seed=[0, 1, 2])


def test_a_slider_changes_picture_words_and_value_by_keyboard(page, shown, static):
    figures.frames(
        bar, caption="c", alt="height {height} base {base}", height=[1, 2], base=[0, 1, 0.5]
    )
    page.set_content(shown[0]["text/html"])
    image, (height, base) = page.locator("img"), page.locator("input").all()
    first = image.get_attribute("src")
    base.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert image.get_attribute("alt") == "height 1 base 0.5"
    assert base.get_attribute("aria-valuetext") == "0.5"
    assert page.locator("output").all_text_contents() == ["1", "0.5"]
    height.focus()
    page.keyboard.press("ArrowRight")
    assert image.get_attribute("alt") == "height 2 base 0.5"
    assert image.get_attribute("src") != first
    assert image.evaluate("i => i.decode().then(() => i.naturalWidth)") > 0
    height.fill("0")
    base.fill("0")
    assert image.get_attribute("src") == first


def test_a_live_kernel_also_gets_a_widget_that_draws_anew(shown, monkeypatch):
    monkeypatch.delenv("ATTN_STATIC", raising=False)
    monkeypatch.setattr("IPython.get_ipython", lambda: type("Shell", (), {"kernel": object()}))
    made = []
    import ipywidgets

    slider = ipywidgets.SelectionSlider
    monkeypatch.setattr(
        "ipywidgets.SelectionSlider", lambda **o: made.append(slider(**o)) or made[-1]
    )
    drawn = []

    def draw(height):
        drawn.append(height)
        return bar(height)

    figures.frames(draw, caption="c", alt="height {height}", height=[1, 2])
    assert set(shown[0]) == {
        "text/html",
        "text/plain",
        "application/vnd.jupyter.widget-view+json",
    }
    made[0].value = 2
    assert drawn == [1, 2, 2]


def test_the_viewer_is_self_contained_and_small(weights):
    markup = figures.viewer_html(weights, TOKENS, caption="c", alt="first head")
    assert not re.search(r"\sid=|https?://|src=\"(?!data:)", markup)
    assert markup.count("<sat>") == 0
    assert markup == figures.viewer_html(weights, TOKENS, caption="c", alt="first head")
    large = softmax(np.random.default_rng(0).normal(size=(8, 64, 64)))
    names = [str(i) for i in range(64)]
    assert len(figures.viewer_html(large, names, caption="c", alt="a")) < 80_000


@pytest.mark.parametrize(
    ("array", "tokens", "message"),
    [
        (np.ones((4, 4)), TOKENS, "got shape"),
        (-np.ones((1, 1, 4, 4)), TOKENS, "not negative"),
        (np.ones((1, 1, 4, 4)), TOKENS[:3], "tokens: got 3 tokens, expected 4"),
        (np.ones((1, 60, 64, 64)), ["a"] * 64, "expected at most 200 KB"),
    ],
)
def test_the_viewer_refuses_what_it_cannot_show(array, tokens, message):
    with pytest.raises(ValueError, match=message):
        figures.viewer_html(array, tokens, caption="c", alt="a")


def numbers_in_table(page):
    return [float(cell) for cell in page.locator("tbody td").all_text_contents()]


def test_the_viewer_walks_by_keyboard_and_its_table_tells_the_weights(page, weights):
    errors = []
    page.on("pageerror", lambda error: errors.append(error))
    page.set_content(figures.viewer_html(weights, TOKENS, caption="c", alt="a"))
    np.testing.assert_allclose(numbers_in_table(page), weights[0, 0, 2], atol=0.01)
    page.get_by_label("layer 1, head 1").focus()
    page.keyboard.press("ArrowDown")  # layer 2
    page.keyboard.press("ArrowRight")  # head 2
    page.locator(".attn-queries button[tabindex='0']").focus()
    page.keyboard.press("ArrowRight")
    np.testing.assert_allclose(numbers_in_table(page), weights[1, 1, 3], atol=0.01)
    page.keyboard.press("Home")
    np.testing.assert_allclose(numbers_in_table(page), weights[1, 1, 0], atol=0.01)
    most = TOKENS[int(weights[1, 1, 0].argmax())]
    said = page.locator(".attn-said").text_content()
    assert said.startswith(f"Layer 2, head 2: query 0 “the” reads mostly “{most}”")
    assert not errors


def test_the_viewer_opens_where_it_is_told(page, weights):
    page.set_content(figures.viewer_html(weights, TOKENS, caption="c", alt="a", start=(1, 0, 3)))
    np.testing.assert_allclose(numbers_in_table(page), weights[1, 0, 3], atol=0.01)
    with pytest.raises(ValueError, match="start: got"):
        figures.viewer_html(weights, TOKENS, caption="c", alt="a", start=(2, 0, 0))


def test_the_viewer_follows_the_pointer_over_rows_and_tokens(page, weights):
    page.set_content(figures.viewer_html(weights, TOKENS, caption="c", alt="a"))
    box = page.locator(".attn-map canvas").bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + box["height"] * 0.9)
    np.testing.assert_allclose(numbers_in_table(page), weights[0, 0, 3], atol=0.01)
    page.locator(".attn-queries button").nth(1).hover()
    np.testing.assert_allclose(numbers_in_table(page), weights[0, 0, 1], atol=0.01)


def test_two_viewers_on_a_page_do_not_disturb_each_other(page, weights):
    keys = ["le", "chat", "est", "là"]
    first = figures.viewer_html(weights, TOKENS, caption="c", alt="a")
    second = figures.viewer_html(weights[1], TOKENS, caption="c", alt="a", keys=keys)
    page.set_content(first + second)
    assert page.locator(".attn-viewer[data-ready]").count() == 2
    page.locator(".attn-viewer").nth(1).get_by_label("layer 1, head 3").click()
    numbers = numbers_in_table(page)
    np.testing.assert_allclose(numbers[:4], weights[0, 0, 2], atol=0.01)
    np.testing.assert_allclose(numbers[4:], weights[1, 2, 2], atol=0.01)


def test_without_scripts_the_viewer_shows_a_picture(page, weights):
    markup = figures.viewer_html(weights, TOKENS, caption="c", alt="first head")
    page.set_content(markup.split("<script>")[0])
    assert page.get_by_alt_text("first head").is_visible()
    assert not page.locator(".attn-live").is_visible()
    page.set_content(markup)
    assert not page.get_by_alt_text("first head").is_visible()
    assert page.locator(".attn-live").is_visible()
