"""Causal convolutions of channels: short ones by shifts, long ones by FFT, and two merged into one.

    y_t = sum_j w_j x_{t-j}        kernel w: (taps, channels), w_0 weighs the present token

A convolution is linear and the same at every token, so it is known by its answer to one impulse:
two convolutions in a row, or side by side and added, are again one convolution.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from attnlib.checks import check_dtype, check_tensor


def short_convolution(
    x: Float[Tensor, "*batch N channels"], kernel: Float[Tensor, "taps channels"]
) -> Float[Tensor, "*batch N channels"]:
    r"""Causal convolution, channel by channel: y_t = sum_j w_j x_{t-j}, one shift for each tap.

    Shapes: x (..., N, channels), kernel (taps, channels) -> (..., N, channels). What lies before
    the first token is zero. Cost: time N taps channels: right for a handful of taps.
    Raises TypeError or ValueError naming the argument.
    """
    _check(x, kernel)
    length = x.shape[-2]
    y = torch.zeros_like(x)
    for j in range(min(kernel.shape[0], length)):
        y = y + kernel[j] * pad(x[..., : length - j, :], (0, 0, j, 0))
    return y


def long_convolution(
    x: Float[Tensor, "*batch N channels"], kernel: Float[Tensor, "taps channels"]
) -> Float[Tensor, "*batch N channels"]:
    r"""`short_convolution` for kernels as long as the sequence: a product of Fourier transforms.

    Both are padded with zeros to N + taps numbers, so that nothing wraps around.
    Half precision is computed in float32. Cost: time (N + taps) log(N + taps) channels.
    A transform mixes all tokens, so its rounding error is that of the largest number of a channel,
    and causality holds up to it: in float32 a later token moves an earlier read by some 1e-6 of its
    size (NaN reaches all). `short_convolution` sees nothing of the future.
    """
    _check(x, kernel)
    length, size = x.shape[-2], x.shape[-2] + kernel.shape[0]
    sums = torch.float32 if x.element_size() < 4 else x.dtype
    spectrum = torch.fft.rfft(x.to(sums), n=size, dim=-2)
    spectrum = spectrum * torch.fft.rfft(kernel.to(sums), n=size, dim=-2)
    return torch.fft.irfft(spectrum, n=size, dim=-2)[..., :length, :].to(x.dtype)


def kernel_in_a_row(
    first: Float[Tensor, "taps channels"], second: Float[Tensor, "more channels"]
) -> Float[Tensor, "both channels"]:
    """The one kernel, of taps + more - 1 taps, that does what the two do one after the other.

    It is the answer of the second to the first as its input: sum_i first_i second_{j-i}.
    """
    _check(first, second)
    return short_convolution(pad(second, (0, 0, 0, first.shape[0] - 1)), first)


def kernel_side_by_side(
    first: Float[Tensor, "taps channels"], second: Float[Tensor, "more channels"]
) -> Float[Tensor, "longer channels"]:
    """The one kernel that does what the two do side by side, their results added."""
    _check(first, second)
    taps = max(first.shape[0], second.shape[0])
    return sum(pad(kernel, (0, 0, 0, taps - kernel.shape[0])) for kernel in (first, second))


def _check(x: Tensor, kernel: Tensor) -> None:
    check_tensor("x", x)
    check_tensor("kernel", kernel)
    check_dtype("kernel", kernel, x)
    if x.dim() < 2:
        raise ValueError(f"x must have shape (..., N, channels), got {tuple(x.shape)}")
    if kernel.dim() != 2 or kernel.shape[0] < 1 or kernel.shape[1] != x.shape[-1]:
        raise ValueError(
            f"kernel must have shape (taps, {x.shape[-1]}) with at least one tap, "
            f"got {tuple(kernel.shape)}"
        )
