"""Feature maps that act on one number at a time: the width of the features is that of the head."""

import torch
from jaxtyping import Float
from torch import Tensor


def elu_plus_one(x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
    r"""phi(x) = elu(x) + 1: x + 1 where x is positive, e^x where it is not. Always positive.

    e^x becomes zero in float32 for x below about -100; the gradient there is zero too.
    Source: Katharopoulos et al. (2020), eq. 7.
    """
    return torch.relu(x) + x.clamp(max=0).exp()


def relu(x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
    r"""phi(x) = max(x, 0). A query and a key whose positive parts do not overlap have weight zero.

    A row may be zero everywhere: it reads zero (`attnlib.weight.divided_by_sum`).
    """
    return torch.relu(x)


def exponential(x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
    r"""phi(x) = e^x in each channel, so that phi(q) . phi(k) = sum_d e^{q_d + k_d}.

    Finite for x up to 88 in float32 (products of two such features: up to 44).
    """
    return x.exp()
