"""Attention pooling: a sequence read by one learned query, and what else its score may see."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attnlib.attend import attend

CONDITIONS = ("none", "concat", "gate", "affine")


class ConditionedFeatures(nn.Module):
    r"""The features f_i that the score of token i sees, given side features c_i.

    none: f = h; concat: f = tanh(W [h; c] + b); gate: f = sigmoid(W c + b) * h;
    affine: f = gamma(c) * h + beta(c) with linear gamma and beta.
    Source: Margatina et al. (2019), section 3.
    """

    def __init__(self, condition: str, width: int, side: int):
        super().__init__()
        if condition not in CONDITIONS:
            raise ValueError(f"condition must be one of {CONDITIONS}, got {condition!r}")
        self.condition = condition
        if condition == "concat":
            self.mix = nn.Linear(width + side, width)
        elif condition == "gate":
            self.mix = nn.Linear(side, width)
        elif condition == "affine":
            self.gamma, self.beta = nn.Linear(side, width), nn.Linear(side, width)

    def forward(self, h: Float[Tensor, "B N D"], c: Float[Tensor, "B N C"]) -> Tensor:
        if self.condition == "concat":
            return torch.tanh(self.mix(torch.cat((h, c), dim=-1)))
        if self.condition == "gate":
            return torch.sigmoid(self.mix(c)) * h
        if self.condition == "affine":
            return self.gamma(c) * h + self.beta(c)
        return h


class PooledClassifier(nn.Module):
    """Embedding, bidirectional GRU, attention pooling by a learned query, linear classifier.

    The score sees the conditioned features; the read is over the encoder's states h in all cases.
    """

    def __init__(self, words: int, classes: int, side: int, *, width: int = 32, condition="none"):
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.encode = nn.GRU(width, width // 2, batch_first=True, bidirectional=True)
        self.features = ConditionedFeatures(condition, width, side)
        self.query = nn.Parameter(torch.randn(1, width) * width**-0.5)
        self.classify = nn.Linear(width, classes)

    def pool(self, tokens: Int[Tensor, "B N"], side: Float[Tensor, "B N C"]):
        """The pooled read (B, 1, D) and its weights (B, 1, N)."""
        h, _ = self.encode(self.embed(tokens))
        query = self.query.expand(len(tokens), 1, -1)
        return attend(query, self.features(h, side), h, scale=1.0, return_weights=True)

    def forward(self, tokens: Int[Tensor, "B N"], side: Float[Tensor, "B N C"]) -> Tensor:
        read, _ = self.pool(tokens, side)
        return self.classify(read[:, 0])
