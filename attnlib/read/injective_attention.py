"""InLine: linear attention whose rows sum to one by subtraction, so that no two queries agree."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.backend import runs_kernel
from attnlib.checks import check_attention, check_count, check_mask, check_scale, check_tensor
from attnlib.read.linear_attention import (
    check_one_token,
    check_widths,
    linear_attention,
    mask_by_query,
    same_for_all_queries,
    summed_in,
)


def centered(
    scores: Float[Tensor, "*batch N M"], support: Bool[Tensor, "*batch N M"]
) -> Float[Tensor, "*batch N M"]:
    r"""w_j = (s_j - mean of the row + 1) / n, n keys in the row: sums to one without a division.

    Weights may be negative. Source: Han et al. (2024), eq. 5, with the 1/n of its code.
    """
    count = support.sum(-1, keepdim=True).clamp(min=1)
    mean = scores.masked_fill(~support, 0.0).sum(-1, keepdim=True) / count
    return ((scores - mean + 1) / count).masked_fill(~support, 0.0)


def dense_injective_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`injective_attention` by `attend`: the scaled dot product, centered instead of softmax."""
    return attend(
        query,
        key,
        value,
        weight=centered,
        attn_mask=attn_mask,
        is_causal=is_causal,
        query_offset=query_offset,
        scale=scale,
        enable_gqa=enable_gqa,
    )


class InjectiveState(NamedTuple):
    """What `injective_attention` keeps of the keys so far."""

    matrix: Float[Tensor, "*heads D E"]
    """sum_j k_j v_j^T."""
    key: Float[Tensor, "*heads 1 D"]
    """sum_j k_j."""
    value: Float[Tensor, "*heads 1 E"]
    """sum_j v_j."""
    count: Float[Tensor, ""]
    """How many keys there are."""


def injective_attention_step(
    state: InjectiveState | None,
    query: Float[Tensor, "*heads 1 D"],
    key: Float[Tensor, "*heads 1 D"],
    value: Float[Tensor, "*heads 1 E"],
    *,
    scale: float | None = None,
) -> tuple[Float[Tensor, "*heads 1 E"], InjectiveState]:
    """`injective_attention` with is_causal for the next token: (read, new state)."""
    check_attention(query, key, value)
    check_scale(scale)
    check_widths(query, key)
    check_one_token(query, key)
    dtype = summed_in(query)
    q, k, v = (tensor.to(dtype) for tensor in (query, key, value))
    added = InjectiveState(k.mT @ v, k, v, torch.ones((), dtype=dtype, device=k.device))
    if state is not None:
        check_injective_state(state, added)
        added = InjectiveState(*(old + new for old, new in zip(state, added, strict=True)))
    q = q * (query.shape[-1] ** -0.5 if scale is None else scale)
    read = centered_read(q @ added.matrix, q @ added.key.mT, added.value, added.count)
    return read.to(query.dtype), added


def check_injective_state(state: InjectiveState, added: InjectiveState) -> None:
    """Raise unless every sum of `state` has the shape and dtype of what is added to it."""
    if not isinstance(state, InjectiveState):
        raise TypeError(f"state must be an InjectiveState or None, got {type(state).__name__}")
    for name, old, new in zip(state._fields, state, added, strict=True):
        check_tensor(f"state.{name}", old)
        if old.shape != new.shape or old.dtype != new.dtype:
            raise ValueError(
                f"state.{name} must have shape {tuple(new.shape)} in {new.dtype}, "
                f"got {tuple(old.shape)} in {old.dtype}"
            )


def centered_read(product: Tensor, total: Tensor, value: Tensor, count: Tensor) -> Tensor:
    """(sum_j s_j v_j + (1 - mean s) sum_j v_j) / n, with total = sum_j s_j."""
    return (product + (1 - total / count) * value) / count


@mechanism(
    key="inline-attention",
    paper="inline-attention",
    chapter="3-linear/feature-maps",
    section="two-queries-one-row",
    step="weight",
    idea="scores less their mean instead of divided by their sum, so that no two queries agree",
    equation=r"w_{ij} = (s_{ij} - \bar s_i + 1) / n",
    cost="time (N + M) D E, memory (N + M)(D + E) + D E",
    oracle=dense_injective_attention,
    recurrent=injective_attention_step,
    promises=Promises(positive=False, constant_state=True),
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def injective_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    *,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
    enable_gqa: bool = False,
    chunk: int = 128,
    backend: str = "auto",
) -> Float[Tensor, "*heads N E"]:
    r"""InLine attention with the identity as feature map, in linear time.

    .. math:: o_i = \sum_{j \in S_i} w_{ij} v_j, \quad
              w_{ij} = \frac{s_{ij} - \bar s_i + 1}{n}

    with s for the scaled dot product and its mean over the n keys of the row's support. Rows sum to
    one without a division, so that a query and its double read differently; weights may be
    negative.

    Shapes, support and errors as in `linear_attention`; `feature_map` is the identity (apply
    another one to query and key before). The predicted 3 x 3 residual of the paper is not part of
    it. Cost: time (N + M) D E.
    Source: Han et al. (2024), eq. 5, with the scale of its code. Derived in chapter 3.1.
    """
    check_attention(query, key, value, enable_gqa)
    check_scale(scale)
    check_count("query_offset", query_offset)
    check_count("chunk", chunk, least=1)
    check_widths(query, key)
    options = {"is_causal": is_causal, "query_offset": query_offset, "enable_gqa": enable_gqa}
    if attn_mask is not None:
        check_mask(attn_mask, torch.Size((*query.shape[:-1], key.shape[-2])))
        if not same_for_all_queries(attn_mask):
            runs_kernel(backend, query.device, mask_by_query)
            q, k, v = (tensor.to(summed_in(query)) for tensor in (query, key, value))
            read = dense_injective_attention(q, k, v, attn_mask=attn_mask, scale=scale, **options)
            return read.to(query.dtype)
        options["attn_mask"] = attn_mask
    dtype = summed_in(query)
    q, k, v = (tensor.to(dtype) for tensor in (query, key, value))
    q = q * (query.shape[-1] ** -0.5 if scale is None else scale)
    # Beside the values, ones: their read is the sum of the scores.
    counted = torch.cat((v, torch.ones_like(v[..., :1])), dim=-1)
    options |= {"normalize": False, "chunk": chunk, "backend": backend}
    sums = linear_attention(q, k, counted, feature_map=lambda x: x, **options)
    # Features of ones add up values and count keys.
    plain = linear_attention(
        torch.ones_like(q[..., :1]),
        torch.ones_like(k[..., :1]),
        counted,
        feature_map=lambda x: x,
        **options,
    )
    return centered_read(
        sums[..., :-1], sums[..., -1:], plain[..., :-1], plain[..., -1:].clamp(min=1)
    ).to(query.dtype)
