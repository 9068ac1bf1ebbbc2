"""Checks of what comes in: every error names the argument, what came and what was expected."""

import math

import torch
from torch import Tensor


def check_tensor(name: str, tensor: Tensor) -> None:
    """Raise TypeError unless `tensor` is a floating-point tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {tensor.dtype}")


def check_dtype(name: str, tensor: Tensor, query: Tensor) -> None:
    """Raise TypeError unless `tensor` has the dtype of the query."""
    if tensor.dtype != query.dtype:
        raise TypeError(f"{name} must have the dtype of query ({query.dtype}), got {tensor.dtype}")


def check_attention(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool = False) -> None:
    """Check that query (..., heads, N, D), key (..., heads, M, D) and value (..., heads, M, E) fit.

    With `enable_gqa` the number of query heads may be a multiple of the number of key heads.
    The widths of query and key are left to the score, which alone knows whether they must agree.
    """
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        check_tensor(name, tensor)
        if tensor.dim() < 2:
            raise ValueError(
                f"{name} must have shape (..., heads, length, dim) or (length, dim), "
                f"got shape {tuple(tensor.shape)}"
            )
    for name, tensor in (("key", key), ("value", value)):
        check_dtype(name, tensor, query)
        if tensor.device != query.device:
            raise ValueError(
                f"{name} must be on the device of query ({query.device}), got {tensor.device}"
            )
        if tensor.dim() != query.dim():
            raise ValueError(
                f"{name} must have as many dimensions as query ({query.dim()}), "
                f"got {tensor.dim()}: shape {tuple(tensor.shape)}"
            )
    if key.shape[:-1] != value.shape[:-1]:
        raise ValueError(
            "value must have one row for each key: expected shape "
            f"{(*key.shape[:-1], 'E')}, got {tuple(value.shape)}"
        )
    if query.shape[:-3] != key.shape[:-3]:
        raise ValueError(
            f"key must have the batch dimensions of query {tuple(query.shape[:-3])}, "
            f"got {tuple(key.shape[:-3])}"
        )
    if query.dim() >= 3:
        _check_heads(query.shape[-3], key.shape[-3], enable_gqa)


def _check_heads(query_heads: int, key_heads: int, enable_gqa: bool) -> None:
    if enable_gqa:
        if key_heads == 0 or query_heads % key_heads:
            raise ValueError(
                "with enable_gqa the heads of query must be a multiple of the heads of key: "
                f"got {query_heads} query heads and {key_heads} key heads"
            )
    elif query_heads != key_heads:
        raise ValueError(
            f"key must have the {query_heads} heads of query, got {key_heads} "
            "(pass enable_gqa=True to share key heads between query heads)"
        )


def check_mask(attn_mask: Tensor, shape: torch.Size) -> None:
    """Check that a mask is bool (True = may attend) and broadcasts to the scores."""
    if not isinstance(attn_mask, Tensor) or attn_mask.dtype != torch.bool:
        came = attn_mask.dtype if isinstance(attn_mask, Tensor) else type(attn_mask).__name__
        raise TypeError(
            f"attn_mask must be a bool tensor (True = may attend), got {came}; "
            "pass a mask of 0 and -inf as attn_mask=(mask == 0), and an additive bias as "
            "score_mod=attnlib.score.bias(tensor)"
        )
    if not fits(attn_mask.shape, shape):
        raise ValueError(
            f"attn_mask must broadcast to the scores' shape {tuple(shape)}, "
            f"got {tuple(attn_mask.shape)}"
        )


def fits(shape: torch.Size, into: torch.Size) -> bool:
    """Whether a tensor of `shape` broadcasts to `into`, without making it any larger."""
    try:
        return torch.broadcast_shapes(shape, into) == into
    except RuntimeError:
        return False


def check_scale(scale: float | None) -> None:
    """Check that a scale is None (the score's own default) or a positive finite number."""
    if scale is None:
        return
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise TypeError(f"scale must be a number, got {type(scale).__name__}")
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be a positive finite number, got {scale}")


def check_count(name: str, number: int, least: int = 0) -> None:
    """Check that `number` is an integer of at least `least`."""
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{name} must be an int, got {type(number).__name__}")
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
