"""Softmax attention with a key of its own that every query sees: a sink that is no token."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.attend import attend
from attnlib.checks import check_attention, check_count, check_mask, check_scale, check_tensor
from attnlib.read.chunked_softmax import chunked_softmax_attention
from attnlib.read.extra_key import in_front, mask_behind, scores_behind, support_behind
from attnlib.read.heads import repeat_key_heads
from attnlib.score.changes import ScoreMod
from attnlib.support import Predicate


def trial_bias(query: Tensor, key: Tensor, value: Tensor) -> dict[str, Tensor]:
    """A key to try the mechanism with: the same for every call with these widths."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(key.shape[-1], generator=generator, dtype=torch.float64)
    return {"bias_key": drawn.to(query)}


def dense_key_bias_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    bias_key: Tensor,
    bias_value: Tensor | None = None,
    score_mod: ScoreMod | None = None,
    support: Predicate | None = None,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`attend` over the keys and one more, which has number 0 and is visible to everybody."""
    if enable_gqa:
        key, value = repeat_key_heads(query, key, value)
    return attend(
        query,
        in_front(row_of(bias_key), key),
        in_front(row_of(bias_value, value), value),
        score_mod=scores_behind(score_mod),
        support=support_behind(support),
        attn_mask=mask_behind(attn_mask, key.shape[-2]),
        is_causal=is_causal,
        query_offset=query_offset + 1,
        scale=scale,
    )


@mechanism(
    key="key-bias-attention",
    paper="sink-emergence",
    chapter="4-sinks/where-sinks-come-from",
    section="a-key-bias",
    step="support",
    idea="a learnt key before all tokens, whose value is zero, takes the weight nobody wants",
    equation=r"\mathrm{softmax}\big([q_i \cdot k^*,\ q_i K^\top] / \sqrt{D}\big)\,[v^*;\ V]",
    cost="time N M (D + E), memory (N + M)(D + E) + chunk M",
    oracle=dense_key_bias_attention,
    promises=Promises(normalized=False, arguments=trial_bias),
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def key_bias_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*key_heads M D"],
    value: Float[Tensor, "*key_heads M E"],
    *,
    bias_key: Float[Tensor, "*#heads D"] | None = None,
    bias_value: Float[Tensor, "*#heads E"] | None = None,
    score_mod: ScoreMod | None = None,
    support: Predicate | None = None,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
    enable_gqa: bool = False,
    chunk: int = 512,
) -> Float[Tensor, "*heads N E"]:
    r"""Softmax attention over the keys and one more, k* with the value v*, seen by every query.

    .. math:: o_i = \frac{e^{s_{i*}} v^* + \sum_{j \in S_i} e^{s_{ij}} v_j}
        {e^{s_{i*}} + \sum_{j \in S_i} e^{s_{ij}}}, \qquad s_{i*} = \mathrm{scale}\; q_i \cdot k^*

    `bias_key` is k*, (D,) for all query heads or (heads, D); without one it is zero, which is
    `null_logit_attention` with the null 0. `bias_value` is v*, zero unless given: then the rows of
    weights on the tokens sum to less than one. k* has no position: it is neither rotated nor
    changed by `score_mod`. A row that sees no key reads its share of v*.

    Shapes, support and errors as in `attend`; ValueError for a bias of another shape. Cost: time
    N M (D + E), memory (N + M)(D + E) + chunk M for gradients.
    Source: Gu et al. (2025), section 7.3 (k* alone, and k* with v*). Derived in chapter 4.1.
    """
    check_attention(query, key, value, enable_gqa)
    check_scale(scale)
    check_count("query_offset", query_offset)
    keys = key.shape[-2]
    if attn_mask is not None:
        check_mask(attn_mask, torch.Size((*query.shape[:-1], keys)))
    if enable_gqa:
        key, value = repeat_key_heads(query, key, value)
    check_bias_row("bias_key", bias_key, key)
    check_bias_row("bias_value", bias_value, value)
    return chunked_softmax_attention(
        query,
        in_front(row_of(bias_key, key), key),
        in_front(row_of(bias_value, value), value),
        score_mod=scores_behind(score_mod),
        support=support_behind(support),
        attn_mask=mask_behind(attn_mask, keys),
        is_causal=is_causal,
        query_offset=query_offset + 1,
        scale=scale,
        chunk=chunk,
    )


def row_of(bias: Tensor | None, rows: Tensor | None = None) -> Float[Tensor, "*heads 1 D"]:
    """A bias as one more row: (D,) -> (1, D), (heads, D) -> (heads, 1, D); zeros for None."""
    return rows.new_zeros(1, rows.shape[-1]) if bias is None else bias[..., None, :]


def check_bias_row(name: str, bias: Tensor | None, rows: Tensor) -> None:
    """Check that a bias is None, (D,), or (heads, D) for keys or values (..., heads, M, D)."""
    if bias is None:
        return
    check_tensor(name, bias)
    heads, width = rows.shape[-3:-2], rows.shape[-1]
    if tuple(bias.shape) not in {(width,), (*heads, width)}:
        raise ValueError(
            f"{name} must have shape ({width},) or {(*heads, width)}, got {tuple(bias.shape)}"
        )


class KeyBiasAttention(nn.Module):
    """Key bias attention whose key is learnt, for all heads together or for each; its value is 0.

    An operator for a layer: give `MultiHeadAttention` the class (one key for all heads of the
    layer) or `KeyBiasAttention(16, heads=4)` (one for each).
    Source: Gu et al. (2025), section 7.3. Our keys start normal with deviation 0.02.
    """

    def __init__(self, head_width: int, *, heads: int = 1):
        super().__init__()
        check_count("head_width", head_width, least=1)
        check_count("heads", heads, least=1)
        self.bias_key = nn.Parameter(0.02 * torch.randn(heads, head_width))

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
        """The read of `key_bias_attention` with this layer's key."""
        shared = len(self.bias_key) == 1
        return key_bias_attention(
            query,
            key,
            value,
            bias_key=self.bias_key[0] if shared else self.bias_key,
            score_mod=score_mod,
            attn_mask=attn_mask,
            is_causal=is_causal,
            query_offset=query_offset,
        )
