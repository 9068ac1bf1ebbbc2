"""Sigmoid attention: no normalizer, so a tile is added and forgotten."""

from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.backend import runs_kernel, width_obstacle
from attnlib.checks import check_attention, check_count, check_mask, check_scale
from attnlib.read.elementwise_tiles import attend_in_tiles
from attnlib.read.flash_attention import key_padding, with_adjacent_numbers
from attnlib.score.changes import ScoreMod
from attnlib.support import Predicate
from attnlib.weight.dense_form import dense_form
from attnlib.weight.sigmoid import check_bias, gate, sigmoid


@mechanism(
    key="sigmoid-attention",
    paper="sigmoid-attention",
    chapter="2-weights/beyond-softmax",
    section="no-normalizer",
    step="weight",
    idea="each weight is a sigmoid of its own score; the bias -log n gives rows the right size",
    equation=r"\sigma(Q K^\top / \sqrt{D} - \log n)\, V",
    cost="time N M (D + E), memory (N + M)(D + E) + chunk M",
    oracle=dense_form(sigmoid),
    promises=Promises(normalized=False),
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def sigmoid_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    *,
    bias: float | None = None,
    score_mod: ScoreMod | None = None,
    support: Predicate | None = None,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
    enable_gqa: bool = False,
    chunk: int = 512,
    backend: str = "auto",
) -> Float[Tensor, "*heads N E"]:
    r"""o_i = sum_{j in S_i} sigmoid(scale q_i . k_j + b) v_j, with b = -log n_i unless given.

    n_i is the number of keys in the support of row i. `bias` is one number for all rows instead:
    -log of the length of the sequence is the paper's own choice.

    Shapes, support and errors as in `attend`; TypeError or ValueError for a bias that is no finite
    number. Cost: time N M (D + E), memory (N + M)(D + E) + chunk M for gradients. The PyTorch form
    folds tiles of keys and carries nothing from tile to tile but the read.

    `backend` as in `attnlib.backend`. The kernel takes no score_mod and no support, and an
    `attn_mask` that is a padding of the keys, the same for all queries and heads, such as
    (batch, 1, 1, M); with anything else "auto" uses PyTorch and "triton" raises ValueError.
    Source: Ramapuram et al. (2025), section 2. Derived in chapter 2.1.
    """
    check_attention(query, key, value, enable_gqa)
    check_bias(bias)
    check_scale(scale)
    check_count("query_offset", query_offset)
    if attn_mask is not None:
        check_mask(attn_mask, torch.Size((*query.shape[:-1], key.shape[-2])))

    def why_not() -> str | None:
        return why_not_kernel(query, value, attn_mask, score_mod, support)

    if runs_kernel(backend, query.device, why_not):
        from attnlib.kernels import sigmoid_attention as kernel

        return kernel(
            *(with_adjacent_numbers(x) for x in (query, key, value)),
            bias=bias,
            is_causal=is_causal,
            query_offset=query_offset,
            key_mask=None if attn_mask is None else key_padding(attn_mask, query),
            scale=scale,
        )
    return attend_in_tiles(
        query,
        key,
        value,
        weight_of=partial(gate, bias=bias),
        score_mod=score_mod,
        support=support,
        attn_mask=attn_mask,
        is_causal=is_causal,
        query_offset=query_offset,
        scale=scale,
        enable_gqa=enable_gqa,
        chunk=chunk,
    )


def why_not_kernel(
    query: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    score_mod: ScoreMod | None,
    support: Predicate | None,
) -> str | None:
    """What of this call the kernel cannot do, or None."""
    for name, given in (("score_mod", score_mod), ("support", support)):
        if given is not None:
            return f"the kernel takes no {name}"
    if attn_mask is not None and key_padding(attn_mask, query) is None:
        return (
            "the kernel takes an attn_mask that is the same for all queries and heads, "
            f"such as (batch, 1, 1, M), got {tuple(attn_mask.shape)}"
        )
    return width_obstacle(query, value) or tile_obstacle(query, value)


def tile_obstacle(query: Tensor, value: Tensor) -> str | None:
    """Why no tile of the kernel fits the chip that holds the query, or None."""
    from attnlib.kernels.launch import shared_memory_of
    from attnlib.kernels.sigmoid_attention import TILES
    from attnlib.kernels.tile_choice import fits

    memory = shared_memory_of(query.device)
    if fits(TILES, query.shape[-1], value.shape[-1], query.dtype, memory):
        return None
    return (
        f"no tile of width {max(query.shape[-1], value.shape[-1])} in {query.dtype} fits the "
        f"{memory} bytes of shared memory of the chip"
    )
