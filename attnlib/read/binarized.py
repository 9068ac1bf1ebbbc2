"""Weights of one bit: which keys of a row are read at all, and the one number that they share."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.weight.softmax import softmax

Bits = Callable[[Tensor, Tensor], Tensor]
"""(weights, scores), both (*batch, N, M) -> the keys that keep a bit, as booleans."""


def shared_value(
    weights: Float[Tensor, "*batch N M"], bits: Bool[Tensor, "*batch N M"]
) -> Float[Tensor, "*batch N 1"]:
    r"""The best v of a row for given bits: the mean of the chosen weights, 0 where none is chosen.

    It minimizes |a - v b|^2. Source: He et al. (2023), eq. 8.
    """
    count = bits.sum(-1, keepdim=True).clamp(min=1)
    return (weights * bits).sum(-1, keepdim=True) / count


def best_bits(weights: Float[Tensor, "*batch N M"]) -> Bool[Tensor, "*batch N M"]:
    r"""The bits b of the smallest |a - v b|^2 over all b and v, by sorting.

    Of all sets of k keys the k largest are best, and leave |a|^2 - S_k^2 / k, where S_k is the sum
    of the k largest. So b is the top k of the largest S_k^2 / k.
    Cost: time N M log M. Derived in the companion of chapter 1.4.
    """
    ranked, order = weights.sort(dim=-1, descending=True)
    sizes = torch.arange(1, weights.shape[-1] + 1, device=weights.device)
    count = (ranked.cumsum(-1) ** 2 / sizes).argmax(-1, keepdim=True) + 1
    return torch.zeros_like(weights, dtype=torch.bool).scatter(-1, order, sizes <= count)


def descended_bits(
    weights: Float[Tensor, "*batch N M"], rounds: int = 5
) -> Bool[Tensor, "*batch N M"]:
    """The bits that coordinate descent finds: v is the mean of the chosen, then a_j >= v / 2.

    It begins with all keys. Source: He et al. (2023), algorithm 1 and eqs. 8 to 10.
    """
    bits = torch.ones_like(weights, dtype=torch.bool)
    for _ in range(rounds):
        bits = weights >= shared_value(weights, bits) / 2
    return bits


def bits_above(
    weights: Float[Tensor, "*batch N M"], share: float = 0.25
) -> Bool[Tensor, "*batch N M"]:
    """The keys with at least `share` of the row's largest weight.

    Source: He et al. (2023), eq. 11; 0.25 is the share in the authors' code.
    """
    return weights >= share * weights.amax(-1, keepdim=True)


def binarized(bits: Bits, *, scaled: bool = True) -> Callable[[Tensor, Tensor], Tensor]:
    """A weight step for `attend`: softmax, then one bit a weight, times v of the row if `scaled`.

    Keys outside the support never get a bit. Without the scale a row sums to its number of bits.
    """

    def weight(
        scores: Float[Tensor, "*batch N M"], support: Bool[Tensor, "*batch N M"]
    ) -> Float[Tensor, "*batch N M"]:
        weights = softmax(scores, support)
        chosen = bits(weights, scores) & support
        value = shared_value(weights, chosen) if scaled else 1.0
        return value * chosen.to(weights.dtype)

    return weight
