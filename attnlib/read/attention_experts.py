"""Attention layers as experts: each has queries and an output of its own, a gate mixes them."""

import torch
from jaxtyping import Float
from torch import Tensor

from attnlib.atlas import Taxonomy, mechanism
from attnlib.checks import check_attention
from attnlib.read.heads import merge_heads
from attnlib.weight.softmax_attention import softmax_attention


@mechanism(
    key="bam-upcycling",
    paper="bam-upcycling",
    chapter="5-heads/mixtures-of-heads",
    section="branch-attend-mix",
    step="read",
    idea="whole attention layers of trained models as softly gated experts",
    equation=r"y_i = \sum_e g_{ie} W^O_e \,\mathrm{attention}(q^e, k^e, v^e)_i",
    cost="time X times that of attention",
    promises=None,
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def soft_attention_experts(
    query: Float[Tensor, "batch X H N D"],
    key: Float[Tensor, "batch X_or_1 H M D"],
    value: Float[Tensor, "batch X_or_1 H M E"],
    *,
    outputs: Float[Tensor, "X width H_times_E"],
    gates: Float[Tensor, "batch N X"],
    is_causal: bool = False,
) -> Float[Tensor, "batch N width"]:
    r"""A sum over experts, each a multi-head attention with its own queries and output.

    .. math:: y_i = \sum_e g_{ie}\, W^O_e\, \mathrm{attention}(q^e, k^e, v^e)_i

    Keys and values are the experts' own, or, given once (dimension 1 of size one), shared by all.
    Gates are soft: every expert reads for every token. If all experts are alike and the gates of a
    token sum to one, this is the one layer.
    Shapes: X experts; see the signature. Cost: X times that of attention; shared keys and values
    save their projections and X - 1 of X parts of the cache.
    Raises ValueError where shapes do not belong together.
    Source: Zhang et al. (2024), "BAM!", section 4. Derived in chapter 5.2.
    """
    if query.dim() != 5 or key.dim() != 5 or key.shape[1] not in (1, query.shape[1]):
        raise ValueError(
            "key must have shape (batch, X, heads, M, D) with the X of query or X = 1, "
            f"got {tuple(key.shape)} for query {tuple(query.shape)}"
        )
    batch, experts, heads, queries, _ = query.shape
    if gates.shape != (batch, queries, experts):
        raise ValueError(f"gates must have shape {(batch, queries, experts)}, got {gates.shape}")
    if outputs.dim() != 3 or outputs.shape[::2] != (experts, heads * value.shape[-1]):
        raise ValueError(
            f"outputs must have shape ({experts}, width, {heads * value.shape[-1]}), "
            f"got {tuple(outputs.shape)}"
        )
    key, value = (part.expand(-1, experts, -1, -1, -1) for part in (key, value))
    check_attention(query, key, value)
    reads = merge_heads(softmax_attention(query, key, value, is_causal=is_causal))
    return torch.einsum("bnx,bxne,xwe->bnw", gates, reads, outputs)
