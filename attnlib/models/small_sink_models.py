"""The smallest models that grow a sink: a decoder whose layers are attention alone."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnlib.models.language import DecoderLM


class Silent(nn.Module):
    """A perceptron that adds nothing: x -> 0."""

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Zeros of the shape of x."""
        return torch.zeros_like(x)


class AttentionOnlyLM(DecoderLM):
    r"""`DecoderLM` without perceptrons: x + attention(norm(x)) in each layer, norm, logits.

    What a token alone says of the next one stands in its embedding and in the logits; everything
    else must pass through a head, so an idle head has nothing between it and the answer.
    Arguments, shapes and errors as in `DecoderLM`.
    """

    def __init__(self, vocabulary: int, **options):
        super().__init__(vocabulary, **options)
        for block in self.blocks:
            block.perceptron = Silent()
            block.perceptron_norm = nn.Identity()
