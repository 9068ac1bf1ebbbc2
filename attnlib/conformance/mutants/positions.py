"""Wrong encodings of positions."""

import torch

from attnlib.conformance.mutants.register import mutant
from attnlib.score.positions import angles


@mutant("raiyanyahya/how-to-train-your-gpt, issue 6", meant_for="positions")
def rope_paired_wrongly(x, positions):
    """Frequencies for neighbors (0, 1), (2, 3), but coordinate i is turned with i + D/2."""
    angle = angles(positions, x.shape[-1], 10000.0).repeat_interleave(2, dim=-1)
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return x * angle.cos().to(x.dtype) + turned * angle.sin().to(x.dtype)


@mutant(meant_for="positions")
def rope_without_minus(x, positions):
    """The minus sign of the rotation is missing, so that lengths change with the position."""
    angle = angles(positions, x.shape[-1], 10000.0)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos + odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
