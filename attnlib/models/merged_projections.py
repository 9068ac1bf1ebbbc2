"""Layers that leave out projections, because a neighbor can do their work."""

import torch
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


class OptimizedAttention(AttentionLayer):
    r"""No value projection: the values are the tokens themselves, cut into heads.

    .. math:: y = [\ldots;\ \mathrm{softmax}(X W^Q_h\, (X W^K_h)^\top / \sqrt{D})\, X_h;\ \ldots]
              \, W^O

    X_h are the coordinates h D ... (h + 1) D - 1 of the tokens. With one head it is standard
    attention whose output projection is W^V W^O; with more heads each sees its slice alone.

    Keeps 2 width numbers a token: the keys and the token. Parameters: 3 width^2, three quarters of
    multi-head attention. Raises ValueError for sizes that do not divide. Shapes as in
    `AttentionLayer`. Source: Hosseini and Hosseini (2024), "optimised attention".
    """

    def __init__(
        self, width: int, heads: int = 1, *, position: str = "none", is_causal: bool = False
    ):
        super().__init__(position, is_causal)
        check_slices(width, heads, position)
        self.heads = heads
        self.to_query = projection(width, width)
        self.to_key = projection(width, width)
        self.to_output = projection(width, width)
        self.cache_numbers = 2 * width

    def queries(self, x: Tensor, start: int = 0) -> Tensor:
        """The projected queries of all heads."""
        return self.placed(split_heads(self.to_query(x), self.heads), start)

    def keep(self, context: Tensor, start: int = 0) -> Kept:
        """The projected keys, in their places, and the tokens."""
        key = self.placed(split_heads(self.to_key(context), self.heads), start)
        return merge_heads(key), context

    def keys_and_values(self, key: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys, and slices of the tokens as values."""
        return split_heads(key, self.heads), split_heads(tokens, self.heads)


class EfficientAttention(AttentionLayer):
    r"""Neither key nor value projection: queries are compared with the tokens themselves.

    .. math:: y = [\ldots;\ \mathrm{softmax}(X W^Q_h X_h^\top / \sqrt{D})\, X_h;\ \ldots]\, W^O

    With one head it is standard attention with W^Q := W^Q {W^K}^T and W^O := W^V W^O (exactly so
    without rotations, which would stand between W^Q and W^K).

    Keeps width numbers a token: the token, which is key and value at once. Parameters: 2 width^2,
    half of multi-head attention. Raises ValueError for sizes that do not divide. Shapes as in
    `AttentionLayer`. Source: Hosseini and Hosseini (2024), "efficient attention".
    """

    def __init__(
        self, width: int, heads: int = 1, *, position: str = "none", is_causal: bool = False
    ):
        super().__init__(position, is_causal)
        check_slices(width, heads, position)
        self.heads = heads
        self.to_query = projection(width, width)
        self.to_output = projection(width, width)
        self.cache_numbers = width

    def queries(self, x: Tensor, start: int = 0) -> Tensor:
        """The projected queries of all heads."""
        return self.placed(split_heads(self.to_query(x), self.heads), start)

    def keep(self, context: Tensor, start: int = 0) -> Kept:
        """The tokens."""
        return (context,)

    def keys_and_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Slices of the tokens, as keys and as values."""
        slices = split_heads(tokens, self.heads)
        return self.placed(slices), slices


class SuperAttention(EfficientAttention):
    r"""Efficient attention whose values are first mixed along the sequence by a learned matrix.

    .. math:: y = [\ldots;\ \mathrm{softmax}(X W^Q_h X_h^\top / \sqrt{D})\, W^A X_h;\ \ldots]\, W^O

    W^A (length, length) belongs to positions, so no sequence may be longer than `length`; a shorter
    one uses its upper left corner. A causal layer uses its lower triangle alone: value j mixes the
    tokens up to j. The mixing sees tokens that `attn_mask` forbids to queries. Here it starts as
    the identity, that is, as `EfficientAttention`. The weights returned are those of the softmax.

    Keeps width numbers a token, and mixes them anew at each step.
    Parameters: 2 width^2 + length^2. Raises ValueError for sizes that do not divide and for
    sequences that are too long. Source: Hosseini and Hosseini (2024), "super attention".
    """

    def __init__(
        self,
        width: int,
        heads: int = 1,
        *,
        length: int,
        position: str = "none",
        is_causal: bool = False,
    ):
        super().__init__(width, heads, position=position, is_causal=is_causal)
        check_count("length", length, least=1)
        self.mixer = nn.Parameter(torch.eye(length))

    def keys_and_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Slices of the tokens as keys, and mixtures of such slices as values."""
        key, value = super().keys_and_values(tokens)
        keys, length = tokens.shape[1], len(self.mixer)
        if keys > length:
            raise ValueError(f"context must be at most length = {length} long, got {keys}")
        mixer = self.mixer[:keys, :keys]
        return key, (mixer.tril() if self.is_causal else mixer) @ value


def check_slices(width: int, heads: int, position: str) -> None:
    """Check that a token can be cut into heads, and each head into pairs where it is rotated."""
    check_divides("heads", heads, "width", width)
    if position == "rope":
        check_pairs("width / heads", width // heads)
