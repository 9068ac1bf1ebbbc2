"""Flash attention: exact softmax attention in tiles, by PyTorch or by the Triton kernel."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.backend import runs_kernel, width_obstacle
from attnlib.checks import check_attention, check_count, check_mask, check_scale
from attnlib.read.chunked_softmax import chunked_softmax_attention
from attnlib.support import window as last_keys


@mechanism(
    key="flash",
    paper="dao-2022",
    chapter="1-foundations/exact-and-cached",
    section="flash-attention",
    step="read",
    idea="softmax attention tile by tile in fast memory; the scores are never written",
    equation=r"\mathrm{softmax}(Q K^\top / \sqrt{D})\, V",
    cost="time N M (D + E), memory (N + M)(D + E)",
    oracle=attend,
    promises=Promises(),
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def flash_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    *,
    is_causal: bool = False,
    query_offset: int = 0,
    window: int | None = None,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    backend: str = "auto",
) -> Float[Tensor, "*heads N E"]:
    r"""Exact softmax attention, softmax(Q K^T / sqrt(D)) V, without the N x M matrix in memory.

    Shapes, support and errors as in `attend`. With `window` a query sees the last keys only,
    i + query_offset - window < j <= i + query_offset.
    Cost: time N M (D + E); what is kept for the gradient is (N + M)(D + E) numbers.

    `backend` as in `attnlib.backend`. The PyTorch form is `chunked_softmax_attention`. The kernel
    takes an `attn_mask` that is a padding of the keys, the same for all queries and heads, such
    as (batch, 1, 1, M); with another mask "auto" uses PyTorch and "triton" raises ValueError.
    Source: Dao et al. (2022), algorithms 1 and 4; Dao (2023). Derived in chapter 1.4.
    """
    check_attention(query, key, value, enable_gqa)
    check_scale(scale)
    check_count("query_offset", query_offset)
    if window is not None:
        check_count("window", window, least=1)
    if attn_mask is not None:
        check_mask(attn_mask, torch.Size((*query.shape[:-1], key.shape[-2])))

    if runs_kernel(backend, query.device, lambda: why_not_kernel(query, value, attn_mask)):
        from attnlib.kernels import flash_attention as kernel

        return kernel(
            *(with_adjacent_numbers(x) for x in (query, key, value)),
            is_causal=is_causal,
            query_offset=query_offset,
            window=window,
            key_mask=None if attn_mask is None else key_padding(attn_mask, query),
            scale=scale,
        )
    return chunked_softmax_attention(
        query,
        key,
        value,
        support=None if window is None else last_keys(window),
        attn_mask=attn_mask,
        is_causal=is_causal,
        query_offset=query_offset,
        scale=scale,
        enable_gqa=enable_gqa,
    )


def key_padding(attn_mask: Bool[Tensor, "..."], query: Tensor) -> Bool[Tensor, "..."] | None:
    """The mask as (*batch, M), where all queries and heads share it; None where they do not."""
    axes = query.dim()
    mask = attn_mask.reshape((1,) * (axes - attn_mask.dim()) + attn_mask.shape)
    for axis in range(max(axes - 3, 0), axes - 1):  # heads, if there are any, and queries
        if mask.shape[axis] != 1 and mask.stride(axis) != 0:
            return None
    for _ in range(min(axes - 1, 2)):
        mask = mask.select(max(axes - 3, 0), 0)
    return mask


def with_adjacent_numbers(tensor: Tensor) -> Tensor:
    """The tensor, copied only where the numbers of a row are not next to each other."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def why_not_kernel(query: Tensor, value: Tensor, attn_mask: Tensor | None) -> str | None:
    """What of this call the kernel cannot do, or None."""
    if attn_mask is not None and key_padding(attn_mask, query) is None:
        return (
            "the kernel takes an attn_mask that is the same for all queries and heads, "
            f"such as (batch, 1, 1, M), got {tuple(attn_mask.shape)}"
        )
    return width_obstacle(query, value) or tile_obstacle(query, value)


def tile_obstacle(query: Tensor, value: Tensor) -> str | None:
    """Why no tile of the kernel fits the chip that holds the query, or None."""
    from attnlib.kernels.flash_attention import TILES
    from attnlib.kernels.launch import shared_memory_of
    from attnlib.kernels.tile_choice import fits

    memory = shared_memory_of(query.device)
    if fits(TILES, query.shape[-1], value.shape[-1], query.dtype, memory):
        return None
    return (
        f"no tile of width {max(query.shape[-1], value.shape[-1])} in {query.dtype} fits the "
        f"{memory} bytes of shared memory of the chip"
    )
