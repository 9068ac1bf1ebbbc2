"""Attention with one principle taken away at a time: mixing, form, dependence on content, currency.

Operators `(query, key, value, ...) -> read` and layers for `MultiHeadAttention` and `DecoderLM`.
Source: Xue et al. (2025), section 3; which of them are ours is said at each.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attnlib.attend import attend
from attnlib.checks import check_attention, check_count
from attnlib.models.multi_head import MultiHeadAttention, read_weights, rotate_all
from attnlib.read.heads import merge_heads, repeat_key_heads, split_heads
from attnlib.weight.extremes import uniform


def own_value(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    attn_mask: Bool[Tensor, "*#heads #N #N"] | None = None,
    is_causal: bool = False,
) -> Float[Tensor, "*heads N E"]:
    """No mixing: every token reads its own value, o_i = v_i, or zero where it may not.

    Ours, beside `GatedPerceptron`, which is the one of Xue et al. (2025).
    """
    _check_aligned(query, key, value)
    itself = torch.eye(key.shape[-2], dtype=torch.bool, device=key.device)
    mask = itself if attn_mask is None else itself & attn_mask
    return attend(query, key, value, weight=uniform, attn_mask=mask, is_causal=is_causal)


class GatedPerceptron(nn.Module):
    r"""No mixing as in the paper: W_down (silu(W_gate x) * W_up x) instead of the attention layer.

    Three matrices of 4/3 width^2 numbers each, together as many as an attention layer has.
    Source: Xue et al. (2025), eqs. 4 and 5. Shapes: (batch, N, width) -> (batch, N, width).
    """

    def __init__(self, width: int):
        super().__init__()
        check_count("width", width, least=1)
        hidden = max(1, round(4 * width / 3))
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(
        self,
        x: Float[Tensor, "batch N width"],
        *,
        attn_mask: Bool[Tensor, "..."] | None = None,
        return_weights: bool = False,
    ) -> Float[Tensor, "batch N width"]:
        """The next tokens, each from itself alone; what `attn_mask` forbids is not looked at."""
        if return_weights:
            raise ValueError("return_weights must be False: a gated perceptron has no weights")
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


def taylor(
    scores: Float[Tensor, "*batch N M"], support: Bool[Tensor, "*batch N M"]
) -> Float[Tensor, "*batch N M"]:
    """Content without the exponential: 1 + s + s^2 / 2 over the row's sum. It is never below 1/2.

    Finite in float16 for scores up to 100, in the other dtypes up to 1e4.
    Source: Xue et al. (2025), eq. 6, after Arora et al. (2024).
    """
    grown = (1 + scores + scores.square() / 2).masked_fill(~support, 0.0)
    return grown / grown.sum(-1, keepdim=True).clamp(min=0.5)


def approximate_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    value: Float[Tensor, "*heads M E"],
    *,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
) -> Float[Tensor, "*heads N E"]:
    """Attention with the weight step `taylor`: the paper's approximate form."""
    return attend(
        query,
        key,
        value,
        weight=taylor,
        attn_mask=attn_mask,
        is_causal=is_causal,
        query_offset=query_offset,
    )


def key_alone_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    attn_mask: Bool[Tensor, "*#heads #N #N"] | None = None,
    is_causal: bool = False,
) -> Float[Tensor, "*heads N E"]:
    r"""Softmax without pairs: token j scores silu(q_j) . k_j / sqrt(D), whoever looks at it.

    The paper's form that does not approximate attention. Source: Xue et al. (2025), eqs. 7 and 8.
    """
    _check_aligned(query, key, value)
    return attend(query, key, value, score=_own_score, attn_mask=attn_mask, is_causal=is_causal)


def _own_score(query: Tensor, key: Tensor, *, scale: float | None = None) -> Tensor:
    gated = nn.functional.silu(query) * key
    scores = gated.sum(-1) / math.sqrt(key.shape[-1])
    return scores[..., None, :].expand(*query.shape[:-1], key.shape[-2])


class LearntMap(nn.Module):
    """Weights that see positions only: a learnt table (heads, max_length, max_length), softmaxed.

    An operator; give an instance, of which each layer learns its own copy. It starts with equal
    weights. Ours (the paper learns its fixed maps through `GuidedAttention`); the same as the
    random synthesizer of Tay et al. (2021).
    """

    def __init__(self, *, heads: int, max_length: int):
        super().__init__()
        check_count("heads", heads, least=1)
        check_count("max_length", max_length, least=1)
        self.table = nn.Parameter(torch.zeros(heads, max_length, max_length))

    def forward(
        self,
        query: Float[Tensor, "*batch heads N D"],
        key: Float[Tensor, "*batch heads M D"],
        value: Float[Tensor, "*batch heads M E"],
        *,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        query_offset: int = 0,
    ) -> Float[Tensor, "*batch heads N E"]:
        """The read with the weights of the table's first rows and columns."""
        rows = slice(query_offset, query_offset + query.shape[-2])
        if max(rows.stop, key.shape[-2]) > self.table.shape[-1]:
            raise ValueError(
                f"query and key must be at most max_length={self.table.shape[-1]} long, "
                f"got positions up to {max(rows.stop, key.shape[-2])}"
            )

        def placed(query: Tensor, key: Tensor, *, scale: float | None = None) -> Tensor:
            scores = self.table[:, rows, : key.shape[-2]]
            return scores.to(query.dtype).expand(*query.shape[:-1], key.shape[-2])

        return attend(
            query,
            key,
            value,
            score=placed,
            attn_mask=attn_mask,
            is_causal=is_causal,
            query_offset=query_offset,
        )


class RandomMap(LearntMap):
    """Weights that see positions only and are never learnt: a softmaxed table of normal numbers.

    Ours; `spread` is the standard deviation of the table.
    """

    def __init__(self, *, heads: int, max_length: int, seed: int, spread: float = 1.0):
        super().__init__(heads=heads, max_length=max_length)
        generator = torch.Generator().manual_seed(seed)
        table = spread * torch.randn(heads, max_length, max_length, generator=generator)
        self.table = nn.Parameter(table, requires_grad=False)


class GuidedAttention(MultiHeadAttention):
    r"""Attention whose queries and keys come from a guide g, and its values from the tokens x.

    .. math:: y_i = \sum_h W^O_h \, \mathrm{operator}(W^Q_h g, W^K_h g, W^V_h x)_i

    The guide has the length of x, and one sequence or as many as x. Without a guide it is
    `MultiHeadAttention`. A guide that does not depend on the tokens makes fixed weights; the tokens
    as they were embedded make weights that do not depend on the layers below.
    Source: Xue et al. (2025), eqs. 9 to 13. `attnlib.models.ablated_language` supplies it.
    """

    def forward(
        self,
        x: Float[Tensor, "batch N width"],
        guide: Float[Tensor, "#batch N width"] | None = None,
        *,
        attn_mask: Bool[Tensor, "..."] | None = None,
        return_weights: bool = False,
    ) -> Float[Tensor, "batch N width"] | tuple[Tensor, Tensor]:
        """The read of x with the guide's weights; with `return_weights` also (batch, H, N, N)."""
        guide = x if guide is None else guide
        query = split_heads(self.to_query(guide), self.heads)
        key = split_heads(self.to_key(guide), self.key_heads)
        value = split_heads(self.to_value(x), self.key_heads)
        query, key = (side.expand(len(x), -1, -1, -1) for side in (query, key))
        key, value = repeat_key_heads(query, key, value)
        if self.position == "rope":
            query, key = rotate_all(query), rotate_all(key)
        options = self.options(attn_mask)
        out = self.to_output(merge_heads(self.operator(query, key, value, **options)))
        if return_weights:
            return out, read_weights(self.operator, query, key, **options)
        return out


def _check_aligned(query: Tensor, key: Tensor, value: Tensor) -> None:
    check_attention(query, key, value)
    if query.shape[-2] != key.shape[-2]:
        raise ValueError(
            f"key must have as many tokens as query ({query.shape[-2]}), got {key.shape[-2]}: "
            "here every token is query and key at once"
        )
