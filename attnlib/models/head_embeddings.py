"""One projection for all heads: each head changes it by a vector of its own."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnlib.models.attention_layer import (
    AttentionLayer,
    Kept,
    check_divides,
    check_pairs,
    projection,
)

SMALL = 0.02
"""Standard deviation of the entries of a new head's vectors: heads start nearly alike."""


class HeadEmbeddings(AttentionLayer):
    r"""Multi-head attention from single-head projections and three vectors a head.

    .. math:: q^h_i = \mathrm{of\_head}(W^Q x_i, e^Q_h), \quad k^h_j = \mathrm{of\_head}(W^K x_j,
              e^K_h), \quad v^h_j = \mathrm{of\_head}(W^V x_j, e^V_h)

    with W^Q, W^K, W^V from width to the width of one head, D = width / heads. `AddedHeadEmbeddings`
    and `MultipliedHeadEmbeddings` say what `of_head` is. The reads of all heads go side by side
    through one output projection.

    Keeps 2 D numbers a token, like multi-query attention: the vectors of the heads belong to no
    token. Parameters: 3 width D + 3 heads D + width^2; the 3 heads D are all that is added to the
    projections of one head of width D. Raises ValueError for sizes that do not divide. Shapes as
    in `AttentionLayer`.
    """

    def __init__(self, width: int, heads: int, *, position: str = "none", is_causal: bool = False):
        super().__init__(position, is_causal)
        check_divides("heads", heads, "width", width)
        head_width = width // heads
        if position == "rope":
            check_pairs("width / heads", head_width)
        self.to_query = projection(width, head_width)
        self.to_key = projection(width, head_width)
        self.to_value = projection(width, head_width)
        self.query_embedding = nn.Parameter(torch.randn(heads, 1, head_width) * SMALL)
        self.key_embedding = nn.Parameter(torch.randn(heads, 1, head_width) * SMALL)
        self.value_embedding = nn.Parameter(torch.randn(heads, 1, head_width) * SMALL)
        self.to_output = projection(width, width)
        self.cache_numbers = 2 * head_width

    def of_head(
        self, shared: Float[Tensor, "batch 1 N D"], embedding: Float[Tensor, "H 1 D"]
    ) -> Float[Tensor, "batch H N D"]:
        """The vectors of every head, made from those that the heads share."""
        raise NotImplementedError

    def queries(self, x: Tensor, start: int = 0) -> Tensor:
        """The queries of all heads, from one projection."""
        return self.placed(self.of_head(self.to_query(x)[:, None], self.query_embedding), start)

    def keep(self, context: Tensor, start: int = 0) -> Kept:
        """The key and the value that all heads share."""
        return self.to_key(context), self.to_value(context)

    def keys_and_values(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values of all heads."""
        key = self.of_head(key[:, None], self.key_embedding)
        return self.placed(key), self.of_head(value[:, None], self.value_embedding)


class AddedHeadEmbeddings(HeadEmbeddings):
    r"""Each head adds its vector: q^h = W^Q x + e^Q_h, and so for keys and values.

    Without rotations the vectors of the keys cancel in the softmax, and those of the values add a
    constant to the output, so that heads differ in their weights through e^Q alone.
    Source: Xue and Aletras (2023), "MHE-ADD". Derived in chapter 1.4.
    """

    def of_head(self, shared: Tensor, embedding: Tensor) -> Tensor:
        """shared + e_h."""
        return shared + embedding


class MultipliedHeadEmbeddings(HeadEmbeddings):
    r"""Each head scales the coordinates: q^h = W^Q x * (1 + e^Q_h), and so for keys and values.

    Source: Xue and Aletras (2023), "MHE-MUL". Derived in chapter 1.4.
    """

    def of_head(self, shared: Tensor, embedding: Tensor) -> Tensor:
        """shared * (1 + e_h), coordinate by coordinate."""
        return shared * (1 + embedding)
