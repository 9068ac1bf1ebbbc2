"""Supports by place: patterns on a sequence, a grid of pixels, and frames of a video.

Each function makes a `Support` (attnlib/support.py), so patterns combine by `&`, `|` and `~` and
can be given to `attend`, to `tiled_support` and to FlexAttention.
"""
