"""Gated heads, and the same where a head reads for those queries only that chose it."""

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.backend import gradient_wanted
from attnlib.checks import (
    check_attention,
    check_count,
    check_dtype,
    check_mask,
    check_scale,
    check_tensor,
)
from attnlib.read.feature_checks import check_features
from attnlib.read.heads import repeat_key_heads
from attnlib.score.compare import dot_product


def gated_heads_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    gates: Float[Tensor, "*batch N heads"] | None = None,
    *,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Float[Tensor, "*heads N E"]:
    r"""The read of each head times its gate: g_ih softmax(Q_h K_h^T / sqrt(D))_i V_h, all computed.

    Shapes, support and errors as in `attend`; gates (batch, N, heads), zero for a head that is off
    and all one unless given (a single head given as (N, D) has gates (N, 1)).
    Cost: that of `attend`, whatever the gates.
    Source: Jin et al. (2024), "MoH", eq. 4. Derived in chapter 5.2.
    """
    gates = checked_gates(gates, query)
    read = attend(
        query,
        key,
        value,
        attn_mask=attn_mask,
        is_causal=is_causal,
        query_offset=query_offset,
        scale=scale,
        enable_gqa=enable_gqa,
    )
    return gates_by_head(gates, query).unsqueeze(-1) * read


def trial_gates(query: Tensor, key: Tensor, value: Tensor) -> dict[str, Tensor]:
    """Gates for a trial call: the same in all heads, another one for each query, none zero."""
    gates = 1 + 0.5 * torch.arange(query.shape[-2], dtype=query.dtype, device=query.device).cos()
    heads = query.shape[-3] if query.dim() > 2 else 1
    return {"gates": gates[:, None].expand(*query.shape[:-3], -1, heads)}


@mechanism(
    key="skipped-heads",
    chapter="5-heads/mixtures-of-heads",
    section="what-is-saved",
    step="read",
    idea="a head reads for those queries alone whose gate for it is not zero",
    equation=r"g_{ih}\, \mathrm{softmax}(Q_h K_h^\top / \sqrt{D})_i V_h",
    cost="time a N M (D + E) for a share a of gates that are not zero",
    oracle=gated_heads_attention,
    promises=Promises(query_equivariant=False, normalized=False, arguments=trial_gates),
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def skipped_heads_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    gates: Float[Tensor, "*batch N heads"] | None = None,
    *,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
    enable_gqa: bool = False,
    chunk: int = 64,
) -> Float[Tensor, "*heads N E"]:
    r"""Equal to `gated_heads_attention`, but a head does not read where its gate is zero.

    Head by head: gather the queries whose gate is not zero, read for these, and put the reads, each
    times its gate, back in their places. Where keys are hidden, the gathered queries are taken
    `chunk` at a time; under is_causal a chunk leaves out the keys in the future of all its queries.
    The backward pass computes each chunk again. A gate of zero gets no gradient: a router learns
    about the heads that it chose.

    Shapes, support and errors as in `gated_heads_attention`. Cost: time a N M (D + E) for a share a
    of gates that are not zero, about half of it under is_causal; memory (N + M)(D + E) + chunk M a
    head. One head of one sequence is read at a time, so it pays for long sequences only.
    Source: the gates are those of Jin et al. (2024), "MoH"; the gathering is ours. Derived in
    chapter 5.2.
    """
    check_attention(query, key, value, enable_gqa)
    check_scale(scale)
    check_count("query_offset", query_offset)
    check_count("chunk", chunk, least=1)
    gates = checked_gates(gates, query)
    if enable_gqa:
        key, value = repeat_key_heads(query, key, value)
    check_features(query, key, value)
    queries, keys = query.shape[-2], key.shape[-2]
    if attn_mask is not None:
        shape = torch.Size((*query.shape[:-1], keys))
        check_mask(attn_mask, shape)
        attn_mask = one_head_each(attn_mask.expand(shape))

    dtype = torch.promote_types(query.dtype, torch.float32)
    by_head = one_head_each(gates_by_head(gates, query).unsqueeze(-1)).squeeze(-1).to(dtype)
    rows = [one_head_each(x).to(dtype) for x in (query, key, value)]
    reads, places = [rows[2].new_zeros(0, value.shape[-1])], [by_head.new_zeros(0).long()]
    for head, (q, k, v, gate) in enumerate(zip(*rows, by_head, strict=True)):
        chosen = gate.nonzero().squeeze(-1)
        if is_causal or attn_mask is not None:
            hidden = None if attn_mask is None else ~attn_mask[head]
            read = read_in_chunks(
                q,
                k,
                v,
                chosen,
                hidden,
                is_causal=is_causal,
                offset=query_offset,
                scale=scale,
                chunk=chunk,
            )
        else:
            read = read_all_keys(q[chosen], k, v, scale)
        reads.append(gate[chosen, None] * read)
        places.append(head * queries + chosen)
    nothing = sum(x.reshape(-1)[:0].sum() for x in (*rows, by_head))
    out = rows[2].new_zeros(by_head.numel(), value.shape[-1])
    out = out.index_copy(0, torch.cat(places), torch.cat(reads)) + nothing
    return out.reshape(*query.shape[:-1], value.shape[-1]).to(query.dtype)


def read_all_keys(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """Softmax attention of one head, (N, D), that sees all keys: PyTorch's fused function."""
    if not query.numel() or not key.numel():
        return query.new_zeros(len(query), value.shape[-1])
    four = (x[None, None] for x in (query, key, value))
    return scaled_dot_product_attention(*four, scale=scale)[0, 0]


def read_in_chunks(
    query: Float[Tensor, "N D"],
    key: Float[Tensor, "M D"],
    value: Float[Tensor, "M E"],
    chosen: Tensor,
    hidden: Bool[Tensor, "N M"] | None,
    *,
    is_causal: bool,
    offset: int,
    scale: float | None,
    chunk: int,
) -> Float[Tensor, "chosen E"]:
    """Softmax attention of one head for the chosen queries, `chunk` of them at a time."""
    places = torch.arange(len(key), device=key.device)

    def read_chunk(query: Tensor, key: Tensor, value: Tensor, part: Tensor) -> Tensor:
        last = part + offset if is_causal else part.new_full(part.shape, len(key))
        seen = min(len(key), int(last[-1]) + 1)
        by_all = 0 if hidden is not None else min(seen, int(last[0]) + 1)  # every row sees these
        outside = places[by_all:seen] > last[:, None]
        if hidden is not None:
            outside = outside | hidden[part, by_all:seen]
        lowest = torch.finfo(query.dtype).min
        scores = dot_product(query[part], key[:seen], scale)
        scores[:, by_all:].masked_fill_(outside, lowest)
        weights = scores.softmax(dim=-1)
        if hidden is not None:
            weights = weights.masked_fill(outside, 0.0)
        return weights @ value[:seen]

    parts = chosen.split(chunk) if len(chosen) and len(key) else ()
    recompute = len(parts) > 1 and gradient_wanted(query, key, value)
    reads = [query.new_zeros(0 if parts else len(chosen), value.shape[-1])]
    for part in parts:
        args = (query, key, value, part)
        reads.append(
            checkpoint(read_chunk, *args, use_reentrant=False) if recompute else read_chunk(*args)
        )
    return torch.cat(reads)


def skipped_operations(
    gates: Float[Tensor, "*batch N heads"],
    keys: int,
    width: int,
    value_width: int,
    *,
    is_causal: bool = False,
) -> int:
    """Multiplications and additions of scores and reads: 2 (D + E) for each key of a chosen query.

    `gates` as in `skipped_heads_attention`, `width` D and `value_width` E. The softmax is not
    counted, nor the projections.
    """
    chosen = (gates != 0).flatten(0, -3) if gates.dim() > 2 else (gates != 0)[None]
    seen = torch.full((chosen.shape[-2],), keys)
    if is_causal:
        seen = torch.arange(1, chosen.shape[-2] + 1).clamp(max=keys)
    pairs = int((chosen.sum(dim=(0, 2)).cpu() * seen).sum())
    return 2 * (width + value_width) * pairs


def one_head_each(x: Shaped[Tensor, "*heads N D"]) -> Shaped[Tensor, "all_heads N D"]:
    """All leading dimensions as one."""
    return x.flatten(0, -3) if x.dim() > 2 else x.unsqueeze(0)


def gates_by_head(gates: Tensor, query: Tensor) -> Float[Tensor, "*heads N"]:
    """The gates (batch, N, heads) with the heads before the queries, as in `query`."""
    return gates.mT if query.dim() > 2 else gates[:, 0]


def checked_gates(gates: Tensor | None, query: Tensor) -> Float[Tensor, "*batch N heads"]:
    """The gates, all ones unless given. Raises unless there is one for each query and head."""
    check_tensor("query", query)
    heads = query.shape[-3] if query.dim() > 2 else 1
    expected = (*query.shape[:-3], query.shape[-2], heads)
    if gates is None:
        return query.new_ones(expected)
    check_tensor("gates", gates)
    check_dtype("gates", gates, query)
    if tuple(gates.shape) != expected:
        raise ValueError(
            f"gates must have shape (..., N, heads) = {expected}, got {tuple(gates.shape)}"
        )
    return gates
