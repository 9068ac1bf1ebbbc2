"""The book's figures: one style, legible in both themes, every one with words for it.

Needs matplotlib (and Pillow, which comes with it). Nothing else in attnlib imports this package.
"""

from attnlib.figures.cost import cost_plot, fit_exponent
from attnlib.figures.curves import curves
from attnlib.figures.heatmaps import heatmap, heatmaps
from attnlib.figures.show import figure_html, palette_png, show
from attnlib.figures.style import STEP_COLORS, use_style
from attnlib.figures.supports import support_picture

__all__ = [
    "STEP_COLORS",
    "cost_plot",
    "curves",
    "figure_html",
    "fit_exponent",
    "heatmap",
    "heatmaps",
    "palette_png",
    "show",
    "support_picture",
    "use_style",
]
