"""One layer for every memory: only what is kept of the tokens, and how it is read, differs."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnlib.attend import attend
from attnlib.checks import check_count
from attnlib.memory.convolutions import short_convolution
from attnlib.models.attention_layer import check_divides, projection
from attnlib.read.heads import merge_heads, split_heads
from attnlib.support import window as last_keys


class ShortConvolution(nn.Module):
    """A causal convolution of few taps for each channel, added to its input.

    It lets a token know its neighbors, which a memory that knows no positions cannot. Shapes: x
    (..., N, channels) -> the same. Starts with random taps of size 1 / taps.
    """

    def __init__(self, channels: int, taps: int = 4):
        super().__init__()
        check_count("channels", channels, least=1)
        check_count("taps", taps, least=1)
        self.kernel = nn.Parameter(torch.randn(taps, channels) / taps)

    def forward(self, x: Float[Tensor, "*batch N channels"]) -> Float[Tensor, "*batch N channels"]:
        """x + convolution(x)."""
        return x + short_convolution(x, self.kernel)


class StateLayer(nn.Module):
    r"""A causal attention layer that leaves open what its memory is.

    .. math:: y = W^O\,\mathrm{norm}(\mathrm{read}(q, k, v)), \qquad
              q, k, v = \mathrm{conv}([W^Q; W^K; W^V]\, x)

    A subclass says how queries read what is kept (`read`) and how many numbers that is
    (`state_numbers`). Convolution, projections and norm are the same for all, so that two layers
    differ in their memory alone. With `convolution=0` there is none.

    Shapes: x (batch, N, width) -> (batch, N, width); queries and keys have `key_width` numbers,
    values `value_width`, both width / heads unless given.
    Source: the layer of Yang et al. (2024), section 3.4, without its SiLU.
    """

    is_causal = True

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        key_width: int | None = None,
        value_width: int | None = None,
        convolution: int = 4,
    ):
        super().__init__()
        check_divides("heads", heads, "width", width)
        key_width = width // heads if key_width is None else key_width
        value_width = width // heads if value_width is None else value_width
        check_count("key_width", key_width, least=1)
        check_count("value_width", value_width, least=1)
        check_count("convolution", convolution)
        self.heads, self.key_width, self.value_width = heads, key_width, value_width
        self.widths = [heads * key_width, heads * key_width, heads * value_width]
        self.to_inputs = projection(width, sum(self.widths))
        self.convolution = (
            ShortConvolution(sum(self.widths), convolution) if convolution else nn.Identity()
        )
        self.norm = nn.RMSNorm(value_width, eps=1e-5)
        self.to_output = projection(heads * value_width, width)

    def forward(
        self,
        x: Float[Tensor, "batch N width"],
        *,
        attn_mask: None = None,
        return_weights: bool = False,
    ) -> Float[Tensor, "batch N width"]:
        """The read of each token from itself and the tokens before it."""
        if attn_mask is not None or return_weights:
            raise ValueError("attn_mask and return_weights must be left out: here a state is read")
        inputs = self.convolution(self.to_inputs(x)).split(self.widths, dim=-1)
        query, key, value = (split_heads(part, self.heads) for part in inputs)
        return self.to_output(merge_heads(self.norm(self.read(query, key, value, x))))

    def read(
        self,
        query: Float[Tensor, "batch H N D"],
        key: Float[Tensor, "batch H N D"],
        value: Float[Tensor, "batch H N E"],
        x: Float[Tensor, "batch N width"],
    ) -> Float[Tensor, "batch H N E"]:
        """What the queries read; gates may be made of x, the input of the layer."""
        raise NotImplementedError

    def state_numbers(self, length: int) -> int:
        """How many numbers must be kept to go on after `length` tokens, convolution left out."""
        raise NotImplementedError


class SoftmaxLayer(StateLayer):
    """Softmax attention: keeps every key and value."""

    def read(self, query, key, value, x):
        """Softmax over all keys so far."""
        return attend(query, key, value, is_causal=True)

    def state_numbers(self, length: int) -> int:
        """A key and a value a token."""
        return self.heads * length * (self.key_width + self.value_width)


class WindowLayer(StateLayer):
    """Softmax attention over the last `window` tokens."""

    def __init__(self, width: int, heads: int, *, window: int, **sizes):
        super().__init__(width, heads, **sizes)
        check_count("window", window, least=1)
        self.window = window

    def read(self, query, key, value, x):
        """Softmax over the last keys."""
        return attend(query, key, value, support=last_keys(self.window), is_causal=True)

    def state_numbers(self, length: int) -> int:
        """A key and a value for each token of the window."""
        return self.heads * min(length, self.window) * (self.key_width + self.value_width)


def gate(width: int, heads: int, bias: float) -> nn.Linear:
    """A number for each head, made of the token; starts near `bias`."""
    layer = nn.Linear(width, heads)
    nn.init.normal_(layer.weight, std=0.1 * width**-0.5)
    nn.init.constant_(layer.bias, bias)
    return layer
