"""The score step with lengths taken out: the cosine of the angle between query and key."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from attnlib.score.compare import dot_product


def cosine(
    query: Float[Tensor, "*batch N D"],
    key: Float[Tensor, "*batch M D"],
    scale: float | None = None,
) -> Float[Tensor, "*batch N M"]:
    r"""Scaled cosine, s_ij = scale * q_i . k_j / (|q_i| |k_j|), with scale log D unless given.

    Scores lie between -scale and scale. A vector shorter than 1e-6 is not stretched to length 1, so
    a zero vector has score zero.
    Raises ValueError for D = 1 without a scale, since log 1 = 0 scores every key alike.
    Source: Henry et al. (2020), with a learned scale; log D as in Gao et al. (2025).
    """
    width = query.shape[-1]
    if scale is None and width == 1:
        raise ValueError("query must have a width of at least 2 for the scale log D, got 1")
    exact = torch.promote_types(query.dtype, torch.float32)
    directions = (normalize(x.to(exact), dim=-1, eps=1e-6).to(x.dtype) for x in (query, key))
    return dot_product(*directions, scale=math.log(width) if scale is None else scale)
