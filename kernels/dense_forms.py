"""The definition of attention in plain torch, with all N x M weights: what kernels must equal.

A reference lies here where several kernels are proved by it. Any dtype, any device.
"""

import torch
from torch import Tensor


def softmax_attention(
    query: Tensor, key: Tensor, value: Tensor, support: Tensor, scale: float | None = None
) -> Tensor:
    """o_i = sum_{j in S_i} e^{s_ij} v_j / sum_{j in S_i} e^{s_ij}; zero where S_i is empty.

    Shapes: query (..., H, N, D), key (..., Hkv, M, D), value (..., Hkv, M, E); support broadcasts
    to (..., H, N, M).
    """
    key, value = (for_every_head(tensor, query) for tensor in (key, value))
    scale = scale or query.shape[-1] ** -0.5
    scores = torch.where(support, scale * (query @ key.mT), -torch.inf)
    empty = ~support.any(-1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(empty, 0.0), -1).masked_fill(~support, 0.0)
    return weights @ value


def for_every_head(tensor: Tensor, query: Tensor) -> Tensor:
    """Keys or values (..., Hkv, M, D) as (..., H, M, D): each as often as query heads share it."""
    if query.dim() == 2:
        return tensor
    return tensor.repeat_interleave(query.shape[-3] // max(1, tensor.shape[-3]), -3)


def band_support(
    query: Tensor,
    key: Tensor,
    is_causal: bool = False,
    query_offset: int = 0,
    window: int | None = None,
    key_mask: Tensor | None = None,
) -> Tensor:
    """Which query sees which key, as a table that broadcasts to the scores."""
    position = torch.arange(query.shape[-2], device=query.device)[:, None] + query_offset
    keys = torch.arange(key.shape[-2], device=query.device)
    support = torch.ones(len(position), len(keys), dtype=torch.bool, device=query.device)
    if is_causal or window is not None:
        support = keys <= position
    if window is not None:
        support = support & (keys > position - window)
    if key_mask is not None:
        key_mask = key_mask.expand(*key.shape[:-3], len(keys))
        heads_and_queries = (1,) * (query.dim() - key_mask.dim())
        shape = (*key_mask.shape[:-1], *heads_and_queries, len(keys))
        support = support & key_mask.reshape(shape)
    return support
