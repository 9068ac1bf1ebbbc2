"""Cost plots and curves: fitted exponents, direct labels, bands."""

import numpy as np
import pytest
from matplotlib.collections import FillBetweenPolyCollection

from attnlib import figures

LENGTHS = np.array([256, 512, 1024, 2048, 4096])


@pytest.mark.parametrize("exponent", [0.0, 1.0, 1.5, 2.0])
def test_the_exponent_of_a_planted_power_law_is_found_exactly(exponent):
    slope, error = figures.fit_exponent(LENGTHS, 3e-7 * LENGTHS.astype(float) ** exponent)
    assert slope == pytest.approx(exponent, abs=1e-12)
    assert error == pytest.approx(0, abs=1e-12)


def test_the_standard_error_is_that_of_the_textbook():
    n, y = np.exp([0.0, 1.0, 2.0]), np.exp([0.0, 2.0, 1.0])
    slope, error = figures.fit_exponent(n, y)  # residuals -1/2, 1, -1/2; spread of x is 2
    assert slope == pytest.approx(0.5)
    assert error == pytest.approx(np.sqrt(1.5 / 1 / 2))


@pytest.mark.parametrize(
    ("lengths", "values", "message"),
    [
        ([1, 2], [1, 2], "at least 3"),
        ([1, 2, 3], [1, 2], "expected that of lengths"),
        ([1, 2, 3], [1, 0, 2], "values: expected positive"),
    ],
)
def test_a_fit_refuses_what_has_no_exponent(lengths, values, message):
    with pytest.raises(ValueError, match=message):
        figures.fit_exponent(lengths, values)


def test_a_cost_plot_writes_fitted_and_derived_exponents_beside_the_line():
    values = 1e-9 * LENGTHS.astype(float) ** 2
    values[0] *= 50  # an overhead that the fit leaves out
    figure = figures.cost_plot(
        {"dense": (LENGTHS, values)},
        xlabel="length n (tokens)",
        ylabel="time (s)",
        derived={"dense": 2},
        fit_from=512,
    )
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == [
        "dense\nslope 2.00 ± 0.00, derived 2",
    ]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    figures.figure_html(figure, caption="c", alt="a")


def test_a_derived_exponent_without_a_line_is_an_error():
    with pytest.raises(ValueError, match="derived"):
        figures.cost_plot(
            {"dense": (LENGTHS, LENGTHS)}, xlabel="n", ylabel="t", derived={"dens": 2}
        )


def test_the_band_over_seeds_runs_from_the_smallest_to_the_largest():
    y = np.array([[0.0, 1.0], [2.0, 5.0], [1.0, 3.0]])
    figure = figures.curves({"model": ([0, 1], y)}, xlabel="step", ylabel="loss (nats)")
    axes = figure.axes[0]
    (band,) = (c for c in axes.collections if isinstance(c, FillBetweenPolyCollection))
    box = band.get_datalim(axes.transData)
    assert (box.ymin, box.ymax) == (0.0, 5.0)
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [1.0, 3.0])


def test_three_lines_have_direct_labels_and_more_have_a_legend():
    lines = {name: ([0, 1], [0, height]) for height, name in enumerate("abcd")}
    three = figures.curves(
        {name: lines[name] for name in "abc"}, xlabel="x", ylabel="y", reference={"chance": 0.5}
    )
    assert [text.get_text() for text in three.axes[0].texts] == ["a", "b", "c", "chance"]
    assert three.axes[0].get_legend() is None
    four = figures.curves(lines, xlabel="x", ylabel="y").axes[0]
    assert [text.get_text() for text in four.get_legend().get_texts()] == list("abcd")


def test_curves_refuse_points_that_do_not_match():
    with pytest.raises(ValueError, match=r"series\['a'\]"):
        figures.curves({"a": ([0, 1, 2], [1, 2])}, xlabel="x", ylabel="y")


def test_a_line_that_ends_early_is_labeled_at_its_end():
    lines = {
        "rises": ([0, 1], [0, 1]),
        "falls": ([0, 1], [5, 4]),
        "goes on": ([0, 4], [2, 3]),
        "nearly": ([0, 3.6], [1, 2.5]),
    }
    for names in (("rises", "goes on"), ("falls", "goes on"), ("nearly", "goes on")):
        axes = figures.curves({name: lines[name] for name in names}, xlabel="x", ylabel="y").axes[0]
        axes.figure.draw_without_rendering()
        box = axes.texts[0].get_window_extent().transformed(axes.transData.inverted())
        x, y = (values[-1] for values in lines[names[0]])
        assert (box.x1 < x + 0.01) == (names[0] != "nearly")
        assert (box.y0 > y, box.y1 < y) == {
            "rises": (True, False),
            "falls": (False, True),
            "nearly": (False, False),
        }[names[0]]
