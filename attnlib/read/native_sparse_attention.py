"""Native sparse attention (NSA): summaries of blocks, the best blocks themselves, and a window."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.checks import (
    check_attention,
    check_count,
    check_dtype,
    check_scale,
    check_tensor,
    fits,
)
from attnlib.read.chosen_blocks import (
    block_count,
    chosen_pairs,
    highest_blocks,
    read_chosen_blocks,
)
from attnlib.read.chunked_softmax import chunked_softmax_attention
from attnlib.read.heads import repeat_key_heads
from attnlib.support import window as last_keys

Summary = Callable[[Tensor], Tensor]
FIXED_BLOCKS = 3
"""Blocks that every query reads: the first, its own and the one before it."""


def pieces(
    rows: Float[Tensor, "*heads M D"], size: int, stride: int
) -> Float[Tensor, "*heads pieces size D"]:
    """Every run of `size` rows that begins at a multiple of `stride` and is complete."""
    if rows.shape[-2] < size:
        return rows.new_zeros(*rows.shape[:-2], 0, size, rows.shape[-1])
    return rows.unfold(-2, size, stride).transpose(-1, -2)


def shared_rows(
    keys: int, *, summary_size: int, stride: int, block_size: int
) -> Int[Tensor, "pieces blocks"]:
    """How many strides a summary and a block have in common: how a summary's weight is shared out.

    The double sum of the paper, which asks that `stride` divides both sizes.
    """
    starts = torch.arange(0, max(0, keys - summary_size + 1), stride)[:, None]
    blocks = torch.arange(block_count(keys, block_size)) * block_size
    first = torch.maximum(starts, blocks)
    last = torch.minimum(starts + summary_size, blocks + block_size)
    return (last - first).clamp(min=0) // stride


def complete_pieces(
    queries: int, keys: int, summary_size: int, stride: int, is_causal: bool, query_offset: int
) -> Bool[Tensor, "N pieces"]:
    """Which summaries a query may read: those whose last row is not in its future."""
    last = torch.arange(0, max(0, keys - summary_size + 1), stride) + summary_size - 1
    if not is_causal:
        return torch.ones(queries, len(last), dtype=torch.bool)
    return last <= torch.arange(queries)[:, None] + query_offset


@torch.no_grad()
def selected_blocks(
    importance: Float[Tensor, "*heads N blocks"],
    *,
    block_size: int,
    top_k: int,
    is_causal: bool,
    query_offset: int,
) -> Bool[Tensor, "*heads N blocks"]:
    """The first block, the own and the one before it, and the most important others: `top_k`.

    Without `is_causal` (ours) there is no own block, and only the first is fixed.
    """
    block = torch.arange(importance.shape[-1], device=importance.device)
    fixed = (block == 0)[None]
    if is_causal:
        own = (torch.arange(importance.shape[-2], device=block.device) + query_offset) // block_size
        own = own[:, None]
        importance = importance.masked_fill(block > own, -torch.inf)
        fixed = fixed | (block == own) | (block == own - 1)
    return highest_blocks(importance.masked_fill(fixed, torch.inf), top_k)


def dense_native_sparse_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    *,
    compress_key: Summary,
    compress_value: Summary,
    gates: Float[Tensor, "*heads N 3"],
    summary_size: int,
    stride: int,
    block_size: int,
    top_k: int,
    window: int,
    is_causal: bool = True,
    query_offset: int = 0,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Float[Tensor, "*heads N E"]:
    """The definition: three times `attend`, each with its own keys or support."""
    sizes = {"summary_size": summary_size, "stride": stride, "block_size": block_size}
    place = {"is_causal": is_causal, "query_offset": query_offset}
    of_summaries, chosen = read_summaries(
        query, key, value, compress_key, compress_value, **sizes, top_k=top_k, scale=scale, **place
    )
    options = {"scale": scale, "enable_gqa": enable_gqa, **place}
    mask = chosen_pairs(chosen, block_size, key.shape[-2])
    of_blocks = attend(query, key, value, attn_mask=mask, **options)
    near = last_keys(window, two_sided=not is_causal)
    of_window = attend(query, key, value, support=near, **options)
    return gated(gates, of_summaries, of_blocks, of_window)


def read_summaries(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    compress_key: Summary,
    compress_value: Summary,
    *,
    summary_size: int,
    stride: int,
    block_size: int,
    top_k: int,
    is_causal: bool,
    query_offset: int,
    scale: float | None,
) -> tuple[Float[Tensor, "*heads N E"], Bool[Tensor, "*heads N blocks"]]:
    """The read of the summaries, and the blocks that its weights select."""
    queries, keys = query.shape[-2], key.shape[-2]
    summaries = (
        compress_key(pieces(key, summary_size, stride)),
        compress_value(pieces(value, summary_size, stride)),
    )
    seen = complete_pieces(queries, keys, summary_size, stride, is_causal, query_offset)
    repeated = repeat_key_heads(query, *summaries)
    read, weights = attend(
        query, *repeated, attn_mask=seen.to(query.device), scale=scale, return_weights=True
    )
    shares = shared_rows(keys, summary_size=summary_size, stride=stride, block_size=block_size)
    importance = weights.detach() @ shares.to(weights)
    if query.dim() >= 3:
        together = importance.unflatten(-3, (key.shape[-3], -1)).sum(-3)
        importance = together.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    place = {"is_causal": is_causal, "query_offset": query_offset}
    return read, selected_blocks(importance, block_size=block_size, top_k=top_k, **place)


def gated(gates: Float[Tensor, "*heads N 3"], *reads: Tensor) -> Float[Tensor, "*heads N E"]:
    """The sum of three reads, each times its gate."""
    factors = gates.unsqueeze(-2).unbind(-1)
    return sum(factor * read for factor, read in zip(factors, reads, strict=True))


def mean_rows(rows: Float[Tensor, "*heads pieces size D"]) -> Float[Tensor, "*heads pieces D"]:
    """The simplest summary."""
    return rows.mean(-2)


def some_sizes(query: Tensor, key: Tensor, value: Tensor) -> dict:
    """Sizes, means for summaries, and gates that depend on the query, for a trial."""
    by = torch.arange(1.0, 4.0, dtype=query.dtype)
    return {
        "compress_key": mean_rows,
        "compress_value": mean_rows,
        "gates": torch.sigmoid(query.detach().mean(-1, keepdim=True) * by),
        "summary_size": 4,
        "stride": 2,
        "block_size": 2,
        "top_k": max(1, min(4, -(-key.shape[-2] // 2))),
        "window": 3,
    }


@mechanism(
    key="yuan-2025",
    paper="yuan-2025",
    chapter="6-sparse/content-routing",
    section="three-branches",
    step="support",
    idea="summaries of blocks, the best blocks themselves and the last keys, added under gates",
    equation=r"o_i = \sum_c g_i^c \, \mathrm{attend}(q_i, K_i^c, V_i^c)",
    cost="time N (M / d + T B + W)(D + E), memory N M / d",
    oracle=dense_native_sparse_attention,
    promises=Promises(
        query_equivariant=False,
        key_invariant=False,
        normalized=False,
        grouped_query=False,
        padding=False,
        arguments=some_sizes,
    ),
    taxonomy=Taxonomy(
        sequences="self", levels="multi", positions="soft", representations="multi-head"
    ),
)
def native_sparse_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    *,
    compress_key: Summary,
    compress_value: Summary,
    gates: Float[Tensor, "*heads N 3"],
    summary_size: int,
    stride: int,
    block_size: int,
    top_k: int,
    window: int,
    is_causal: bool = True,
    query_offset: int = 0,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Float[Tensor, "*heads N E"]:
    r"""Three reads under gates: of summaries, of the blocks that they point at, of the last keys.

    .. math:: o_i = \sum_{c \in \{\text{summaries, selected, window}\}} g_i^c \,
              \mathrm{attend}(q_i, K_i^c, V_i^c)

    Summaries: every `stride` keys begins a piece of `summary_size` keys, and `compress_key`
    (..., pieces, summary_size, D) -> (..., pieces, D) makes one key of it (`compress_value` one
    value). Selected: the weights on the summaries, shared out among the blocks of `block_size` keys
    that they overlap, say which blocks matter; a query reads `top_k` of them, the first, its own
    and the one before it always among them. Window: the last `window` keys. `gates` are the three
    factors of each query, in this order; they need not sum to one.

    With `enable_gqa` query heads that share a key head add up their weights and select together.
    A query whose past holds no complete summary reads zero there. Without `is_causal` (ours) only
    the first block is fixed and the window looks both ways.
    Cost: time N (M / stride + T B + W)(D + E), memory N M / stride for the weights on summaries.
    Raises ValueError for a stride that does not divide both sizes, `top_k` below 3 or above the
    number of blocks.
    Source: Yuan et al. (2025), eqs. 5 to 12; there each branch has its own keys and values.
    """
    sizes = {"summary_size": summary_size, "stride": stride, "block_size": block_size}
    check_native(query, key, value, gates, top_k, enable_gqa, **sizes)
    check_scale(scale)
    check_count("window", window, least=1)
    check_count("query_offset", query_offset)
    place = {"is_causal": is_causal, "query_offset": query_offset}
    of_summaries, chosen = read_summaries(
        query, key, value, compress_key, compress_value, **sizes, top_k=top_k, scale=scale, **place
    )
    key, value = repeat_key_heads(query, key, value)
    of_blocks = read_chosen_blocks(
        query, key, value, chosen, block_size=block_size, scale=scale, **place
    )
    near = last_keys(window, two_sided=not is_causal)
    of_window = chunked_softmax_attention(query, key, value, support=near, scale=scale, **place)
    return gated(gates, of_summaries, of_blocks, of_window)


class BlockSummary(nn.Module):
    r"""One vector of a piece: the mean of its rows, and a perceptron on rows and places.

    Shapes: (..., pieces, size, D) -> (..., pieces, D). Source: Yuan et al. (2025), eq. 7, where
    the perceptron stands alone.
    """

    def __init__(self, width: int, size: int):
        super().__init__()
        self.places = nn.Parameter(torch.zeros(size, width))
        self.perceptron = nn.Sequential(
            nn.Linear(size * width, width), nn.GELU(), nn.Linear(width, width)
        )

    def forward(
        self, rows: Float[Tensor, "*heads pieces size D"]
    ) -> Float[Tensor, "*heads pieces D"]:
        """The mean of the rows, and what the perceptron adds to it."""
        return rows.mean(-2) + self.perceptron((rows + self.places).flatten(-2))


class NativeSparseAttention(nn.Module):
    """`native_sparse_attention` with what it learns: two summaries and the gates.

    All heads share them. The gates are sigmoids of a linear map of the query, where the paper's
    are those of a perceptron on the token; a summary starts near the mean of its rows. A text that
    has fewer than `top_k` blocks is read whole.
    """

    def __init__(
        self,
        head_width: int,
        *,
        summary_size: int = 8,
        stride: int = 4,
        block_size: int = 8,
        top_k: int = 4,
        window: int = 8,
    ):
        super().__init__()
        check_sizes(summary_size, stride, block_size)
        check_count("top_k", top_k, least=1)
        check_count("window", window, least=1)
        self.sizes = {"summary_size": summary_size, "stride": stride, "block_size": block_size}
        self.top_k, self.window = top_k, window
        self.key_summary = BlockSummary(head_width, summary_size)
        self.value_summary = BlockSummary(head_width, summary_size)
        self.to_gates = nn.Linear(head_width, 3)

    def forward(
        self,
        query: Float[Tensor, "*batch heads N D"],
        key: Float[Tensor, "*batch heads M D"],
        value: Float[Tensor, "*batch heads M D"],
        *,
        is_causal: bool = False,
        query_offset: int = 0,
    ) -> Float[Tensor, "*batch heads N D"]:
        """The read with this layer's parameters."""
        blocks = max(1, block_count(key.shape[-2], self.sizes["block_size"]))
        return native_sparse_attention(
            query,
            key,
            value,
            compress_key=self.key_summary,
            compress_value=self.value_summary,
            gates=torch.sigmoid(self.to_gates(query)),
            top_k=min(self.top_k, blocks),
            window=self.window,
            is_causal=is_causal,
            query_offset=query_offset,
            **self.sizes,
        )


def check_sizes(summary_size: int, stride: int, block_size: int) -> None:
    """Raise unless summaries and blocks are whole numbers of strides."""
    check_count("stride", stride, least=1)
    for name, size in (("summary_size", summary_size), ("block_size", block_size)):
        check_count(name, size, least=1)
        if size % stride:
            raise ValueError(f"{name} must be a multiple of stride = {stride}, got {size}")


def check_native(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gates: Tensor,
    top_k: int,
    enable_gqa: bool,
    *,
    summary_size: int,
    stride: int,
    block_size: int,
) -> None:
    """Raise unless tensors, gates and sizes fit."""
    check_attention(query, key, value, enable_gqa)
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"key must have the width {query.shape[-1]} of query, got {key.shape[-1]}")
    check_tensor("gates", gates)
    check_dtype("gates", gates, query)
    expected = (*query.shape[:-1], 3)
    if not fits(gates.shape, torch.Size(expected)):
        raise ValueError(f"gates must have shape {expected}, got {tuple(gates.shape)}")
    check_sizes(summary_size, stride, block_size)
    blocks = max(1, block_count(key.shape[-2], block_size))
    check_count("top_k", top_k, least=min(FIXED_BLOCKS, blocks))
    if top_k > blocks:
        raise ValueError(f"top_k must be at most the number of blocks, {blocks}, got {top_k}")
