"""The support step: which keys a query may see.

A support is a predicate `(b, h, q_idx, kv_idx) -> bool` on index tensors, as in
`torch.nn.attention.flex_attention`, which takes every support of this file unchanged. Supports
combine by `&` (both), `|` (either) and `~` (not). `q_idx` is the position of the query, with the
offset of a decoding step already added.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from attnlib.checks import check_count, fits

Predicate = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Grid = tuple[Tensor, Tensor, Tensor, Tensor]


class Support:
    """A predicate that can be combined and that knows its name."""

    def __init__(self, predicate: Predicate, name: str):
        self.predicate = predicate
        self.name = name

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return self.predicate(b, h, q_idx, kv_idx)

    def __and__(self, other: Predicate) -> Support:
        return Support(lambda *at: self(*at) & other(*at), f"({self.name} & {_name(other)})")

    def __or__(self, other: Predicate) -> Support:
        return Support(lambda *at: self(*at) | other(*at), f"({self.name} | {_name(other)})")

    def __invert__(self) -> Support:
        return Support(lambda *at: ~self(*at), f"~{self.name}")

    def __repr__(self) -> str:
        return self.name


def _check_table(name: str, table: Tensor) -> None:
    if not isinstance(table, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(table).__name__}")


def _name(predicate: Predicate) -> str:
    return getattr(predicate, "name", getattr(predicate, "__name__", "support"))


everything = Support(lambda b, h, q_idx, kv_idx: kv_idx >= 0, "everything")
"""Every key."""

causal = Support(lambda b, h, q_idx, kv_idx: kv_idx <= q_idx, "causal")
"""The keys that are not in the future: j <= i."""


def window(width: int, two_sided: bool = False) -> Support:
    """The last `width` keys, i - width < j <= i; two-sided: |i - j| < width."""
    check_count("width", width, least=1)
    if two_sided:
        return Support(
            lambda b, h, q_idx, kv_idx: (q_idx - kv_idx).abs() < width,
            f"window({width}, two_sided=True)",
        )
    return Support(
        lambda b, h, q_idx, kv_idx: (kv_idx <= q_idx) & (q_idx - kv_idx < width),
        f"window({width})",
    )


def sink(count: int) -> Support:
    """The first `count` keys, whatever the query."""
    check_count("count", count)
    return Support(lambda b, h, q_idx, kv_idx: kv_idx < count, f"sink({count})")


def sink_and_window(count: int, width: int) -> Support:
    """The first `count` keys and the last `width`, never the future."""
    return (sink(count) | window(width)) & causal


def prefix(length: int) -> Support:
    """The first `length` keys for everybody, and causal after them."""
    check_count("length", length)
    return Support(
        lambda b, h, q_idx, kv_idx: (kv_idx < length) | (kv_idx <= q_idx), f"prefix({length})"
    )


def dilated(step: int) -> Support:
    """Every `step`-th key, counted from the query in both directions."""
    check_count("step", step, least=1)
    return Support(lambda b, h, q_idx, kv_idx: (q_idx - kv_idx) % step == 0, f"dilated({step})")


def document(ids: Int[Tensor, " length"] | Int[Tensor, "batch length"]) -> Support:
    """The keys of the query's own document; `ids` names the document of each position."""
    _check_table("ids", ids)
    if ids.dim() not in (1, 2):
        raise ValueError(
            f"ids must have shape (length,) or (batch, length), got {tuple(ids.shape)}"
        )
    if ids.dim() == 1:
        return Support(lambda b, h, q_idx, kv_idx: ids[q_idx] == ids[kv_idx], "document(ids)")
    return Support(lambda b, h, q_idx, kv_idx: ids[b, q_idx] == ids[b, kv_idx], "document(ids)")


def padding(lengths: Int[Tensor, " batch"]) -> Support:
    """The keys before the padding: j < lengths[b]."""
    _check_table("lengths", lengths)
    if lengths.dim() != 1:
        raise ValueError(f"lengths must have shape (batch,), got {tuple(lengths.shape)}")
    return Support(lambda b, h, q_idx, kv_idx: kv_idx < lengths[b], "padding(lengths)")


def from_mask(mask: Bool[Tensor, "N M"]) -> Support:
    """The keys that a bool table marks True."""
    _check_table("mask", mask)
    if mask.dtype != torch.bool or mask.dim() != 2:
        raise ValueError(f"mask must be a bool table (N, M), got {mask.dtype} {tuple(mask.shape)}")
    return Support(lambda b, h, q_idx, kv_idx: mask[q_idx, kv_idx], "from_mask(mask)")


def shifted(support: Predicate, query_offset: int) -> Support:
    """The same support for queries counted from `query_offset` on (what FlexAttention needs)."""
    check_count("query_offset", query_offset)
    return Support(
        lambda b, h, q_idx, kv_idx: support(b, h, q_idx + query_offset, kv_idx),
        f"shifted({_name(support)}, {query_offset})",
    )


def index_grid(query: Tensor, keys: int, query_offset: int = 0) -> Grid:
    """Index tensors (b, h, q_idx, kv_idx) that broadcast to the scores of a query.

    The query has shape (..., heads, N, D); batch dimensions are numbered through as one index b.
    """
    *lead, queries, _ = query.shape
    batch, heads = lead[:-1], lead[-1:]
    device = query.device
    b = torch.arange(math.prod(batch), device=device).view(*batch, *[1] * (len(heads) + 2))
    h = torch.arange(math.prod(heads), device=device)[:, None, None] if heads else b
    q_idx = torch.arange(query_offset, query_offset + queries, device=device)[:, None]
    kv_idx = torch.arange(keys, device=device)[None, :]
    return b, h, q_idx, kv_idx


def allowed_keys(
    where: Grid,
    support: Predicate | None,
    attn_mask: Tensor | None,
    is_causal: bool,
) -> Bool[Tensor, ...]:
    """The intersection of a support, a mask and the causal rule, broadcastable to the scores."""
    allowed = everything(*where)
    if is_causal:
        allowed = allowed & causal(*where)
    if support is not None:
        allowed = allowed & seen_keys(support, where)
    if attn_mask is not None:
        allowed = allowed & attn_mask
    return allowed


def seen_keys(support: Predicate, where: Grid) -> Bool[Tensor, ...]:
    """What a support says of the pairs of `where`, once it is sure to be a support."""
    if not callable(support):
        raise TypeError(
            "support must be a predicate (b, h, q_idx, kv_idx) -> bool, "
            f"got {type(support).__name__}"
        )
    try:
        seen = support(*where)
    except IndexError as error:
        raise ValueError(
            f"support {_name(support)} must hold for all queries and keys, got a table that is "
            f"too small: {error}"
        ) from error
    if not isinstance(seen, Tensor) or seen.dtype != torch.bool:
        came = seen.dtype if isinstance(seen, Tensor) else type(seen).__name__
        raise TypeError(f"support {_name(support)} must give a bool tensor, got {came}")
    pairs = torch.broadcast_shapes(*(index.shape for index in where))
    if not fits(seen.shape, pairs):
        raise ValueError(
            f"support {_name(support)} must give a shape that broadcasts to {tuple(pairs)}, "
            f"got {tuple(seen.shape)}"
        )
    return seen


def dense(
    support: Predicate, queries: int, keys: int, *, batch: int = 1, heads: int = 1, query_offset=0
) -> Bool[Tensor, "batch heads queries keys"]:
    """The support as a table of bools, to be looked at or handed over as `attn_mask`."""
    where = index_grid(torch.empty(batch, heads, queries, 0), keys, query_offset)
    return torch.broadcast_to(support(*where), (batch, heads, queries, keys))
