"""Efficient attention: as many attention maps as channels, and each query mixes them."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.backend import runs_kernel
from attnlib.checks import check_attention, check_count, check_mask
from attnlib.read.heads import repeat_key_heads
from attnlib.read.linear_attention import (
    LinearState,
    check_one_token,
    check_state,
    check_widths,
    keys_allowed,
    linear_attention,
    mask_by_query,
    same_for_all_queries,
    summed_in,
)
from attnlib.support import allowed_keys, index_grid
from attnlib.weight.division import divided
from attnlib.weight.softmax import softmax


def dense_efficient_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    *,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    enable_gqa: bool = False,
) -> Float[Tensor, "*heads N E"]:
    r"""Efficient attention with its weights as a table: the oracle.

    .. math:: w_{ij} = \sum_d \mathrm{softmax}_d(q_i)_d \;
              \mathrm{softmax}_{j \in S_i}(k_{\cdot d})_j

    Cost: memory N M D, as each row of each channel has a softmax of its own over its support.
    """
    check_attention(query, key, value, enable_gqa)
    if enable_gqa:
        key, value = repeat_key_heads(query, key, value)
    allowed = allowed_keys(
        index_grid(query, key.shape[-2], query_offset), None, attn_mask, is_causal
    )
    allowed = allowed.expand(*query.shape[:-1], key.shape[-2]).unsqueeze(-2)
    maps = key.mT.unsqueeze(-3).expand(*query.shape, key.shape[-2])
    weights = (query.softmax(-1).unsqueeze(-1) * softmax(maps, allowed.expand_as(maps))).sum(-2)
    return weights @ value


def efficient_attention_step(
    state: LinearState | None,
    query: Float[Tensor, "*heads 1 D"],
    key: Float[Tensor, "*heads 1 D"],
    value: Float[Tensor, "*heads 1 E"],
) -> tuple[Float[Tensor, "*heads 1 E"], LinearState]:
    """`efficient_attention` with is_causal for the next token: (read, new state).

    The state holds sums of e^k, so keys must stay below 80 in float32.
    """
    check_attention(query, key, value)
    check_widths(query, key)
    check_one_token(query, key)
    dtype = summed_in(query)
    exponentials = key.to(dtype).exp()
    written = exponentials.mT @ value.to(dtype)
    if state is not None:
        check_state(state, written)
    matrix = written if state is None else state.matrix + written
    total = exponentials[..., 0, :] if state is None else state.total + exponentials[..., 0, :]
    shares = divided(query.to(dtype).softmax(-1), total.unsqueeze(-2))
    return (shares @ matrix).to(query.dtype), LinearState(matrix, total)


@mechanism(
    key="efficient-attention",
    paper="efficient-attention",
    chapter="3-linear/feature-maps",
    section="efficient-attention",
    step="weight",
    idea="softmax over the channels of a query and over the positions of the keys",
    equation=r"\rho_q(Q)\,\bigl(\rho_k(K)^\top V\bigr)",
    cost="time (N + M) D E, memory (N + M)(D + E) + D E",
    oracle=dense_efficient_attention,
    recurrent=efficient_attention_step,
    promises=Promises(constant_state=True, score_range=1e3),
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def efficient_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    *,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    enable_gqa: bool = False,
    chunk: int = 128,
    backend: str = "auto",
) -> Float[Tensor, "*heads N E"]:
    r"""softmax over channels of Q, times (softmax over positions of K, transposed, times V).

    .. math:: o_i = \sum_d \mathrm{softmax}_d(q_i)_d \; \frac{\sum_{j \in S_i} e^{k_{jd}} v_j}
                                                            {\sum_{j \in S_i} e^{k_{jd}}}

    Each channel d of the keys is one attention map over the positions, the same for all queries,
    and a query mixes the D reads. Every row of weights sums to one. The positions are those of the
    row's support, which is where the causal form comes from (the paper has none).

    Shapes, support and errors as in `linear_attention`. Cost: time (N + M) D E. The largest key of
    a channel is subtracted for all rows. With is_causal gradients are finite in float32 while the
    keys of a channel lie within 40 of one another, and a channel whose keys so far lie 70 below a
    later one is not read.
    Source: Shen et al. (2021), section 3. Derived in chapter 3.1.
    """
    check_attention(query, key, value, enable_gqa)
    check_count("query_offset", query_offset)
    check_count("chunk", chunk, least=1)
    check_widths(query, key)
    if attn_mask is not None:
        check_mask(attn_mask, torch.Size((*query.shape[:-1], key.shape[-2])))
        if not same_for_all_queries(attn_mask):
            runs_kernel(backend, query.device, mask_by_query)
            return dense_efficient_attention(
                *(tensor.to(summed_in(query)) for tensor in (query, key, value)),
                attn_mask=attn_mask,
                is_causal=is_causal,
                query_offset=query_offset,
                enable_gqa=enable_gqa,
            ).to(query.dtype)
    dtype, result = summed_in(query), query.dtype
    query, key, value = (tensor.to(dtype) for tensor in (query, key, value))
    if enable_gqa:
        key, value = repeat_key_heads(query, key, value)
    exponents = key - largest(key, attn_mask)
    if attn_mask is not None:
        # Before the exponential: a hidden key may be so large that its gradient would be inf * 0.
        exponents = exponents.masked_fill(~keys_allowed(attn_mask)[..., None], -torch.inf)
    exponentials = exponents.exp()
    totals = totals_of(exponentials, query.shape[-2], is_causal, query_offset)
    return linear_attention(
        divided(query.softmax(-1), totals),
        exponentials,
        value,
        feature_map=lambda x: x,
        is_causal=is_causal,
        query_offset=query_offset,
        normalize=False,
        chunk=chunk,
        backend=backend,
    ).to(result)


def largest(key: Tensor, attn_mask: Tensor | None) -> Float[Tensor, "*heads 1 D"]:
    """The largest number of each channel of the keys that are not padding; it cancels."""
    if key.shape[-2] == 0:
        return key.sum(-2, keepdim=True)
    if attn_mask is not None:
        key = key.masked_fill(~keys_allowed(attn_mask)[..., None], torch.finfo(key.dtype).min)
    return key.detach().amax(-2, keepdim=True)


def totals_of(
    exponentials: Float[Tensor, "*heads M D"], queries: int, is_causal: bool, query_offset: int
) -> Tensor:
    """sum of e^k over the support of each query, (..., N, D), or (..., 1, D) where all see all."""
    if not is_causal:
        return exponentials.sum(-2, keepdim=True)
    last = torch.arange(query_offset, query_offset + queries, device=exponentials.device)
    sums = torch.nn.functional.pad(exponentials.cumsum(-2), (0, 0, 1, 0))
    return sums[..., (last + 1).clamp(max=exponentials.shape[-2]), :]
