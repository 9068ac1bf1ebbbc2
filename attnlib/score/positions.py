"""Encodings of position: what is added to a token, or turned in it, before the score."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attnlib.checks import check_count


def sinusoidal(length: int, dim: int, base: float = 10000.0) -> Float[Tensor, "length dim"]:
    r"""Sines and cosines of geometric wavelengths, to be added to token vectors.

    .. math:: P_{p,2i} = \sin(p\,b^{-2i/D}), \quad P_{p,2i+1} = \cos(p\,b^{-2i/D})

    Source: Vaswani et al. (2017), section 3.5.
    """
    check_count("length", length)
    check_even_width("dim", dim)
    check_base(base)
    angle = angles(torch.arange(length), dim, base)
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)


def rotate(
    x: Float[Tensor, "*batch length D"],
    positions: Int[Tensor, " length"],
    base: float = 10000.0,
) -> Float[Tensor, "*batch length D"]:
    r"""Rotary encoding: turn each pair of coordinates (2i, 2i+1) by the angle p b^{-2i/D}.

    Applied to queries and keys, their dot product depends on positions through i - j alone.
    Source: Su et al. (2021), eqs. 14, 15 and 34.
    """
    check_even_width("x", x.shape[-1])
    check_base(base)
    if not isinstance(positions, Tensor):
        raise TypeError(f"positions must be a torch.Tensor, got {type(positions).__name__}")
    if tuple(positions.shape) != (x.shape[-2],):
        raise ValueError(
            f"positions must have shape ({x.shape[-2]},), one for each row of x, "
            f"got {tuple(positions.shape)}"
        )
    angle = angles(positions, x.shape[-1], base)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def angles(
    positions: Int[Tensor, " length"], dim: int, base: float
) -> Float[Tensor, "length half"]:
    """Angles p * base^(-2i/dim) in float64, for i = 0 ... dim/2 - 1."""
    frequency = base ** (-torch.arange(0, dim, 2, device=positions.device).double() / dim)
    return positions.double()[:, None] * frequency


def check_even_width(name: str, width: int) -> None:
    """Check that a width can be split into pairs."""
    if width < 2 or width % 2:
        raise ValueError(f"{name} must have an even width of at least 2, got {width}")


def check_base(base: float) -> None:
    """Check that wavelengths can be powers of `base`."""
    if not (math.isfinite(base) and base > 0):
        raise ValueError(f"base must be positive and finite, got {base}")
