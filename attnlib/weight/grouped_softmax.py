"""Grouped softmax: one softmax inside each group of a row's keys."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def grouped_softmax(
    scores: Float[Tensor, "*batch N M"],
    groups: Int[Tensor, "*#batch #N M"],
    support: Bool[Tensor, "*#batch #N M"],
) -> Float[Tensor, "*batch N M"]:
    r"""Positive weights that sum to one in every group: e^{s_j} / sum_{l in S, g_l = g_j} e^{s_l}.

    `groups` numbers the group of each key of each row, from 0. Outside the support, and in a group
    without support, the weight is zero. Cost: time and memory N M.
    Raises ValueError for groups that are negative or no integers.
    Source: Mohtashami and Jaggi (2023), section 3. Derived in chapter 6.1.
    """
    if groups.is_floating_point() or groups.dtype == torch.bool:
        raise ValueError(f"groups must be integers from 0, got {groups.dtype}")
    if groups.numel() and groups.min() < 0:
        raise ValueError(f"groups must be integers from 0, got {int(groups.min())}")
    groups, support = (torch.broadcast_to(x, scores.shape) for x in (groups, support))
    count = int(groups.max()) + 1 if groups.numel() else 1
    lowest = torch.finfo(scores.dtype).min
    scores = scores.masked_fill(~support, lowest)
    empty = scores.new_full((*scores.shape[:-1], count), lowest)
    highest = empty.scatter_reduce(-1, groups, scores.detach(), "amax")
    numerators = torch.exp(scores - highest.gather(-1, groups)).masked_fill(~support, 0.0)
    totals = torch.zeros_like(empty).scatter_add(-1, groups, numerators)
    return numerators / totals.masked_fill(totals == 0, 1.0).gather(-1, groups)
