"""Short and long convolutions in a row, run as the one convolution that they are."""

from jaxtyping import Float
from torch import Tensor

from attnlib.atlas import Taxonomy, mechanism
from attnlib.memory.convolutions import kernel_in_a_row, long_convolution


@mechanism(
    key="chela-short-long-conv",
    paper="chela-short-long-conv",
    chapter="3-linear/recurrent-and-chunked",
    section="short-and-long-convolutions",
    step="memory",
    idea="a short and a long convolution, merged into one kernel, in front of linear attention",
    equation=r"y = w^{long} * (w^{short} * x) = (w^{long} * w^{short}) * x",
    cost="time N log N for each channel; to go on, the last inputs, as many as there are taps",
    promises=None,
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="single"
    ),
)
def short_long_convolution(
    x: Float[Tensor, "*batch N channels"],
    short: Float[Tensor, "taps channels"],
    long: Float[Tensor, "more channels"],
) -> Float[Tensor, "*batch N channels"]:
    r"""The long convolution of the short convolution of x, channel by channel, in one transform.

    Both are linear and the same at every token, so both together answer an impulse with the long
    kernel convolved by the short one, and that is their kernel, taps + more - 1 numbers long.
    The layer around it is `attnlib.models.ShortLongLayer`. Raises as `short_convolution` does.
    Source: Liu et al. (2024), section 3 (structural reparameterization). Chapter 3.2.
    """
    return long_convolution(x, kernel_in_a_row(short, long))
