"""Supports by place in a video: what a place sees of frames that are near and far in time.

Tokens are numbered frame by frame, and within a frame row by row: token t of frames with s places
is place t % s of frame t // s.
"""

from torch import Tensor

from attnlib.checks import check_count
from attnlib.support import Support


def radial(frames: int, places: int, sink_frames: int = 1) -> Support:
    r"""A window that halves each time the distance in time doubles.

    Place k of frame i sees place l of frame j, with s = `places` and the power of two
    P = 2^floor(log2 max(|i - j|, 1)), where

        |k - l| + 1 <= s / P                              a band, s / P wide to each side,
        k = l  and  |i - j| is a multiple of ceil(P / s)  once the band is less than one place,

    and where j is one of the first `sink_frames` frames. A place sees itself and about 2 s keys
    more to each side of time for each doubling of |i - j|, so the keys of a query grow as
    s log(frames).

    Raises ValueError for counts that are less than 1 and for more sinks than frames.
    Source: Li et al. (2025), eq. 6 (the mask) and the attention sink on the first frame.
    """
    check_radial(frames, places, sink_frames)

    def seen(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        apart = (q_idx // places - kv_idx // places).abs()
        beside = (q_idx % places - kv_idx % places).abs()
        power = power_below(apart, frames)
        in_band = (beside + 1) * power <= places
        on_diagonal = (beside == 0) & (apart % ((power + places - 1) // places) == 0)
        return in_band | on_diagonal | (kv_idx < sink_frames * places)

    return Support(seen, f"radial({frames}, {places}, sink_frames={sink_frames})")


def power_below(distance: Tensor, most: int) -> Tensor:
    """The largest power of two that is at most each distance, 1 for 0; distances less than most."""
    power = distance * 0 + 1
    for exponent in range(1, most.bit_length()):
        power = power + (distance >= 2**exponent) * 2 ** (exponent - 1)
    return power


def check_radial(frames: int, places: int, sink_frames: int) -> None:
    """Raise unless the counts of a radial support fit together."""
    check_count("frames", frames, least=1)
    check_count("places", places, least=1)
    check_count("sink_frames", sink_frames)
    if sink_frames > frames:
        raise ValueError(f"sink_frames must be at most the {frames} frames, got {sink_frames}")
