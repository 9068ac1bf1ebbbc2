"""The picture of a roofline: every work at its intensity, under the roof."""

import pytest
from matplotlib import pyplot as plt

from attnlib.figures.roofline import roofline
from attnlib.roofline import Chip, Cost

CHIP = Chip("plain", operations=100e12, bytes=1e12)


def test_each_work_stands_at_its_intensity_and_bound():
    figure = roofline({"slow": Cost(2e9, 1e9), "fast": Cost(1e12, 1e9)}, CHIP)
    points = [
        (line.get_xdata()[0], line.get_ydata()[0])
        for line in figure.axes[0].lines
        if len(line.get_xdata()) == 1
    ]
    texts = [text.get_text() for text in figure.axes[0].texts]
    plt.close(figure)
    assert points == [(2, pytest.approx(2)), (1000, pytest.approx(100))]
    assert texts == ["plain", "balance 100", "slow", "fast"]


def test_no_words_stand_on_each_other_or_on_the_balance_line():
    near = {"1 head": Cost(60e9, 1e9), "latent": Cost(90e9, 1e9), "far": Cost(1e12, 1e9)}
    figure = roofline({"8 heads": Cost(8e9, 1e9)} | near, CHIP)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    balance = next(line for line in axes.lines if list(line.get_xdata()) == [100, 100])
    boxes = [text.get_window_extent() for text in axes.texts] + [balance.get_window_extent()]
    plt.close(figure)
    assert max(balance.get_ydata()) == pytest.approx(100)  # the roof, in trillions
    assert not [(a, b) for k, a in enumerate(boxes) for b in boxes[:k] if a.overlaps(b)]


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="works: it is empty"):
        roofline({}, CHIP)
