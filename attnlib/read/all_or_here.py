"""All or here: a query reads all keys or only the near ones, as somebody decided for it."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.checks import check_attention, check_count, check_mask, check_scale
from attnlib.read.heads import repeat_key_heads
from attnlib.read.near_keys import read_near_and_listed
from attnlib.read.skipped_heads import skipped_heads_attention
from attnlib.support import Support


def all_or_here_support(everywhere: Bool[Tensor, "B N H"], window: int) -> Support:
    """Every key where everywhere[b, i, h] is true, elsewhere those less than `window` away.

    Together with `is_causal` that is the whole past, or its last `window` keys. Queries are counted
    from 0: with a `query_offset` the table must begin with the first position.
    """
    check_count("window", window, least=1)
    if everywhere.dim() != 3 or everywhere.dtype != torch.bool:
        raise ValueError(
            "everywhere must be a bool table (batch, N, heads), "
            f"got {everywhere.dtype} {tuple(everywhere.shape)}"
        )
    return Support(
        lambda b, h, q_idx, kv_idx: (
            everywhere.to(q_idx.device)[b, q_idx, h] | ((q_idx - kv_idx).abs() < window)
        ),
        f"all_or_here(window={window})",
    )


def dense_all_or_here(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    everywhere: Bool[Tensor, "*batch N heads"] | None = None,
    *,
    window: int = 64,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Float[Tensor, "*heads N E"]:
    r"""g full + (1 - g) near, with both computed: `attend` twice.

    .. math:: o_i = g_i \sum_{j \le i} w_{ij} v_j + (1 - g_i) \sum_{i - W < j \le i} w'_{ij} v_j
    """
    check_count("window", window, least=1)
    everywhere = checked_everywhere(everywhere, query)
    options = {
        "attn_mask": attn_mask,
        "is_causal": is_causal,
        "query_offset": query_offset,
        "scale": scale,
        "enable_gqa": enable_gqa,
    }
    near = Support(lambda b, h, i, j: (i - j).abs() < window, f"near({window})")
    full = attend(query, key, value, **options)
    here = attend(query, key, value, support=near, **options)
    return torch.where(by_head(everywhere, query).unsqueeze(-1), full, here)


def trial_everywhere(query: Tensor, key: Tensor, value: Tensor) -> dict[str, Tensor]:
    """A decision for a trial call: up to 16 queries every third reads everywhere, then all do."""
    queries = query.shape[-2]
    places = (torch.arange(queries, device=query.device) % 3 == 1) | (queries > 16)
    heads = query.shape[-3] if query.dim() > 2 else 1
    return {"everywhere": places[:, None].expand(*query.shape[:-3], -1, heads), "window": 2}


@mechanism(
    key="aha-all-or-here",
    paper="aha-all-or-here",
    chapter="6-sparse/content-routing",
    section="here-or-everywhere",
    step="support",
    idea="a router decides for each token and head: read everything, or only what is near",
    equation=r"g_i\, \mathrm{full}_i + (1 - g_i)\, \mathrm{near}_i,\; g_i = 1[w \cdot x_i > 0]",
    cost="time N W (D + E) + a N M (D + E) for a share a of queries that read everywhere",
    oracle=dense_all_or_here,
    promises=Promises(query_equivariant=False, key_invariant=False, arguments=trial_everywhere),
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def all_or_here_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    everywhere: Bool[Tensor, "*batch N heads"] | None = None,
    *,
    window: int = 64,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
    enable_gqa: bool = False,
    chunk: int = 128,
) -> Float[Tensor, "*heads N E"]:
    r"""Softmax attention over every key where `everywhere` says so, else over the near keys.

    .. math:: S_i = \{j\} \text{ if } g_i = 1, \qquad \{j : |i - j| < W\} \text{ if } g_i = 0

    and of these, with `is_causal`, the keys j <= i. Equal to `dense_all_or_here`, but the full read
    is computed for the chosen queries alone: they are gathered, a head at a time
    (`skipped_heads_attention`), and all others read a run of near keys. Without `everywhere` nobody
    is chosen. The decision is data here and has no gradient; the layer that learns it computes both
    reads (`attnlib.models.all_or_here`).

    Shapes as in `attend`; everywhere (batch, N, heads) bool. Cost: time N (W + chunk)(D + E) and
    a N M (D + E) for a share a of chosen queries; memory (N + M)(D + E) + chunk M.
    Errors as in `attend`, ValueError for a window below 1 or a table of another shape.
    Source: Luo, Zhang and Yan (2025). Derived in chapter 6.1.
    """
    check_attention(query, key, value, enable_gqa)
    check_scale(scale)
    check_count("query_offset", query_offset)
    check_count("window", window, least=1)
    check_count("chunk", chunk, least=1)
    everywhere = checked_everywhere(everywhere, query)
    if enable_gqa:
        key, value = repeat_key_heads(query, key, value)
    if attn_mask is not None:
        shape = torch.Size((*query.shape[:-1], key.shape[-2]))
        check_mask(attn_mask, shape)
        attn_mask = attn_mask.expand(shape)
    options = {
        "attn_mask": attn_mask,
        "is_causal": is_causal,
        "query_offset": query_offset,
        "scale": scale,
        "chunk": chunk,
    }
    nothing_listed = torch.arange(0, device=key.device)
    here = read_near_and_listed(query, key, value, window, nothing_listed, **options)
    full = skipped_heads_attention(query, key, value, everywhere.to(query.dtype), **options)
    return torch.where(by_head(everywhere, query).unsqueeze(-1), full, here)


def all_or_here_pairs(everywhere: Bool[Tensor, "*batch N heads"], window: int) -> int:
    """How many pairs of a query and a key are read of causal texts with this decision."""
    check_count("window", window, least=1)
    seen = torch.arange(1, everywhere.shape[-2] + 1, device=everywhere.device)[:, None]
    return int(torch.where(everywhere, seen, seen.clamp(max=window)).sum())


def by_head(everywhere: Bool[Tensor, "*batch N heads"], query: Tensor) -> Bool[Tensor, "*heads N"]:
    """The decision with the heads before the queries, as in `query`."""
    return everywhere.mT if query.dim() > 2 else everywhere[:, 0]


def checked_everywhere(everywhere: Tensor | None, query: Tensor) -> Bool[Tensor, "*batch N heads"]:
    """The decision, nobody unless given. Raises unless it has one bool for each query and head."""
    heads = query.shape[-3] if query.dim() > 2 else 1
    expected = (*query.shape[:-3], query.shape[-2], heads)
    if everywhere is None:
        return torch.zeros(expected, dtype=torch.bool, device=query.device)
    if not isinstance(everywhere, Tensor) or everywhere.dtype != torch.bool:
        came = everywhere.dtype if isinstance(everywhere, Tensor) else type(everywhere).__name__
        raise TypeError(f"everywhere must be a bool tensor, got {came}")
    if tuple(everywhere.shape) != expected:
        raise ValueError(
            f"everywhere must have shape (..., N, heads) = {expected}, "
            f"got {tuple(everywhere.shape)}"
        )
    return everywhere
