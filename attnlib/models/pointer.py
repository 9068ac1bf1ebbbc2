"""Encoder and decoder that answer with places of the input, or with a fixed list of places."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attnlib.score.compare import additive


class SequenceToPlaces(nn.Module):
    """The part both models share: two GRUs, the second fed with the item chosen last.

    Items are (B, n, dim). Place i < n is item i; place n, one after the last item, means stop.
    """

    def __init__(self, dim: int, width: int):
        super().__init__()
        self.encode = nn.GRU(dim, width, batch_first=True)
        self.decode = nn.GRU(dim, width, batch_first=True)
        self.start = nn.Parameter(torch.zeros(1, 1, dim))

    def scores(self, states: Tensor, answers: Tensor) -> Tensor:
        """Score of each place for each decoder state."""
        raise NotImplementedError

    def forward(
        self, items: Float[Tensor, "B n dim"], targets: Int[Tensor, "B steps"]
    ) -> Float[Tensor, "B steps places"]:
        """Scores of the places at every step, the decoder being shown the right items so far."""
        states, last = self.encode(items)
        shown = items_at(items, targets[:, :-1].clamp(min=0))
        inputs = torch.cat((self.start.expand(len(items), -1, -1), shown), dim=1)
        return self.scores(states, self.decode(inputs, last)[0])

    @torch.no_grad()
    def answer(self, items: Float[Tensor, "B n dim"], steps: int) -> Int[Tensor, "B steps"]:
        """The places chosen greedily, each step shown the model's own last choice."""
        states, memory = self.encode(items)
        shown, chosen = self.start.expand(len(items), -1, -1), []
        for _ in range(steps):
            output, memory = self.decode(shown, memory)
            place = self.scores(states, output).argmax(-1)
            shown = items_at(items, place)
            chosen.append(place)
        return torch.cat(chosen, dim=1)


class PointerNetwork(SequenceToPlaces):
    r"""The softmax weights over the inputs are the answer: u_ij = v . tanh(W_1 e_j + W_2 d_i).

    A learned key stands for "stop". Any number of items goes through the same parameters.
    Source: Vinyals et al. (2015), section 2.3; GRUs in place of the paper's LSTMs.
    """

    def __init__(self, dim: int, width: int = 64):
        super().__init__(dim, width)
        self.stop = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        self.key_matrix = nn.Parameter(torch.randn(width, width) * width**-0.5)
        self.query_matrix = nn.Parameter(torch.randn(width, width) * width**-0.5)
        self.vector = nn.Parameter(torch.randn(width) * width**-0.5)

    def scores(self, states: Tensor, answers: Tensor) -> Tensor:
        keys = torch.cat((states, self.stop.expand(len(states), -1, -1)), dim=1)
        return additive(self.query_matrix, self.key_matrix, self.vector)(answers, keys)


class FixedOutput(SequenceToPlaces):
    """The same encoder and decoder with one output unit for each of `places` places.

    What a sequence-to-sequence model without pointing can do: it has no name for a later place.
    """

    def __init__(self, dim: int, places: int, width: int = 64):
        super().__init__(dim, width)
        self.name_place = nn.Linear(width, places)

    def scores(self, states: Tensor, answers: Tensor) -> Tensor:
        return self.name_place(answers)


def items_at(
    items: Float[Tensor, "B n dim"], places: Int[Tensor, "B steps"]
) -> Float[Tensor, "B steps dim"]:
    """The items at `places`; zeros for a place that holds no item."""
    padded = torch.cat((items, torch.zeros_like(items[:, :1])), dim=1)
    places = places.clamp(max=items.shape[1])
    return padded.gather(1, places[..., None].expand(-1, -1, items.shape[-1]))
