"""The rank of attention maps: how many independent rows a map has, exactly and in effect."""

import torch
from jaxtyping import Float
from torch import Tensor

from attnlib.checks import check_tensor


def map_rank(
    weights: Float[Tensor, "*lead N M"], tolerance: float = 1e-6
) -> Float[Tensor, "*lead"]:
    """How many singular values of a map exceed `tolerance` times its largest.

    A triangular map with a positive diagonal has full rank, whatever its numbers: its determinant
    is the product of the diagonal. Computed in float64.
    Raises ValueError for a tolerance outside 0 ... 1.
    """
    check_tensor("weights", weights)
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance must lie in [0, 1), got {tolerance}")
    values = torch.linalg.svdvals(weights.double())
    return (values > tolerance * values[..., :1]).sum(-1)


def effective_rank(weights: Float[Tensor, "*lead N M"]) -> Float[Tensor, "*lead"]:
    r"""e^H of the shares p of the singular values: as many as would be equally large.

    .. math:: \exp\big(-\sum_k p_k \log p_k\big), \qquad p_k = \sigma_k / \sum_l \sigma_l

    Source: Roy and Vetterli (2007), definition 1. Computed in float64.
    """
    check_tensor("weights", weights)
    values = torch.linalg.svdvals(weights.double())
    shares = values / values.sum(-1, keepdim=True)
    return torch.special.entr(shares).sum(-1).exp()


def singular_shares(weights: Float[Tensor, "*lead N M"]) -> Float[Tensor, "*lead R"]:
    """What share of all singular values the largest 1, 2, ... hold together.

    Source: Wang et al. (2024), section 3.7, who compare these curves of maps with and without a
    causal mask. Computed in float64.
    """
    check_tensor("weights", weights)
    values = torch.linalg.svdvals(weights.double())
    return values.cumsum(-1) / values.sum(-1, keepdim=True)
