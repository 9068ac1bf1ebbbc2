"""The book's figures: one style, legible in both themes, every one with words for it.

Needs matplotlib (and Pillow, which comes with it). Nothing else in attnlib imports this package.
"""

from attnlib.figures.cost import cost_plot, fit_exponent
from attnlib.figures.curves import curves
from attnlib.figures.frames import frames
from attnlib.figures.grid_viewer import grid_viewer, grid_viewer_html
from attnlib.figures.heatmaps import heatmap, heatmaps
from attnlib.figures.points import points
from attnlib.figures.roofline import roofline
from attnlib.figures.show import figure_html, show
from attnlib.figures.stored import palette_png
from attnlib.figures.style import STEP_COLORS, use_style
from attnlib.figures.supports import support_picture
from attnlib.figures.tiles import tile_picture, tile_steps
from attnlib.figures.viewer import attention_viewer, viewer_html

__all__ = [
    "STEP_COLORS",
    "attention_viewer",
    "cost_plot",
    "curves",
    "figure_html",
    "fit_exponent",
    "frames",
    "grid_viewer",
    "grid_viewer_html",
    "heatmap",
    "heatmaps",
    "palette_png",
    "points",
    "roofline",
    "show",
    "support_picture",
    "tile_picture",
    "tile_steps",
    "use_style",
    "viewer_html",
]
