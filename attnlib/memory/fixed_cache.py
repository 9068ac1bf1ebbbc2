"""A cache whose place is laid out in advance: rows are written into it and nothing is copied."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from attnlib.backend import gradient_wanted
from attnlib.checks import check_count, check_tensor


class FixedCache:
    """Keys and values of at most `capacity` tokens; `append` writes rows in place.

    `KeyValueCache` copies all it has for each new token, M rows for the M-th. Here a token costs
    its own rows, and the memory is taken once: capacity * (D + E) numbers for each head.

    Shapes: `heads` are the dimensions before the length, the last of them the key heads, so a
    cache for a batch of 2 with 8 key heads has heads=(2, 8); () is a single head. `key` is
    (*heads, length, D), `value` (*heads, length, E), with E = D unless `value_width` is given.
    For decoding without gradients. Derived in chapter 1.4.
    """

    def __init__(
        self,
        heads: tuple[int, ...],
        capacity: int,
        width: int,
        value_width: int | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ):
        value_width = width if value_width is None else value_width
        if not isinstance(heads, tuple | list):
            raise TypeError(
                "heads must be a tuple of the dimensions before the length, such as "
                f"(batch, key_heads), got {type(heads).__name__}"
            )
        for size in heads:
            check_count("heads", size)
        check_count("capacity", capacity, least=1)
        check_count("width", width, least=1)
        check_count("value_width", value_width, least=1)
        if not dtype.is_floating_point:
            raise TypeError(f"dtype must be a floating-point dtype, got {dtype}")
        self.key_rows = torch.empty(*heads, capacity, width, dtype=dtype, device=device)
        self.value_rows = torch.empty(*heads, capacity, value_width, dtype=dtype, device=device)
        self.length = 0

    @property
    def capacity(self) -> int:
        """How many tokens there is room for."""
        return self.key_rows.shape[-2]

    @property
    def key(self) -> Float[Tensor, "*heads M D"]:
        """The keys so far: a view, never a copy."""
        return self.key_rows[..., : self.length, :]

    @property
    def value(self) -> Float[Tensor, "*heads M E"]:
        """The values so far: a view, never a copy."""
        return self.value_rows[..., : self.length, :]

    @property
    def numbers_per_token(self) -> int:
        """How many numbers one token of one sequence takes: key heads * (D + E)."""
        key_heads = math.prod(self.key_rows.shape[:-2][-1:])
        return key_heads * (self.key_rows.shape[-1] + self.value_rows.shape[-1])

    def append(self, key: Float[Tensor, "*heads n D"], value: Float[Tensor, "*heads n E"]) -> None:
        """Write n more rows of each behind the last one.

        Raises, before anything is written, ValueError where the rows do not fit in shape, device
        or number, or require a gradient, and TypeError for another dtype.
        """
        for name, rows, new in (("key", self.key_rows, key), ("value", self.value_rows, value)):
            _check_rows(name, rows, new)
        if key.shape[-2] != value.shape[-2]:
            raise ValueError(
                f"value must have one row for each key: got {key.shape[-2]} keys and "
                f"{value.shape[-2]} values"
            )
        end = self.length + key.shape[-2]
        if end > self.capacity:
            raise ValueError(
                f"the cache overflows: capacity {self.capacity}, length {self.length}, and key "
                f"brings {key.shape[-2]} more tokens"
            )
        self.key_rows[..., self.length : end, :] = key
        self.value_rows[..., self.length : end, :] = value
        self.length = end


def _check_rows(name: str, rows: Tensor, new: Tensor) -> None:
    check_tensor(name, new)
    if new.shape[:-2] != rows.shape[:-2] or new.shape[-1:] != rows.shape[-1:] or new.dim() < 2:
        raise ValueError(
            f"{name} must have shape {(*rows.shape[:-2], 'n', rows.shape[-1])} to be appended, "
            f"got {tuple(new.shape)}"
        )
    if new.dtype != rows.dtype:
        raise TypeError(f"{name} must be {rows.dtype} to be appended, got {new.dtype}")
    if new.device != rows.device:
        raise ValueError(f"{name} must be on {rows.device} to be appended, got {new.device}")
    if gradient_wanted(new):
        raise ValueError(
            f"{name} requires a gradient, and a cache that is written in place keeps none: "
            "decode under torch.no_grad(), or use KeyValueCache"
        )
