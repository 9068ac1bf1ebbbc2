"""Softmax attention with one null logit: a query that finds nothing may read nothing."""

from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.backend import runs_kernel, width_obstacle
from attnlib.checks import check_attention, check_count, check_mask, check_scale
from attnlib.read.chunked_softmax import chunked_softmax_attention
from attnlib.read.extra_key import in_front, mask_behind, scores_behind, support_behind
from attnlib.read.flash_attention import key_padding, with_adjacent_numbers
from attnlib.score.changes import ScoreMod
from attnlib.support import Predicate
from attnlib.weight.null_logit import check_null_logit, softmax_with_null


def trial_logit(query: Tensor, key: Tensor, value: Tensor) -> dict[str, Tensor]:
    """A null logit to try the mechanism with, as a tensor that may have a gradient."""
    return {"null_logit": query.new_tensor(0.5)}


def dense_null_logit_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    null_logit: float | Tensor = 0.0,
    score_mod: ScoreMod | None = None,
    support: Predicate | None = None,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`attend` with the weights of `softmax_with_null`."""
    return attend(
        query,
        key,
        value,
        score_mod=score_mod,
        support=support,
        weight=partial(softmax_with_null, null_logit=null_logit),
        attn_mask=attn_mask,
        is_causal=is_causal,
        query_offset=query_offset,
        scale=scale,
        enable_gqa=enable_gqa,
    )


@mechanism(
    key="null-logit-attention",
    paper="miller-2023",
    chapter="4-sinks/where-sinks-come-from",
    section="one-null-logit",
    step="weight",
    idea="one more key with a logit of its own and the value zero: rows may sum to less than one",
    equation=r"\frac{e^{s_{ij}}}{e^{a} + \sum_{l \in S_i} e^{s_{il}}}",
    cost="time N M (D + E), memory (N + M)(D + E) + chunk M",
    oracle=dense_null_logit_attention,
    promises=Promises(normalized=False, arguments=trial_logit),
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def null_logit_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    *,
    null_logit: float | Float[Tensor, "..."] = 0.0,
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
    r"""o_i = sum_{j in S_i} e^{s_ij} v_j / (e^a + sum_{j in S_i} e^{s_ij}), a = `null_logit`.

    a is a number, or a tensor with one for each query head. With L_i = log sum_j e^{s_ij} the read
    is sigmoid(L_i - a) times that of softmax attention; a = -inf is softmax attention itself.

    Shapes, support and errors as in `attend`; ValueError or TypeError for a null logit that is no
    number, or not one for each head. Cost: time N M (D + E), memory (N + M)(D + E) + chunk M for
    gradients. The PyTorch form is `chunked_softmax_attention` with one more key whose value is
    zero.

    `backend` as in `attnlib.backend`. The kernel takes no score_mod and no support, and an
    `attn_mask` that is a padding of the keys, the same for all queries and heads, such as
    (batch, 1, 1, M); with anything else "auto" uses PyTorch and "triton" raises ValueError.
    Source: Miller (2023), with a = 0; with a learnt a for each head, the gpt-oss model card
    (OpenAI, 2025). Derived in chapter 4.1.
    """
    check_attention(query, key, value, enable_gqa)
    check_null_logit(null_logit, query)
    check_scale(scale)
    check_count("query_offset", query_offset)
    check_count("chunk", chunk, least=1)
    keys = key.shape[-2]
    if attn_mask is not None:
        check_mask(attn_mask, torch.Size((*query.shape[:-1], keys)))

    def why_not() -> str | None:
        return why_not_kernel(query, value, attn_mask, score_mod, support)

    if runs_kernel(backend, query.device, why_not):
        from attnlib.kernels import scored_attention as kernel

        return kernel(
            *(with_adjacent_numbers(x) for x in (query, key, value)),
            sink_logit=one_a_head(null_logit, query),
            is_causal=is_causal,
            query_offset=query_offset,
            key_mask=None if attn_mask is None else key_padding(attn_mask, query),
            scale=scale,
        )
    return chunked_softmax_attention(
        query,
        in_front(key.new_zeros(1, key.shape[-1]), key),
        in_front(value.new_zeros(1, value.shape[-1]), value),
        score_mod=scores_behind(score_mod, null_logit),
        support=support_behind(support),
        attn_mask=mask_behind(attn_mask, keys),
        is_causal=is_causal,
        query_offset=query_offset + 1,
        scale=scale,
        enable_gqa=enable_gqa,
        chunk=chunk,
    )


def one_a_head(null_logit: float | Tensor, query: Tensor) -> Float[Tensor, " heads"]:
    """The null logits as a tensor with one number for each query head."""
    heads = query.shape[-3] if query.dim() > 2 else 1
    return torch.as_tensor(null_logit, dtype=query.dtype, device=query.device).expand(heads)


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
    from attnlib.kernels.scored_attention_tiles import TILES
    from attnlib.kernels.tile_choice import fits

    memory = shared_memory_of(query.device)
    if fits(TILES, query.shape[-1], value.shape[-1], query.dtype, memory):
        return None
    return (
        f"no tile of width {max(query.shape[-1], value.shape[-1])} in {query.dtype} fits the "
        f"{memory} bytes of shared memory of the chip"
    )


class NullLogitAttention(nn.Module):
    """Null logit attention whose null is learnt: one for all heads, or one for each.

    An operator for a layer: give `MultiHeadAttention` the class (one null for all heads of the
    layer) or `NullLogitAttention(heads=4)` (one for each). The nulls begin at `start`.
    """

    def __init__(self, head_width: int | None = None, *, heads: int = 1, start: float = 0.0):
        super().__init__()
        check_count("heads", heads, least=1)
        self.null_logit = nn.Parameter(torch.full((heads,), float(start)))

    def forward(
        self,
        query: Float[Tensor, "*batch heads N D"],
        key: Float[Tensor, "*batch heads M D"],
        value: Float[Tensor, "*batch heads M E"],
        *,
        score_mod: ScoreMod | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        query_offset: int = 0,
    ) -> Float[Tensor, "*batch heads N E"]:
        """The read of `null_logit_attention` with this layer's null."""
        shared = len(self.null_logit) == 1
        return null_logit_attention(
            query,
            key,
            value,
            null_logit=self.null_logit[0] if shared else self.null_logit,
            score_mod=score_mod,
            attn_mask=attn_mask,
            is_causal=is_causal,
            query_offset=query_offset,
        )
