"""A cache for streams without end: the first few keys for ever, and a ring of the last ones."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attnlib.attend import attend
from attnlib.checks import check_count, check_tensor
from attnlib.score.positions import rotate


class StreamingCache(NamedTuple):
    r"""The keys and values of the first `sinks` tokens and of the last `window` tokens.

    There are sinks + window places and never more. Token t goes to place t while t < sinks, and to
    place sinks + (t - sinks) mod window afterwards, over the token that has left the window. Keys
    are kept as they come, before any rotation: with rotary positions a key is turned when it is
    read, by its position IN THE CACHE, so that no distance ever exceeds sinks + window - 1.

    Begin with `StreamingCache.empty`; `append` gives a new cache and leaves this one as it was.
    Memory: (sinks + window)(D + E) numbers a head, whatever the length of the stream.
    Source: Xiao et al. (2024), section 3.2. Derived in chapter 4.1.
    """

    key_rows: Float[Tensor, "*heads places D"]
    value_rows: Float[Tensor, "*heads places E"]
    sinks: int
    window: int
    seen: int

    @classmethod
    def empty(
        cls,
        key: Float[Tensor, "*heads n D"],
        value: Float[Tensor, "*heads n E"],
        *,
        sinks: int = 4,
        window: int = 60,
    ) -> StreamingCache:
        """A cache without tokens, laid out for keys and values like these."""
        check_cache_sizes(sinks, window)
        check_tensor("key", key)
        check_tensor("value", value)
        places = sinks + window
        return cls(
            key.new_zeros(*key.shape[:-2], places, key.shape[-1]),
            value.new_zeros(*value.shape[:-2], places, value.shape[-1]),
            sinks,
            window,
            0,
        )

    @property
    def places(self) -> int:
        """How many tokens there is room for."""
        return self.sinks + self.window

    @property
    def length(self) -> int:
        """How many tokens are kept."""
        return min(self.seen, self.places)

    @property
    def nbytes(self) -> int:
        """The memory of the rows, in bytes."""
        return self.key_rows.nbytes + self.value_rows.nbytes

    @property
    def tokens(self) -> Int[Tensor, " places"]:
        """Which token of the stream stands in each place; -1 for a place that is still empty."""
        place = torch.arange(self.places, device=self.key_rows.device)
        rounds = torch.div(self.seen - 1 - place, self.window, rounding_mode="floor")
        token = torch.where(place < self.sinks, place, place + self.window * rounds.clamp(min=0))
        return torch.where(place < self.seen, token, -1)

    @property
    def positions(self) -> Int[Tensor, " places"]:
        """The position in the cache of the token in each place: without the tokens that left."""
        tokens, gone = self.tokens, max(0, self.seen - self.places)
        return torch.where(tokens < self.sinks, tokens, tokens - gone)

    def append(
        self, key: Float[Tensor, "*heads n D"], value: Float[Tensor, "*heads n E"]
    ) -> StreamingCache:
        """A new cache with n more tokens, n at most the room of the window.

        Raises ValueError where rows do not fit in shape, or overflow the window: more than it holds
        would push each other out before any is read. TypeError for another dtype.
        """
        for name, rows, new in (("key", self.key_rows, key), ("value", self.value_rows, value)):
            _check_rows(name, rows, new)
        count = key.shape[-2]
        if count != value.shape[-2]:
            raise ValueError(
                f"value must have one row for each key: got {count} keys and "
                f"{value.shape[-2]} values"
            )
        if count > self.window:
            raise ValueError(
                f"the cache overflows: its window holds {self.window} tokens, and key brings "
                f"{count} at once; append them in parts"
            )
        token = torch.arange(self.seen, self.seen + count, device=key.device)
        ring = self.sinks + torch.remainder(token - self.sinks, self.window)
        place = torch.where(token < self.sinks, token, ring)
        return self._replace(
            key_rows=self.key_rows.index_copy(-2, place, key),
            value_rows=self.value_rows.index_copy(-2, place, value),
            seen=self.seen + count,
        )

    def read(
        self,
        query: Float[Tensor, "*query_heads 1 D"],
        *,
        rotary: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Float[Tensor, "*query_heads 1 E"]:
        """What the newest token reads from all that is kept, its own key among them.

        With `rotary` the query and the keys are turned by their positions in the cache.
        Raises ValueError where nothing has been appended, and for more than one query.
        """
        check_tensor("query", query)
        if self.seen == 0:
            raise ValueError("the cache is read before it is written: append a token first")
        if query.dim() < 2 or query.shape[-2] != 1:
            raise ValueError(
                "query must be that of the newest token alone, shape (..., heads, 1, D), "
                f"got {tuple(query.shape)}"
            )
        key = self.key_rows
        if rotary:
            newest = torch.tensor([self.length - 1], device=query.device)
            query, key = rotate(query, newest), rotate(key, self.positions.clamp(min=0))
        kept: Bool[Tensor, " places"] = self.tokens >= 0
        return attend(
            query, key, self.value_rows, attn_mask=kept, scale=scale, enable_gqa=enable_gqa
        )


def check_cache_sizes(sinks: int, window: int) -> None:
    """Check that a cache keeps at least the newest token."""
    check_count("sinks", sinks)
    check_count("window", window, least=1)


def _check_rows(name: str, rows: Tensor, new: Tensor) -> None:
    check_tensor(name, new)
    if new.dim() < 2 or new.shape[:-2] != rows.shape[:-2] or new.shape[-1:] != rows.shape[-1:]:
        raise ValueError(
            f"{name} must have shape {(*rows.shape[:-2], 'n', rows.shape[-1])} to be appended, "
            f"got {tuple(new.shape)}"
        )
    if (new.dtype, new.device) != (rows.dtype, rows.device):
        raise TypeError(
            f"{name} must be {rows.dtype} on {rows.device} to be appended, "
            f"got {new.dtype} on {new.device}"
        )
