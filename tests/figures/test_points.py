"""Dots of a few runs: every number is drawn at its height, above its own label."""

import pytest
from matplotlib import pyplot as plt

from attnlib import figures
from attnlib.figures.style import STYLE

RUNS = {
    "trained": [[0.9, 0.8, 1.0], [0.5, 0.6, 0.7]],
    "not trained": [[0.1, 0.2, 0.3], [0.2, 0.2, 0.2]],
}


def drawn(series=None, **options):
    options = {"labels": ["pointer", "fixed"], "ylabel": "accuracy"} | options
    return figures.points(RUNS if series is None else series, **options).axes[0]


def dots(axes):
    """(color, shape) -> the heights at each variant, read from the picture."""
    found = {}
    for line in axes.lines:
        if line.get_marker() not in (None, "None", ""):
            by_place = found.setdefault((line.get_color(), line.get_marker()), {})
            for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True):
                by_place.setdefault(round(x), []).append(y)
    return found


def test_every_run_is_a_dot_above_its_label():
    axes = drawn()
    heights = [[by_place[0], by_place[1]] for by_place in dots(axes).values()]
    assert heights == list(RUNS.values())
    assert axes.get_xticks().tolist() == [0, 1]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["pointer", "fixed"]


def test_series_differ_in_shape_as_well_as_in_color():
    series = {str(number): [[0.5], [0.5]] for number in range(5)}
    looks = list(dots(drawn(series)))
    assert len({color for color, _ in looks}) == len({shape for _, shape in looks}) == 5


def test_series_stand_beside_each_other_and_do_not_overlap():
    spans = {}
    for line in drawn().lines:
        spans.setdefault(round(line.get_xdata().mean()), []).append(line.get_xdata())
    for beside in spans.values():
        first, second = sorted(beside, key=lambda x: x.min())
        assert first.max() < second.min()


def test_the_short_line_is_the_mean():
    heights = sorted(
        segment[0][1] for mean in drawn().collections for segment in mean.get_segments()
    )
    assert heights == pytest.approx([0.2, 0.2, 0.6, 0.9])


def test_axes_are_named_and_limited_as_asked():
    axes = drawn(xlabel="kind of output", ylimits=(0, 1.05))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("kind of output", "accuracy")
    assert axes.get_ylim() == (0, 1.05)


def test_a_legend_names_the_series_where_there_are_several():
    assert [text.get_text() for text in drawn().get_legend().texts] == list(RUNS)
    assert drawn({"one": RUNS["trained"]}).get_legend() is None


def test_a_reference_is_a_line_at_its_height_with_its_name():
    axes = drawn(reference={"chance": 0.125})
    lines = [line for line in axes.lines if line.get_marker() in (None, "None", "")]
    assert [list(line.get_ydata()) for line in lines] == [[0.125, 0.125]]
    assert [(text.get_text(), text.xy[1]) for text in axes.texts] == [("chance", 0.125)]


@pytest.mark.parametrize(
    ("series", "message"),
    [
        ({}, "series: it is empty"),
        ({"one": [[1.0]]}, r"series\['one'\]: got 1 variants, expected 2"),
        ({"one": [[1.0]] * 3}, r"series\['one'\]: got 3 variants, expected 2"),
        ({str(n): [[1.0]] * 2 for n in range(6)}, "series: got 6, expected at most 5"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(series, message):
    with pytest.raises(ValueError, match=message):
        drawn(series)


def test_the_figure_passes_the_checks_of_show(shown):
    figure = figures.points(RUNS, labels=["pointer", "fixed"], ylabel="accuracy")
    figures.show(figure, caption="Pointers name later places.", alt="Two groups of dots.")
    (output,) = shown
    assert output["text/html"].startswith('<figure class="attn-figure"><img')
    assert not plt.get_fignums()


def test_it_is_drawn_in_the_style_of_the_book_and_leaves_that_of_the_reader():
    with plt.rc_context({"axes.labelsize": 21, "axes.grid": True}):
        before = {name: plt.rcParams[name] for name in STYLE}
        axes = drawn()
        assert axes.yaxis.label.get_size() == STYLE["axes.labelsize"]
        assert not axes.spines["top"].get_visible()
        assert {name: plt.rcParams[name] for name in STYLE} == before
