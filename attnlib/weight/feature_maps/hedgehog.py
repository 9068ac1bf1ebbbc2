"""The Hedgehog map: learnt features that copy the spikes and the order of softmax weights."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


def hedgehog(
    x: Float[Tensor, "*batch D"],
    matrix: Float[Tensor, "*#batch F D"],
    offset: Float[Tensor, "*#batch F"] | None = None,
) -> Float[Tensor, "*batch two_F"]:
    r"""phi(x) = softmax of [W x + b, -W x - b]: each direction and its opposite, exponentiated.

    The softmax runs over the 2 F features. In a query it cancels when the row is divided by its
    sum; in a key it keeps the features below one, and weighs the key by one over its own total.
    Source: Zhang et al. (2024), the Hedgehog map with negation and with its softmax.
    """
    if matrix.shape[-1] != x.shape[-1]:
        raise ValueError(
            f"matrix must have the width of query and key, {x.shape[-1]}, got {matrix.shape[-1]}"
        )
    return torch.softmax(both_signs(x, matrix, offset), dim=-1)


def hedgehog_exponential(
    x: Float[Tensor, "*batch D"],
    matrix: Float[Tensor, "*#batch F D"],
    offset: Float[Tensor, "*#batch F"] | None = None,
) -> Float[Tensor, "*batch two_F"]:
    r"""phi(x) = e^{[W x + b, -W x - b]}, not divided. Finite while |W x + b| < 44 in float32.

    Source: Zhang et al. (2024), the Hedgehog map with negation.
    """
    return both_signs(x, matrix, offset).exp()


def both_signs(x: Tensor, matrix: Tensor, offset: Tensor | None) -> Tensor:
    """[W x + b, -W x - b]."""
    projected = x @ matrix.mT.to(x)
    if offset is not None:
        projected = projected + offset.to(x).unsqueeze(-2)
    return torch.cat((projected, -projected), dim=-1)


class HedgehogMap(nn.Module):
    """The Hedgehog map with its own parameters, one for each of `heads` heads; starts as identity.

    W is (heads, F, D) and b (heads, F); with heads=1 all heads share them. F is D unless given.
    """

    def __init__(self, head_width: int, heads: int = 1, features: int | None = None):
        super().__init__()
        features = head_width if features is None else features
        self.matrix = nn.Parameter(torch.eye(features, head_width).repeat(heads, 1, 1))
        self.offset = nn.Parameter(torch.zeros(heads, features))

    def forward(
        self, x: Float[Tensor, "*batch heads N D"]
    ) -> Float[Tensor, "*batch heads N two_F"]:
        """The features of every head's rows."""
        if x.dim() < 3:
            return hedgehog(x, self.matrix[0], self.offset[0])
        return hedgehog(x, self.matrix, self.offset)
