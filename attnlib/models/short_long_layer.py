"""Short and long convolutions in front of linear attention."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from attnlib.checks import check_count
from attnlib.memory.convolutions import kernel_in_a_row, long_convolution
from attnlib.models.attention_layer import projection
from attnlib.models.summing_layers import LinearLayer


class ShortLongConvolution(nn.Module):
    r"""A short convolution and then a long one, channel by channel, run as the one that they are.

    .. math:: y = x + w^{long} * (w^{short} * x) = x + (w^{long} * w^{short}) * x

    The short kernel has `taps` numbers a channel and the long one `length`, which fade in size from
    the present token to the past when new. Between the two nothing may bend: then they would not
    merge. Shapes: x (batch, N, channels) -> the same. Cost: time N log N channels by FFT.
    Source: Liu et al. (2024), section 3, where a batch norm follows each kernel in training.
    """

    def __init__(self, channels: int, taps: int, length: int):
        super().__init__()
        for name, number in (("channels", channels), ("taps", taps), ("length", length)):
            check_count(name, number, least=1)
        self.short = nn.Parameter(torch.randn(taps, channels) * taps**-0.5)
        fade = torch.exp(-2 * torch.arange(length) / length)[:, None]
        self.long = nn.Parameter(torch.randn(length, channels) * fade * length**-0.5)

    def kernel(self) -> Float[Tensor, "taps channels"]:
        """The two as one kernel of taps + length - 1 numbers a channel."""
        return kernel_in_a_row(self.short, self.long)

    def forward(self, x: Float[Tensor, "batch N channels"]) -> Float[Tensor, "batch N channels"]:
        """x + convolution(x)."""
        return x + long_convolution(x, self.kernel())


class ShortLongLayer(LinearLayer):
    r"""Linear attention over tokens that a short and a long convolution have mixed, with a gate.

    .. math:: z = \mathrm{silu}(\mathrm{conv}(x)), \qquad
              y = \sigma(W^G z) \odot \mathrm{attention}(z)

    The convolutions weigh distances, whatever the tokens; the attention weighs tokens, whatever
    the distance. `length` is the longest distance. For decoding the long convolution keeps its
    last `length` inputs, so the state grows with the reach that is wanted.
    Source: Liu et al. (2024), CHELA; there a causal or a two-sided layer, here causal.
    """

    def __init__(self, width: int, heads: int, *, taps: int, length: int, **sizes):
        super().__init__(width, heads, **{"convolution": 0, **sizes})
        self.mix = ShortLongConvolution(width, taps, length)
        self.to_gate = projection(width, width)

    def forward(
        self,
        x: Float[Tensor, "batch N width"],
        *,
        attn_mask: None = None,
        return_weights: bool = False,
    ) -> Float[Tensor, "batch N width"]:
        """The gated read of each token from what lies before it."""
        mixed = silu(self.mix(x))
        read = super().forward(mixed, attn_mask=attn_mask, return_weights=return_weights)
        return self.to_gate(mixed).sigmoid() * read

    def state_numbers(self, length: int) -> int:
        """The state of linear attention and the inputs that the convolution still needs."""
        reach = self.mix.short.shape[0] + self.mix.long.shape[0] - 1
        return super().state_numbers(length) + min(length, reach) * self.mix.long.shape[1]
