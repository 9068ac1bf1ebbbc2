"""A reader of spans: context and question attend to each other, then two pointers say where."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attnlib.read.bidirectional import bidirectional_attention, flow

DIRECTIONS = ("both", "to_context", "to_question", "neither")


class SpanReader(nn.Module):
    r"""Embedding, bidirectional GRU, attention in two directions, GRU, two pointers.

    `directions` says which reads are used, by the ablations of the paper: without the read to the
    context, u~_t is the mean of the question's states; without the read to the question, the term
    h_t * h~ is left out of G.
    Source: Seo et al. (2017), section 2 and table 1b; GRUs and one embedding in place of the
    paper's LSTMs and three.
    """

    def __init__(self, words: int, *, width: int = 32, directions: str = "both"):
        super().__init__()
        if directions not in DIRECTIONS:
            raise ValueError(f"directions must be one of {DIRECTIONS}, got {directions!r}")
        self.directions = directions
        self.embed = nn.Embedding(words, width)
        self.encode = nn.GRU(width, width // 2, batch_first=True, bidirectional=True)
        self.vector = nn.Parameter(torch.randn(3 * width) * width**-0.5)
        parts = 4 if directions in ("both", "to_question") else 3
        self.model = nn.GRU(parts * width, width // 2, batch_first=True, bidirectional=True)
        self.point = nn.Linear((parts + 1) * width, 2)

    def flow(self, context: Tensor, question: Tensor) -> Float[Tensor, "B T parts_D"]:
        """One vector for each context token, with the reads that this model uses."""
        to_context, to_question = bidirectional_attention(context, question, self.vector)
        if self.directions in ("to_question", "neither"):
            to_context = question.mean(-2, keepdim=True).expand_as(context)
        if self.directions in ("to_context", "neither"):
            return torch.cat((context, to_context, context * to_context), dim=-1)
        return flow(context, to_context, to_question)

    def forward(
        self, context: Int[Tensor, "B T"], question: Int[Tensor, "B J"]
    ) -> Float[Tensor, "B 2 T"]:
        """Scores of each context token as the start and as the end of the answer."""
        h, _ = self.encode(self.embed(context))
        u, _ = self.encode(self.embed(question))
        g = self.flow(h, u)
        m, _ = self.model(g)
        return self.point(torch.cat((g, m), dim=-1)).mT
