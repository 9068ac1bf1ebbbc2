"""Near keys for everybody, and all keys for the tokens that a task asks about."""

import math

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


def task_global_support(chosen: Bool[Tensor, "B places"], window: int) -> Support:
    """|i - j| < window, or i is chosen, or j is chosen; `chosen` names the places of a sequence."""
    check_count("window", window, least=1)
    if chosen.dim() != 2 or chosen.dtype != torch.bool:
        raise ValueError(
            f"chosen must be a bool table (batch, places), got {chosen.dtype} {tuple(chosen.shape)}"
        )

    def seen(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        table = chosen.to(q_idx.device)
        return ((q_idx - kv_idx).abs() < window) | table[b, q_idx] | table[b, kv_idx]

    return Support(seen, f"task_global(window={window})")


def dense_task_global(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    chosen: Bool[Tensor, "*batch places"] | None = None,
    *,
    window: int = 64,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Float[Tensor, "*heads N E"]:
    """`attend` with `task_global_support`."""
    check_attention(query, key, value, enable_gqa)
    check_count("query_offset", query_offset)
    chosen = checked_chosen(chosen, query, key, query_offset)
    table = chosen.reshape(math.prod(chosen.shape[:-1]), chosen.shape[-1])
    return attend(
        query,
        key,
        value,
        support=task_global_support(table, window),
        attn_mask=attn_mask,
        is_causal=is_causal,
        query_offset=query_offset,
        scale=scale,
        enable_gqa=enable_gqa,
    )


def trial_chosen(query: Tensor, key: Tensor, value: Tensor) -> dict[str, Tensor | int]:
    """Chosen places for a trial call: of up to 16 two in ten, of more all."""
    length = max(query.shape[-2], key.shape[-2])
    places = torch.arange(length + 2, device=query.device)
    chosen = (places % 10 == 2) | (places % 10 == 5) | (length > 16)
    return {"chosen": chosen.expand(*query.shape[:-3], -1), "window": 3}


@mechanism(
    key="cdlm-dynamic-global",
    paper="cdlm-dynamic-global",
    chapter="6-sparse/content-routing-in-practice",
    section="global-for-a-task",
    step="support",
    idea="near keys for all tokens; the tokens to be predicted read all, and all read them",
    equation=r"S_i = \{j : |i - j| < W\} \cup \{j : i \in G \text{ or } j \in G\}",
    cost="time N (W + 2 |G|)(D + E)",
    oracle=dense_task_global,
    promises=Promises(query_equivariant=False, key_invariant=False, arguments=trial_chosen),
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def task_global_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    chosen: Bool[Tensor, "*batch places"] | None = None,
    *,
    window: int = 64,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
    enable_gqa: bool = False,
    chunk: int = 128,
) -> Float[Tensor, "*heads N E"]:
    r"""Softmax attention over near keys, and over all keys where a chosen token is on either side.

    .. math:: S_i = \{j : |i - j| < W\} \cup \{j : i \in G \text{ or } j \in G\}

    and of these, with `is_causal`, the keys j <= i. G are the tokens that the task asks about, the
    masked ones for instance: they are other ones in every sequence. Near keys are read in runs of
    `chunk` queries with the chosen keys added; the chosen queries are gathered and read all keys.
    Without `chosen` there are none.

    Shapes as in `attend`; chosen (batch, places) bool, the same for queries and keys, with a place
    for each of both. Cost: time N (2 W + chunk + |G|)(D + E) + |G| M (D + E); memory
    (N + M)(D + E) + chunk M. One sequence is read at a time.
    Errors as in `attend`, ValueError for a window below 1 or too few places.
    Source: Caciularu et al. (2021), section 2, with the global tokens of Beltagy et al. (2020),
    whose second set of projections for global tokens is left out.
    """
    check_attention(query, key, value, enable_gqa)
    check_scale(scale)
    check_count("query_offset", query_offset)
    check_count("window", window, least=1)
    check_count("chunk", chunk, least=1)
    chosen = checked_chosen(chosen, query, key, query_offset)
    if enable_gqa:
        key, value = repeat_key_heads(query, key, value)
    *batch, queries, _ = query.shape
    batch, heads = batch[:-1], batch[-1:]
    if attn_mask is not None:
        shape = torch.Size((*query.shape[:-1], key.shape[-2]))
        check_mask(attn_mask, shape)
        attn_mask = attn_mask.expand(shape)
    options = {
        "is_causal": is_causal,
        "query_offset": query_offset,
        "scale": scale,
        "chunk": chunk,
    }
    asks = chosen[..., query_offset : query_offset + queries]
    gates = asks.unsqueeze(-1).expand(*asks.shape, *(heads or (1,)))
    full = skipped_heads_attention(
        query, key, value, gates.to(query.dtype), attn_mask=attn_mask, **options
    )
    count, keys = math.prod(batch), key.shape[-2]
    tensors = [x.reshape(count, *heads, *x.shape[-2:]) for x in (query, key, value)]
    tables = chosen[..., :keys].reshape(count, keys)
    masks = [None] * count
    if attn_mask is not None:
        masks = attn_mask.reshape(count, *heads, queries, keys)
    near = [
        read_near_and_listed(*one, window, table.nonzero()[:, 0], attn_mask=mask, **options)
        for *one, table, mask in zip(*tensors, tables, masks, strict=True)
    ]
    near = torch.stack(near).view_as(full) if near else full
    asks = asks.view(*batch, *(1 for _ in heads), queries, 1)
    return torch.where(asks, full, near)


def checked_chosen(
    chosen: Tensor | None, query: Tensor, key: Tensor, query_offset: int
) -> Bool[Tensor, "*batch places"]:
    """The chosen places, none unless given. Raises unless all queries and keys have a place."""
    batch = tuple(query.shape[:-3])
    least = max(query_offset + query.shape[-2], key.shape[-2])
    if chosen is None:
        return torch.zeros(*batch, least, dtype=torch.bool, device=query.device)
    if not isinstance(chosen, Tensor) or chosen.dtype != torch.bool:
        came = chosen.dtype if isinstance(chosen, Tensor) else type(chosen).__name__
        raise TypeError(f"chosen must be a bool tensor, got {came}")
    if chosen.dim() != len(batch) + 1 or tuple(chosen.shape[:-1]) != batch:
        raise ValueError(
            f"chosen must have shape (*batch, places) with batch {batch}, got {tuple(chosen.shape)}"
        )
    if chosen.shape[-1] < least:
        raise ValueError(f"chosen must have at least {least} places, got {chosen.shape[-1]}")
    return chosen


def task_global_pairs(length: int, window: int, chosen: int) -> int:
    """Pairs of a query and a key, as the paper counts them: N (2 W - 1) near and 2 |G| N global."""
    return length * (2 * window - 1) + 2 * chosen * length
