"""Supports by place: patterns on a sequence, a grid of pixels, and frames of a video.

Each function makes a `Support` (attnlib/support.py), so patterns combine by `&`, `|` and `~` and
can be given to `attend`, to `tiled_support` and to FlexAttention.
"""

from attnlib.patterns.grid import axial, blocks, disc, halo, neighborhood, rectangles
from attnlib.patterns.sequence import (
    contiguous_blocks,
    fixed,
    global_and_window,
    random_blocks,
    strided,
)
from attnlib.patterns.space_time import radial

__all__ = [
    "axial",
    "blocks",
    "contiguous_blocks",
    "disc",
    "fixed",
    "global_and_window",
    "halo",
    "neighborhood",
    "radial",
    "random_blocks",
    "rectangles",
    "strided",
]
