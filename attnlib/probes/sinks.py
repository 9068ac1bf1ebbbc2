"""Measures of a sink: how much weight a key gets, how large its value and its residual are."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from attnlib.checks import check_count, check_tensor
from attnlib.probes.recording import Recording


def mean_weight(weights: Float[Tensor, "*lead N M"], key: int = 0) -> Float[Tensor, "*lead"]:
    r"""The weight on one key, averaged over the queries that can see it under a causal mask.

    .. math:: \alpha_k = \frac{1}{N - k} \sum_{i=k}^{N-1} A_{ik}

    Source: Gu et al. (2025), section 3.2 (their importance score; keys counted from 1 there).
    Raises ValueError for a key that is not there.
    """
    check_tensor("weights", weights)
    check_count("key", key)
    if key >= min(weights.shape[-2:]):
        raise ValueError(
            f"key must be below the {min(weights.shape[-2:])} tokens of the weights, got {key}"
        )
    return weights[..., key:, key].mean(-1)


def sink_share(
    weights: Float[Tensor, "*lead N M"], key: int = 0, threshold: float = 0.3
) -> Float[Tensor, ""]:
    r"""The share of maps (layers, sequences, heads) in which a key is a sink.

    .. math:: \mathrm{Sink}_k^\epsilon =
        \frac1L \sum_l \frac1H \sum_h \mathbf{1}[\alpha_k^{l,h} > \epsilon]

    `weights` has any leading dimensions, such as (layers, batch, heads, N, M); the mean runs over
    all of them.
    Source: Gu et al. (2025), section 3.2, with epsilon = 0.3.
    Raises ValueError for a threshold outside 0 ... 1.
    """
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
        raise TypeError(f"threshold must be a number, got {type(threshold).__name__}")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in 0 ... 1, got {threshold}")
    return (mean_weight(weights, key) > threshold).double().mean()


def row_shares(weights: Float[Tensor, "*lead N M"]) -> Float[Tensor, "*lead N M"]:
    """Each weight as a share of the sizes of its row, |w| / sum |w|; a row of zeros stays zero.

    So maps whose rows need not sum to one can be held against maps whose rows do.
    """
    check_tensor("weights", weights)
    sizes = weights.abs()
    total = sizes.sum(-1, keepdim=True)
    return sizes / total.masked_fill(total == 0, 1.0)


def value_norms(recording: Recording) -> Float[Tensor, "layers batch heads N"]:
    """The length of each value vector."""
    return torch.stack([layer.value.norm(dim=-1) for layer in recording.layers])


def residual_norms(recording: Recording) -> Float[Tensor, "layers+1 batch N"]:
    """The length of each token in the residual stream: before the first layer, after each layer."""
    stream = [recording.layers[0].before, *(layer.after for layer in recording.layers)]
    return torch.stack([tokens.norm(dim=-1) for tokens in stream])


def times_the_others(norms: Float[Tensor, "*lead N"], place: int = 0) -> Float[Tensor, "*lead"]:
    """How many times the mean of the others the number at one place is."""
    check_count("place", place)
    if norms.shape[-1] < 2 or place >= norms.shape[-1]:
        raise ValueError(
            f"place must be one of at least two numbers, got {place} of {norms.shape[-1]}"
        )
    others = (norms.sum(-1) - norms[..., place]) / (norms.shape[-1] - 1)
    return norms[..., place] / others


def cosine(
    vectors: Float[Tensor, "*lead width"], direction: Float[Tensor, " width"]
) -> Float[Tensor, "*lead"]:
    """The cosine of the angle between each vector and one direction; zero for a zero vector."""
    check_tensor("vectors", vectors)
    check_tensor("direction", direction)
    if direction.dim() != 1 or vectors.shape[-1:] != direction.shape:
        raise ValueError(
            f"direction must have shape ({vectors.shape[-1]},), got {tuple(direction.shape)}"
        )
    lengths = vectors.norm(dim=-1) * direction.norm()
    if not math.isfinite(float(direction.norm())) or float(direction.norm()) == 0:
        raise ValueError("direction must be a finite vector other than zero")
    return (vectors @ direction) / lengths.masked_fill(lengths == 0, 1.0)
