"""Positive random features: an unbiased estimate of the exponential of a dot product."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from attnlib.checks import check_count, check_scale
from attnlib.score.features import FeatureMap


def orthogonal_directions(
    width: int, features: int, *, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "R D"]:
    """`features` random directions, orthogonal in blocks of `width`, each as long as a normal draw.

    Each single row is distributed as a normal vector, so that the estimate stays unbiased; rows of
    a block look in different directions, which lowers its variance.
    Source: Choromanski et al. (2021), section 2.4.
    """
    check_count("width", width, least=1)
    check_count("features", features, least=1)
    blocks = []
    for _ in range(math.ceil(features / width)):
        normal = torch.randn(width, width, generator=generator, dtype=torch.float64)
        directions, triangle = torch.linalg.qr(normal)
        # A QR routine chooses the signs of the columns; those of `normal` make them uniform.
        blocks.append((directions * triangle.diagonal().sign()).mT)
    lengths = torch.randn(features, width, generator=generator, dtype=torch.float64).norm(dim=-1)
    return (torch.cat(blocks)[:features] * lengths[:, None]).to(dtype)


def positive_random_features(
    directions: Float[Tensor, "R D"], scale: float | None = None
) -> FeatureMap:
    r"""phi_r(x) = exp(w_r . x' - |x'|^2 / 2) / sqrt(R), x' = sqrt(scale) x; scale 1/sqrt(D).

    phi(q) . phi(k) has the expectation exp(scale q . k) over normal directions w_r, and is never
    negative. Its relative variance grows as exp(scale |q + k|^2) / R: for long vectors an estimate
    is nearly always far too small, and in float32 a row of such may sum to zero and read zero.
    Source: Choromanski et al. (2021), lemma 1 and eq. 5 with h(x) = exp(-|x|^2 / 2).
    """
    check_scale(scale)
    features, width = directions.shape

    def feature_map(x: Tensor) -> Tensor:
        if x.shape[-1] != width:
            raise ValueError(
                f"directions must have the width of query and key, {x.shape[-1]}, got {width}"
            )
        x = x * (width**-0.5 if scale is None else scale) ** 0.5
        exponent = x @ directions.to(x).mT - x.square().sum(-1, keepdim=True) / 2
        return exponent.exp() * features**-0.5

    return feature_map
