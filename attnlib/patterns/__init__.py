"""Supports by place: patterns on a sequence, a grid of pixels, and frames of a video.

Each function makes a `Support` (attnlib/support.py), so patterns combine by `&`, `|` and `~` and
can be given to `attend`, to `tiled_support` and to FlexAttention.
"""

from attnlib.patterns.grid import axial, blocks, disc, halo, neighborhood, rectangles

__all__ = ["axial", "blocks", "disc", "halo", "neighborhood", "rectangles"]
