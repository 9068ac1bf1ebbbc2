"""What every picture promises: words, labels, the same bytes, and ink for both themes."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from PIL import Image

from attnlib import figures
from attnlib.figures import style
from attnlib.figures.heatmaps import color_limits
from attnlib.figures.labels import _apart
from attnlib.figures.stored import on_any_ground
from attnlib.figures.supports import visible_pairs

DARK = "#14181E"


def causal(b, h, q_idx, kv_idx):
    return kv_idx <= q_idx


def small_plot():
    figure, axes = plt.subplots()
    axes.plot([0, 1], [0, 1])
    axes.set(xlabel="step", ylabel="loss (nats)")
    return figure


def pixels(figure, **options):
    return np.asarray(
        Image.open(io.BytesIO(figures.palette_png(figure, **options))).convert("RGBA")
    )


def dark_theme(rgba):
    """An ink (r, g, b, alpha) on the dark page, after invert(1) hue-rotate(180deg)."""
    *ink, alpha = rgba
    page = np.array([int(DARK[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    filtered = style.in_dark_theme(to_hex(ink))
    seen = np.array([int(filtered[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return to_hex(alpha * seen + (1 - alpha) * page)


def test_importing_the_package_does_not_import_matplotlib():
    code = "import attnlib, sys; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_palette_file_names_the_five_steps_in_the_colors_of_okabe_and_ito():
    palette = json.loads(Path(style.__file__).with_name("palette.json").read_text())
    assert list(palette) == ["score", "support", "weight", "read", "memory"]
    okabe_ito = {"#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"}
    assert palette == figures.STEP_COLORS and set(palette.values()) < okabe_ito
    assert len(set(palette.values())) == 5


@pytest.mark.parametrize(
    "color", [style.INK, style.QUIET_INK, *map(style.text_color, style.LINE_COLORS)]
)
def test_text_is_readable_in_both_themes(color):
    assert style.contrast(color, "#FFFFFF") >= 4.5
    ink = on_any_ground(np.array([[int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]]))[0]
    assert style.contrast(dark_theme(ink), DARK) >= 4.5


@pytest.mark.parametrize("color", style.LINE_COLORS)
def test_lines_stand_out_in_both_themes(color):
    assert style.contrast(color, "#FFFFFF") >= 3
    ink = on_any_ground(np.array([[int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]]))[0]
    assert style.contrast(dark_theme(ink), DARK) >= 3


def test_an_ink_on_white_gives_back_its_color():
    colors = np.random.default_rng(0).random((50, 3))
    ink = on_any_ground(colors)
    np.testing.assert_allclose(ink[:, 3:] * ink[:, :3] + 1 - ink[:, 3:], colors, atol=1e-12)


def test_the_same_figure_gives_the_same_bytes():
    first, second = (figures.palette_png(small_plot()) for _ in range(2))
    assert first == second
    assert b"matplotlib" not in first.lower()


def test_a_picture_of_text_width_is_crisp_and_small():
    figure = figures.heatmap(torch.eye(9), rows=list("abcdefghi"), columns=list("abcdefghi"))
    png = figures.palette_png(figure)
    assert Image.open(io.BytesIO(png)).size[0] == round(figure.get_figwidth() * 140)
    assert len(png) < 20_000


def test_zero_of_a_heat_map_is_the_ground_and_more_weight_is_more_ink():
    figure = figures.heatmap([[0.0, 0.5, 1.0]])
    axes = figure.axes[0]
    picture = pixels(figure, dpi=100)
    alphas = []
    for key in range(3):
        x, y = axes.transData.transform((key, 0.2)) * 100 / figure.dpi
        alphas.append(int(picture[picture.shape[0] - int(y), int(x), 3]))
    assert alphas[0] == 0 and 0 < alphas[1] <= 255 and alphas[2] > 200
    assert to_hex(style.SEQUENTIAL(0.0)) == to_hex(style.DIVERGING(0.5)) == "#ffffff"


def test_more_weight_is_darker_at_every_shade():
    one_way, both_ways = (
        [style.contrast(to_hex(colors(shade)), "#FFFFFF") for shade in range(colors.N)]
        for colors in (style.SEQUENTIAL, style.DIVERGING)
    )
    assert np.all(np.diff(one_way) > 0)
    assert np.all(np.diff(both_ways[:49]) < 0) and np.all(np.diff(both_ways[48:]) > 0)


def test_drawing_leaves_the_settings_of_the_reader_alone(monkeypatch):
    monkeypatch.setitem(plt.rcParams, "font.size", 7.0)
    plt.ioff()
    style.styled(plt.ion)()  # the first figure of a notebook switches this on
    assert plt.isinteractive() and plt.rcParams["font.size"] == 7.0
    plt.ioff()


def test_a_figure_needs_words(shown):
    for texts in ({"caption": "", "alt": "a"}, {"caption": "c", "alt": " "}):
        with pytest.raises(ValueError, match="empty"):
            figures.show(small_plot(), **texts)
    with pytest.raises(ValueError, match="TeX"):
        figures.show(small_plot(), caption="$x$ falls", alt="a")
    assert not shown


def test_axes_need_labels_and_panels_may_share_them(shown):
    figure, axes = plt.subplots()
    axes.set_xlabel("step")
    with pytest.raises(ValueError, match="no y label"):
        figures.show(figure, caption="c", alt="a")
    figure, (left, right) = plt.subplots(1, 2, sharey=True)
    left.set(xlabel="step", ylabel="loss")
    with pytest.raises(ValueError, match="axes 1 have no x label"):
        figures.show(figure, caption="c", alt="a")
    right.set(xlabel="step")
    figures.show(figure, caption="c", alt="a")
    figures.show(figures.heatmaps({"a": torch.eye(3), "b": torch.eye(3)}), caption="c", alt="a")
    assert len(shown) == 2


def test_a_shown_figure_is_one_output_and_is_closed(shown):
    figure = small_plot()
    assert figures.show(figure, caption="<b>It falls.</b>", alt='a line "down" & out') is None
    assert not plt.fignum_exists(figure.number)
    (output,) = shown
    assert set(output) == {"text/html", "text/plain"}
    markup = output["text/html"]
    assert markup.startswith('<figure class="attn-figure"><img src="data:image/png;base64,')
    assert 'alt="a line &quot;down&quot; &amp; out"' in markup
    assert "<figcaption><b>It falls.</b></figcaption>" in markup
    assert "max-width:100%" in markup and "background-color:#fff" in markup
    assert output["text/plain"] == '[figure] It falls.\na line "down" & out'


def test_panels_of_heat_maps_share_their_limits_and_always_have_a_bar():
    figure = figures.heatmaps({"a": torch.full((2, 2), 0.25), "b": torch.eye(2)})
    images = [image for axes in figure.axes for image in axes.images]
    assert {image.get_clim() for image in images} == {(0.0, 1.0)}
    assert sum(image.colorbar is not None for image in images) == 1
    figure = figures.heatmap(torch.eye(2) - 0.5, signed=True)
    assert figure.axes[0].images[0].get_clim() == (-0.5, 0.5)
    assert figure.axes[0].images[0].colorbar is not None


def test_rows_are_queries_and_columns_are_keys():
    axes = figures.heatmap(torch.rand(2, 3), rows=["q0", "q1"], columns=["a", "b", "c"]).axes[0]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("query", "key")
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["q0", "q1"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["a", "b", "c"]
    top, bottom = axes.transData.transform([(0, 0), (0, 1)])[:, 1]
    assert top > bottom


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        (torch.ones(3), {}, r"got shape \(3,\)"),
        (torch.tensor([[float("nan")]]), {}, "undefined"),
        (-torch.ones(2, 2), {}, "signed=True"),
        (torch.ones(2, 2), {"rows": ["a"]}, "rows: got 1 labels, expected 2"),
        (torch.ones(2, 2), {"limits": (0.5, 1)}, "zero is the ground"),
    ],
)
def test_a_heat_map_refuses_what_it_cannot_show(weights, options, message):
    with pytest.raises(ValueError, match=message):
        figures.heatmap(weights, **options)


def test_limits_of_signed_weights_are_symmetric():
    assert color_limits([np.array([[-3.0, 1.0]])], None, signed=True) == (-3.0, 3.0)
    assert color_limits([np.zeros((1, 1))], None, signed=False) == (0.0, 1.0)


def test_a_support_picture_shows_the_predicate_at_the_offset():
    np.testing.assert_array_equal(visible_pairs(causal, 3, 3), np.tril(np.ones((3, 3), bool)))
    one_row = visible_pairs(causal, 1, 5, query_offset=3)
    assert one_row.tolist() == [[True, True, True, True, False]]
    padding = visible_pairs(lambda b, h, q_idx, kv_idx: kv_idx < 2, 3, 4)
    assert padding.tolist() == [[True, True, False, False]] * 3


def test_supports_stand_side_by_side_with_their_cost():
    everything = lambda b, h, q_idx, kv_idx: kv_idx >= 0  # noqa: E731
    figure = figures.support_picture({"causal": causal, "all": everything}, 4, 4)
    titles = [axes.get_title(loc="left").strip() for axes in figure.axes]
    counts = [axes.texts[0].get_text() for axes in figure.axes]
    assert titles == ["causal", "all"]
    assert counts == ["10 of 16 pairs", "16 of 16 pairs"]
    figures.figure_html(figure, caption="c", alt="a")


def test_labels_at_the_ends_of_lines_never_overlap():
    wanted = np.array([50.0, 51.0, 10.0, 52.0])
    placed = _apart(wanted, [12.0] * 4)
    assert np.diff(np.sort(placed)).min() >= 12 - 1e-9
    assert placed[2] == 10.0
    assert list(np.argsort(placed)) == list(np.argsort(wanted, kind="stable"))
