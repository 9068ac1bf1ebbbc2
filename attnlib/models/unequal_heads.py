"""DiffQKV: fewer heads for keys than for values, and a wider way to the queries."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnlib.checks import check_count
from attnlib.models.attention_layer import (
    AttentionLayer,
    Kept,
    check_divides,
    check_pairs,
    projection,
)
from attnlib.read.heads import merge_heads, split_heads
from attnlib.read.shared_heads import unequal_heads_attention


class UnequalHeadsAttention(AttentionLayer):
    r"""Queries, keys and values with their own numbers of heads and widths.

    `key_heads` and `value_heads` each divide `heads`; query head h reads key head
    floor(h key_heads / heads) and value head floor(h value_heads / heads). The widths of a key head
    and of a value head are width / heads unless given. Queries have the width of keys: where the
    paper narrows keys, it lifts them again by a learned layer, ours narrows the queries with them.
    `query_expansion` augments the queries: they pass through a gated perceptron
    (`AugmentedQuery`) of inner width `query_expansion` * width; the paper takes 1.5.

    Keeps key_heads * key_width + value_heads * value_width numbers a token.
    Parameters: width * (heads * key_width + key_heads * key_width + (value_heads + heads) *
    value_width), and 3 heads * key_width * inner for augmented queries.
    Raises ValueError for sizes that do not divide. Shapes as in `AttentionLayer`.
    Source: Lin et al. (2025), "Sigma", section 2, eqs. 1 and 3. Derived in chapter 1.4.
    """

    operator = staticmethod(unequal_heads_attention)

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        key_heads: int,
        value_heads: int,
        key_width: int | None = None,
        value_width: int | None = None,
        query_expansion: float | None = None,
        position: str = "none",
        is_causal: bool = False,
    ):
        super().__init__(position, is_causal)
        check_divides("heads", heads, "width", width)
        check_divides("key_heads", key_heads, "heads", heads)
        check_divides("value_heads", value_heads, "heads", heads)
        key_width = width // heads if key_width is None else key_width
        value_width = width // heads if value_width is None else value_width
        check_count("key_width", key_width, least=1)
        check_count("value_width", value_width, least=1)
        if position == "rope":
            check_pairs("key_width", key_width)

        self.heads, self.key_heads, self.value_heads = heads, key_heads, value_heads
        self.to_query = projection(width, heads * key_width)
        self.augment = nn.Identity()
        if query_expansion is not None:
            inner = round(query_expansion * width)
            if inner < 1:
                raise ValueError(f"query_expansion must be positive, got {query_expansion}")
            self.augment = AugmentedQuery(heads * key_width, inner)
        self.to_key = projection(width, key_heads * key_width)
        self.to_value = projection(width, value_heads * value_width)
        self.to_output = projection(heads * value_width, width)
        self.cache_numbers = key_heads * key_width + value_heads * value_width

    def queries(self, x: Tensor, start: int = 0) -> Tensor:
        """All query heads, augmented where asked for."""
        return self.placed(split_heads(self.augment(self.to_query(x)), self.heads), start)

    def keep(self, context: Tensor, start: int = 0) -> Kept:
        """The keys, in their places, and the values; (batch, M, all heads side by side)."""
        key = self.placed(split_heads(self.to_key(context), self.key_heads), start)
        return merge_heads(key), self.to_value(context)

    def keys_and_values(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """`key_heads` keys and `value_heads` values a token."""
        return split_heads(key, self.key_heads), split_heads(value, self.value_heads)


class AugmentedQuery(nn.Module):
    r"""A gated perceptron on the queries: W_down(silu(W_gate q) * (W_up q)).

    It costs parameters and time for each new token, and nothing a token kept.
    Shapes: (..., width) -> (..., width). Source: Lin et al. (2025), "Sigma", appendix E.
    """

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.gate, self.up = projection(width, inner), projection(width, inner)
        self.down = projection(inner, width)

    def forward(self, query: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """The augmented queries, all heads side by side."""
        return self.down(torch.nn.functional.silu(self.gate(query)) * self.up(query))
