"""Weights over time for each feature alone: how far a value lies from where a head wants it."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnlib.atlas import Taxonomy, mechanism
from attnlib.checks import check_count, check_tensor

EPSILON = 1e-8


def gaussian_weights(
    x: Float[Tensor, "*batch T C"],
    offsets: Float[Tensor, "G #C"],
    spreads: Float[Tensor, "G #C"],
) -> Float[Tensor, "*batch T C"]:
    r"""A product of Gaussians around the shifted mean, divided by its sum over time.

    .. math:: w_t \propto \prod_g \exp\Bigl(-\frac{y_{t,g}^2}{2 c_g^2}\Bigr), \qquad
              y_{t,g} = \frac{x_t - (\mu + \delta_g)}{\sqrt{\sigma^2 + \epsilon}}

    mu and sigma^2 are the mean and the variance of a feature over its T times, delta_g is a row of
    `offsets` and c_g one of `spreads`, one number a feature or one for all. In logarithms it is a
    softmax over time of the score -sum_g y^2 / (2 c_g^2). Each feature has weights of its own.

    Cost: time T C G. Half precision is computed in float32. Raises ValueError for parameters whose
    shapes do not fit or that are not finite, and for a spread of zero.
    Source: Ioannides et al. (2024). Their variance divides by T - 1, ours by T, so that one time is
    enough. Derived in the companion of chapter 2.1.
    """
    _check(x, offsets, spreads)
    result = torch.promote_types(x.dtype, offsets.dtype)
    # In float16 epsilon would be zero, and a constant feature 0 / 0.
    x, offsets, spreads = (
        tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        for tensor in (x, offsets, spreads)
    )
    deviation = x - x.mean(-2, keepdim=True)
    width = (x.var(-2, keepdim=True, correction=0) + EPSILON).sqrt()
    scores = torch.zeros_like(x)
    for offset, spread in zip(offsets, spreads, strict=True):
        scores = scores - ((deviation - offset) / width / spread) ** 2 / 2
    return torch.softmax(scores, dim=-2).to(result)


def merged(
    offsets: Float[Tensor, "G #C"], spreads: Float[Tensor, "G #C"]
) -> tuple[Float[Tensor, "1 #C"], Float[Tensor, "1 #C"]]:
    r"""The offset and the spread of the one Gaussian that a product of G Gaussians is.

    .. math:: \frac{1}{c^2} = \sum_g \frac{1}{c_g^2}, \qquad
              \delta = c^2 \sum_g \frac{\delta_g}{c_g^2}

    Both give the same `gaussian_weights`, for every x. Ours.
    """
    _check_parameters(offsets, spreads)
    precision = spreads**-2
    total = precision.sum(0, keepdim=True)
    return (precision * offsets).sum(0, keepdim=True) / total, total**-0.5


@mechanism(
    key="gaam",
    paper="gaam",
    chapter="2-weights/beyond-softmax-in-practice",
    section="gaussian-weights-over-features",
    step="weight",
    idea="each feature is weighted over time by a Gaussian around its own shifted mean",
    equation=r"x_t \, \mathrm{softmax}_t\bigl(-\sum_g y_{t,g}^2 / (2 c_g^2)\bigr)",
    cost="time T C G",
    promises=None,
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def gaussian_adaptive_attention(
    x: Float[Tensor, "*batch T C"],
    offsets: Float[Tensor, "G #C"],
    spreads: Float[Tensor, "G #C"],
) -> Float[Tensor, "*batch T C"]:
    """x * w with w = `gaussian_weights(x, offsets, spreads)`: the sum over time is a weighted mean.

    Source: Ioannides et al. (2024). Derived in the companion of chapter 2.1.
    """
    return x * gaussian_weights(x, offsets, spreads)


class GaussianAdaptiveAttention(nn.Module):
    """`gaussian_adaptive_attention` with learnt offsets and spreads, shared by a head's features.

    A head is a group of `channels` / `heads` neighboring features. Offsets start at zero, spreads
    at two, which is the value that the authors' package proposes.
    Parameters: 2 `heads` `gaussians`. Shapes: (batch, T, channels) -> (batch, T, channels).
    """

    def __init__(self, channels: int, *, heads: int, gaussians: int = 1):
        super().__init__()
        for name, number in (("channels", channels), ("heads", heads), ("gaussians", gaussians)):
            check_count(name, number, least=1)
        if channels % heads:
            raise ValueError(f"heads must divide channels {channels}, got {heads}")
        self.group = channels // heads
        self.offsets = nn.Parameter(torch.zeros(gaussians, heads))
        self.spreads = nn.Parameter(torch.full((gaussians, heads), 2.0))

    def forward(self, x: Float[Tensor, "batch T C"]) -> Float[Tensor, "batch T C"]:
        """x, each feature weighted over time."""
        offsets, spreads = (
            parameter.repeat_interleave(self.group, dim=-1)
            for parameter in (self.offsets, self.spreads)
        )
        return gaussian_adaptive_attention(x, offsets, spreads)


def _check(x: Tensor, offsets: Tensor, spreads: Tensor) -> None:
    check_tensor("x", x)
    if x.dim() < 2 or x.shape[-2] == 0:
        raise ValueError(f"x must have shape (..., T, C) with T >= 1, got {tuple(x.shape)}")
    _check_parameters(offsets, spreads)
    for name, table in (("offsets", offsets), ("spreads", spreads)):
        if table.shape[1] not in (1, x.shape[-1]):
            raise ValueError(
                f"{name} must have shape (G, {x.shape[-1]}) or (G, 1), got {tuple(table.shape)}"
            )


def _check_parameters(offsets: Tensor, spreads: Tensor) -> None:
    for name, table in (("offsets", offsets), ("spreads", spreads)):
        check_tensor(name, table)
        if table.dim() != 2:
            raise ValueError(f"{name} must have shape (G, C) or (G, 1), got {tuple(table.shape)}")
        if not table.isfinite().all():
            raise ValueError(f"{name} must be finite")
    if offsets.shape[0] != spreads.shape[0]:
        raise ValueError(
            f"spreads must have the {offsets.shape[0]} rows of offsets, got {spreads.shape[0]}"
        )
    if (spreads == 0).any():
        raise ValueError("spreads must not be zero")
