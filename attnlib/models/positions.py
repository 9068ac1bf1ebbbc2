"""Position schemes by name: what is added to the tokens, and what enters the score."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnlib.choices import check_choice
from attnlib.score.positions import sinusoidal

ADDED = ("sinusoidal", "learned")
"""Schemes that add a vector to each token, once, before the first layer."""

SCORED = ("relative", "alibi", "rope")
"""Schemes that act inside every attention layer."""

POSITIONS = ("none", *ADDED, *SCORED)
"""All position schemes that the models know."""


class AddedPosition(nn.Module):
    """Adds an encoding of the position to each token: x_p + P_p.

    `sinusoidal` adds a fixed table scaled to the size of the tokens, `learned` a table of
    parameters; every other scheme adds nothing here.
    """

    def __init__(self, position: str, max_length: int, width: int):
        super().__init__()
        check_choice("position", position, POSITIONS)
        self.max_length = max_length
        if position == "learned":
            self.table = nn.Parameter(torch.randn(max_length, width) * TOKEN_SCALE)
            return
        table = None
        if position == "sinusoidal":
            # A sine has mean square 1/2, so this factor gives each entry the tokens' scale.
            table = sinusoidal(max_length, width).float() * (2**0.5 * TOKEN_SCALE)
        self.register_buffer("table", table, persistent=False)

    def forward(self, x: Float[Tensor, "batch N width"]) -> Float[Tensor, "batch N width"]:
        """The tokens with their positions."""
        if self.table is None:
            return x
        if x.shape[1] > self.max_length:
            raise ValueError(
                f"tokens must be at most max_length = {self.max_length} long, got {x.shape[1]}"
            )
        return x + self.table[: x.shape[1]]


TOKEN_SCALE = 0.5
"""Standard deviation of the entries of a new token vector."""


def position_in_score(position: str) -> str:
    """The part of a scheme that attention layers must know."""
    return position if position in SCORED else "none"
