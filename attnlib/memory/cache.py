"""The plainest memory: keep every key and value."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from attnlib.attend import attend


class KeyValueCache(NamedTuple):
    """The keys and values seen so far; it grows by one row a token."""

    key: Float[Tensor, "*heads M D"]
    value: Float[Tensor, "*heads M E"]

    @property
    def length(self) -> int:
        """How many tokens are kept."""
        return self.key.shape[-2]

    def append(self, key: Tensor, value: Tensor) -> KeyValueCache:
        """A new cache with the rows of `key` and `value` added; this one stays as it was."""
        for name, old, new in (("key", self.key, key), ("value", self.value, value)):
            if old.shape[:-2] != new.shape[:-2] or old.shape[-1] != new.shape[-1]:
                raise ValueError(
                    f"{name} must have shape {(*old.shape[:-2], 'n', old.shape[-1])} "
                    f"to be appended, got {tuple(new.shape)}"
                )
            if (new.dtype, new.device) != (old.dtype, old.device):
                raise TypeError(
                    f"{name} must be {old.dtype} on {old.device} to be appended, "
                    f"got {new.dtype} on {new.device}"
                )
        return KeyValueCache(
            torch.cat((self.key, key), dim=-2), torch.cat((self.value, value), dim=-2)
        )


def softmax_attention_step(
    cache: KeyValueCache | None,
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads N D"],
    value: Float[Tensor, "*key_heads N E"],
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Float[Tensor, "*heads N E"], KeyValueCache]:
    """Causal softmax attention for the next token (or tokens): (read, new cache).

    Token by token it gives the rows of `softmax_attention(..., is_causal=True)`.
    Cost: time and memory M (D + E) a token for a cache of M tokens. Pass None to begin.
    """
    if cache is not None and not isinstance(cache, KeyValueCache):
        raise TypeError(f"cache must be a KeyValueCache or None, got {type(cache).__name__}")
    cache = KeyValueCache(key, value) if cache is None else cache.append(key, value)
    if query.shape[-2] > cache.length:
        raise ValueError(
            f"query must have at most as many rows as tokens are kept ({cache.length}), "
            f"got {query.shape[-2]}"
        )
    read = attend(
        query,
        cache.key,
        cache.value,
        is_causal=True,
        query_offset=cache.length - query.shape[-2],
        scale=scale,
        enable_gqa=enable_gqa,
    )
    return read, cache
