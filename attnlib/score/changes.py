"""Changes of a score: functions `(score, b, h, q_idx, kv_idx) -> score`, as in FlexAttention.

They use elementwise operations and indexing only, so that one definition serves `attend`, the
chunked form and `torch.nn.attention.flex_attention`.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from attnlib.checks import check_count

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def changed(score_mod: ScoreMod, scores: Tensor, where: tuple[Tensor, ...]) -> Tensor:
    """The scores after a change, once it is sure to be one: their shape stays."""
    if not callable(score_mod):
        raise TypeError(
            "score_mod must be a function (score, b, h, q_idx, kv_idx) -> score, "
            f"got {type(score_mod).__name__}"
        )
    try:
        result = score_mod(scores, *where)
    except IndexError as error:
        raise ValueError(
            "score_mod must hold for all heads, queries and keys, got a table that is too small: "
            f"{error}"
        ) from error
    if not isinstance(result, Tensor) or result.shape != scores.shape:
        came = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise ValueError(f"score_mod must keep the shape {tuple(scores.shape)}, got {came}")
    return result


def then(first: ScoreMod, second: ScoreMod) -> ScoreMod:
    """Two changes one after the other: second(first(score))."""

    def change(score, b, h, q_idx, kv_idx):
        return second(first(score, b, h, q_idx, kv_idx), b, h, q_idx, kv_idx)

    return change


def bias(table: Float[Tensor, "N M"] | Float[Tensor, "heads N M"]) -> ScoreMod:
    """Additive bias: s_ij + B_ij, one table for all heads or one for each."""
    if table.dim() not in (2, 3):
        raise ValueError(f"table must have shape (N, M) or (heads, N, M), got {tuple(table.shape)}")

    def change(score, b, h, q_idx, kv_idx):
        entry = table[q_idx, kv_idx] if table.dim() == 2 else table[h, q_idx, kv_idx]
        return score + entry

    return change


def alibi_slopes(heads: int) -> Float[Tensor, " heads"]:
    """Slopes 2^(-8/heads), 2^(-16/heads), ... for a power of two.

    Other numbers of heads take the slopes of the next smaller power of two and fill up with
    every second slope of the next larger one.
    Source: Press et al. (2022), section 3, and the rule of its published code.
    """
    check_count("heads", heads, least=1)
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    between = [2 ** (-8 * (i + 1) / (2 * power)) for i in range(0, 2 * power, 2)]
    return torch.tensor(slopes + between[: heads - power], dtype=torch.float64)


def alibi(heads: int) -> ScoreMod:
    """Linear distance penalty: s_ij - m_h |i - j| (no parameters).

    Source: Press et al. (2022), section 3; the paper is causal, where |i - j| = i - j.
    """
    slopes = alibi_slopes(heads)

    def change(score, b, h, q_idx, kv_idx):
        slope = slopes.to(score.device, score.dtype)[h]
        return score - slope * (q_idx - kv_idx).abs()

    return change


def relative_bias(table: Float[Tensor, "heads span"]) -> ScoreMod:
    """Learned bias by distance: s_ij + table[h, clip(j - i, -K, K) + K] with span = 2 K + 1.

    Source: the clipped distance of Shaw et al. (2018), as a scalar for each head and distance
    (Raffel et al., 2020, section 2.1).
    """
    if table.dim() != 2 or table.shape[1] % 2 == 0:
        raise ValueError(
            f"table must have shape (heads, 2 K + 1), an odd second size, got {tuple(table.shape)}"
        )
    reach = table.shape[1] // 2

    def change(score, b, h, q_idx, kv_idx):
        return score + table[h, (kv_idx - q_idx).clamp(-reach, reach) + reach]

    return change


def soft_cap(limit: float) -> ScoreMod:
    """Scores bent into (-limit, limit): limit * tanh(s / limit)."""
    if not (math.isfinite(limit) and limit > 0):
        raise ValueError(f"limit must be positive and finite, got {limit}")

    def change(score, b, h, q_idx, kv_idx):
        return limit * torch.tanh(score / limit)

    return change
