"""Context broadcasting in a model: the mean of all tokens at the end of every perceptron."""

from jaxtyping import Float
from torch import Tensor, nn

from attnlib.models.blocks import Block
from attnlib.weight.context_broadcasting import context_broadcasting


class ContextBroadcasting(nn.Module):
    """`context_broadcasting` as a layer, to stand at the end of a perceptron."""

    def forward(self, x: Float[Tensor, "*batch N width"]) -> Float[Tensor, "*batch N width"]:
        return context_broadcasting(x)


def broadcast_context(model: nn.Module) -> nn.Module:
    """Put a `ContextBroadcasting` at the end of the perceptron of every `Block`, in place.

    So the branch is averaged before it is added to the stream, as in the paper's code. For models
    that see all tokens: a causal model would see the future. Raises ValueError where there is no
    block, or a causal one.
    """
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    if not blocks:
        raise ValueError(f"model must have blocks of attnlib.models, got {type(model).__name__}")
    if any(block.attention.is_causal for block in blocks):
        raise ValueError("model must not be causal: the mean of all tokens holds the future")
    for block in blocks:
        block.perceptron.append(ContextBroadcasting())
    return model
