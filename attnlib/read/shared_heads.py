"""Query heads that share keys and values: one head for all, one for a group, or unequal numbers."""

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.checks import check_attention, check_count, check_mask

TAXONOMY = Taxonomy(
    sequences="self", levels="single", positions="soft", representations="multi-head"
)


@mechanism(
    key="grouped-query",
    paper="ainslie-2023",
    chapter="1-foundations/exact-and-cached",
    section="sharing-keys",
    step="read",
    idea="each group of query heads reads one key and value head",
    equation=r"o^h = \mathrm{softmax}(Q^h {K^{g(h)}}^\top / \sqrt{D})\, V^{g(h)},\;"
    r" g(h) = \lfloor h H_{kv} / H \rfloor",
    cost="time H N M (D + E), memory H N M; reads Hkv M (D + E) numbers of keys and values",
    oracle=attend,
    promises=Promises(grouped_query=False),
    taxonomy=TAXONOMY,
)
def grouped_query_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    *,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
) -> Float[Tensor, "*heads N E"]:
    r"""Groups of query heads share a key and value head, which is read once for all of them.

    .. math:: o^h_i = \sum_{j \in S_i} \mathrm{softmax}_j(q^h_i \cdot k^{g(h)}_j / \sqrt{D})\,
              v^{g(h)}_j, \qquad g(h) = \lfloor h\, H_{kv} / H \rfloor

    The H / Hkv query heads of a group are laid below each other as rows of one matrix, so that no
    key is copied: it equals `attend(..., enable_gqa=True)`, which repeats the keys instead.

    Shapes: query (..., H, N, D), key (..., Hkv, M, D), value (..., Hkv, M, E) -> (..., H, N, E).
    Cost: time H N M (D + E), memory H N M; it reads Hkv M (D + E) numbers of keys and values.
    Errors as in `attend`; the heads of key must divide the heads of query.
    Source: Ainslie et al. (2023), section 2.2. Derived in chapter 1.4.
    """
    _check_shared(query, key, value)
    check_count("query_offset", query_offset)
    options = {"is_causal": is_causal, "query_offset": query_offset, "scale": scale}
    if query.dim() < 3 or query.shape[-3] == key.shape[-3]:
        return attend(query, key, value, attn_mask=attn_mask, **options)

    group = query.shape[-3] // key.shape[-3]
    rows = rearrange(query, "... (k g) n d -> ... k (g n) d", g=group)
    allowed = _allowed_rows(query, key, attn_mask, is_causal, query_offset)
    read = attend(rows, key, value, attn_mask=allowed, scale=scale)
    return rearrange(read, "... k (g n) e -> ... (k g) n e", g=group)


@mechanism(
    key="multi-query-attention",
    paper="multi-query-attention",
    chapter="1-foundations/exact-and-cached",
    section="sharing-keys",
    step="read",
    idea="all query heads read one key and value head",
    equation=r"o^h = \mathrm{softmax}(Q^h K^\top / \sqrt{D})\, V",
    cost="time H N M (D + E), memory H N M; reads M (D + E) numbers of keys and values",
    oracle=attend,
    promises=None,
    taxonomy=TAXONOMY,
)
def multi_query_attention(
    query: Float[Tensor, "*batch H N D"],
    key: Float[Tensor, "*batch M D"],
    value: Float[Tensor, "*batch M E"],
    *,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
) -> Float[Tensor, "*batch H N E"]:
    r"""All query heads read the same keys and values, so that 1/H as many are kept.

    .. math:: o^h_i = \sum_{j \in S_i} \mathrm{softmax}_j(q^h_i \cdot k_j / \sqrt{D})\, v_j

    Shapes: query (..., H, N, D); key (..., M, D) and value (..., M, E) have no heads; the mask, as
    everywhere, broadcasts to (..., H, N, M). Result (..., H, N, E).
    Cost: time H N M (D + E), memory H N M; it reads M (D + E) numbers of keys and values.
    Errors as in `attend`. Source: Shazeer (2019), section 3. Derived in chapter 1.4.
    """
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        least, form = (3, "(..., heads, N, D)") if name == "query" else (2, "(..., M, width)")
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.dim() < least:
            raise ValueError(f"{name} must have shape {form}, got {tuple(tensor.shape)}")
    for name, tensor in (("key", key), ("value", value)):
        if tensor.shape[:-2] != query.shape[:-3]:
            raise ValueError(
                f"{name} must have the batch of query {tuple(query.shape[:-3])} and no heads, "
                f"got shape {tuple(tensor.shape)}"
            )
    return grouped_query_attention(
        query,
        key[..., None, :, :],
        value[..., None, :, :],
        attn_mask=attn_mask,
        is_causal=is_causal,
        query_offset=query_offset,
        scale=scale,
    )


@mechanism(
    key="diffqkv",
    paper="diffqkv",
    chapter="1-foundations/exact-and-cached",
    section="unequal-heads",
    step="read",
    idea="fewer key heads than value heads, each repeated to the query heads",
    equation=r"o^h = \mathrm{softmax}(Q^h {K^{\lfloor h n_k / H \rfloor}}^\top / \sqrt{D})\,"
    r" V^{\lfloor h n_v / H \rfloor}",
    cost="time H N M (D + E), memory H N M; keeps n_k D + n_v E numbers a token",
    oracle=attend,
    promises=Promises(grouped_query=False),
    taxonomy=TAXONOMY,
)
def unequal_heads_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*value_heads M E"],
    *,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
) -> Float[Tensor, "*heads N E"]:
    r"""Softmax attention with n_k key heads and n_v value heads for H query heads.

    .. math:: o^h_i = \sum_{j \in S_i} \mathrm{softmax}_j(q^h_i \cdot k^{a}_j / \sqrt{D})\, v^{b}_j,
              \qquad a = \lfloor h\, n_k / H \rfloor, \quad b = \lfloor h\, n_v / H \rfloor

    With n_k = n_v it is grouped-query attention, with n_k = n_v = H softmax attention.

    Shapes: query (..., H, N, D), key (..., n_k, M, D), value (..., n_v, M, E) -> (..., H, N, E).
    Cost: time H N M (D + E), memory H N M; n_k D + n_v E numbers a token are kept.
    Errors as in `attend`; n_k and n_v must divide H.
    Source: Lin et al. (2025), "Sigma", DiffQKV attention. Derived in chapter 1.4.
    """
    return attend(
        query,
        _repeated("key", key, query),
        _repeated("value", value, query),
        attn_mask=attn_mask,
        is_causal=is_causal,
        query_offset=query_offset,
        scale=scale,
    )


def _allowed_rows(
    query: Tensor, key: Tensor, attn_mask: Tensor | None, is_causal: bool, query_offset: int
) -> Bool[Tensor, "..."]:
    """What each row of a group may see; row g N + i is query i of the group's head g."""
    heads, queries, keys = query.shape[-3], query.shape[-2], key.shape[-2]
    allowed = torch.ones(1, queries, keys, dtype=torch.bool, device=query.device)
    if attn_mask is not None:
        check_mask(attn_mask, torch.Size((*query.shape[:-1], keys)))
        allowed = allowed & attn_mask
    if is_causal:
        allowed = allowed.tril(query_offset)
    if allowed.shape[-3] == 1:  # one table for all heads
        return repeat(allowed, "... n m -> ... (g n) m", g=heads // key.shape[-3])
    return rearrange(allowed, "... (k g) n m -> ... k (g n) m", k=key.shape[-3])


def _check_shared(query: Tensor, key: Tensor, value: Tensor) -> None:
    _check_divides("key", key, query)
    check_attention(query, key, value, enable_gqa=True)


def _repeated(name: str, tensor: Tensor, query: Tensor) -> Tensor:
    """Each head as often as makes the heads of query; heads of one group lie side by side."""
    if not _have_heads(tensor, query):
        return tensor
    _check_divides(name, tensor, query)
    return tensor.repeat_interleave(query.shape[-3] // tensor.shape[-3], dim=-3)


def _check_divides(name: str, tensor: Tensor, query: Tensor) -> None:
    if not _have_heads(tensor, query):
        return
    heads, own = query.shape[-3], tensor.shape[-3]
    if own == 0 or heads % own:
        raise ValueError(f"{name} must have a number of heads that divides {heads}, got {own}")


def _have_heads(tensor: Tensor, query: Tensor) -> bool:
    """Whether both have heads to compare; what else is wrong, `attend` says by name."""
    both = isinstance(query, Tensor) and isinstance(tensor, Tensor)
    return both and query.dim() == tensor.dim() >= 3
