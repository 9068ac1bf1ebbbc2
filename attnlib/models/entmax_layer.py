"""Entmax attention in which every head learns how sparse it wants to be."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnlib.checks import check_count
from attnlib.weight.entmax_attention import entmax_attention


class EntmaxAttention(nn.Module):
    r"""An operator with one learnt number a_h a head: entmax with alpha_h = 1 + sigmoid(a_h).

    Every head starts at alpha = 1.5. Give an instance with the number of heads,
    `DecoderLM(..., heads=4, operator=EntmaxAttention(heads=4))`: each layer learns its own copy.
    Source: Correia et al. (2019), section 3.
    """

    def __init__(self, *, heads: int):
        super().__init__()
        check_count("heads", heads, least=1)
        self.sparsity = nn.Parameter(torch.zeros(heads))

    def alphas(self) -> Float[Tensor, " heads"]:
        """The alpha of each head, between 1 (softmax) and 2 (sparsemax)."""
        return 1 + torch.sigmoid(self.sparsity)

    def forward(
        self,
        query: Float[Tensor, "*batch heads N D"],
        key: Float[Tensor, "*batch heads M D"],
        value: Float[Tensor, "*batch heads M E"],
        *,
        score_mod: Callable[..., Tensor] | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        query_offset: int = 0,
    ) -> Float[Tensor, "*batch heads N E"]:
        """The read of `attnlib.entmax_attention` with this layer's alphas."""
        if query.shape[-3:-2] != self.sparsity.shape:
            raise ValueError(
                f"query must have the {self.sparsity.numel()} heads of this layer, "
                f"got shape {tuple(query.shape)}"
            )
        return entmax_attention(
            query,
            key,
            value,
            alpha=self.alphas()[:, None, None],
            score_mod=score_mod,
            attn_mask=attn_mask,
            is_causal=is_causal,
            query_offset=query_offset,
        )
