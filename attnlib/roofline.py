"""The roofline: what a chip can do at most with the bytes that an operation asks it to move.

    time >= max(operations / matrix rate, bytes / bandwidth)

Operations are counted as in papers: a multiplication and an addition are two. Source: Williams,
Waterman and Patterson (2009). Derived in chapter 1.4.
"""

from __future__ import annotations

from typing import NamedTuple


class Chip(NamedTuple):
    """What a chip does in a second, by its data sheet."""

    name: str
    operations: float  # of dense matrix products in bfloat16
    bytes: float  # between its memory and its processors

    @property
    def balance(self) -> float:
        """Operations that it can do in the time in which it moves one byte."""
        return self.operations / self.bytes


A100 = Chip("A100 80GB SXM", 312e12, 2.039e12)
H100 = Chip("H100 SXM", 989.4e12, 3.35e12)
H200 = Chip("H200 SXM", 989.4e12, 4.8e12)


class Cost(NamedTuple):
    """Operations and bytes of a piece of work."""

    operations: float
    bytes: float

    @property
    def intensity(self) -> float:
        """Operations for each byte that is moved."""
        return self.operations / self.bytes

    def seconds(self, chip: Chip) -> float:
        """The least time on a chip: the slower of computing and moving."""
        return max(self.operations / chip.operations, self.bytes / chip.bytes)

    def attainable(self, chip: Chip) -> float:
        """Operations a second at most: under the sloping roof or under the flat one."""
        return min(chip.operations, self.intensity * chip.bytes)


def shared_heads_step(
    tokens: int,
    *,
    heads: int,
    key_heads: int,
    width: int,
    value_heads: int | None = None,
    number_bytes: int = 2,
) -> Cost:
    r"""One token reads a cache of `tokens` tokens: softmax attention with shared key heads.

    Scores and reads take 2 H M D operations each; the cache holds (Hk + Hv) M D numbers. With as
    many value heads as key heads the intensity is 2 H / (Hkv b) for b bytes a number.
    """
    value_heads = key_heads if value_heads is None else value_heads
    return Cost(
        operations=4 * heads * tokens * width,
        bytes=(key_heads + value_heads) * tokens * width * number_bytes,
    )


def latent_step(
    tokens: int, *, heads: int, latent: int, rotary: int, number_bytes: int = 2
) -> Cost:
    r"""One token reads a cache of latents with the projections absorbed.

    Scores take 2 H M (R + Dr) operations, reads 2 H M R; the cache holds M (R + Dr) numbers, once
    for all heads. The projections of the query and of the read do not depend on M; they are left
    out here and counted in chapter 1.4.
    """
    return Cost(
        operations=2 * heads * tokens * (2 * latent + rotary),
        bytes=tokens * (latent + rotary) * number_bytes,
    )
