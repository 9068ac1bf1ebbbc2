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
    assert texts == ["plain, balance 100", "slow", "fast"]


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="works: it is empty"):
        roofline({}, CHIP)
