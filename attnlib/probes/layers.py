"""Finding the parts of a model by number, with a clear answer where there is no such part."""

from torch import nn

from attnlib.checks import check_count


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The blocks of a model, such as `DecoderLM` or `VisionTransformer`, in their order.

    Raises TypeError where the model has no list `blocks` of layers with attention and perceptron.
    """
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.ModuleList) or not all(
        hasattr(block, "attention") and hasattr(block, "perceptron") for block in blocks
    ):
        raise TypeError(
            "model must have a ModuleList `blocks` of layers with attention and perceptron, as "
            f"DecoderLM has, got {type(model).__name__}"
        )
    return blocks


def layer_of(model: nn.Module, layer: int) -> nn.Module:
    """Layer number `layer`, counted from 0. Raises ValueError where the model has no such layer."""
    blocks = layers_of(model)
    check_count("layer", layer)
    if layer >= len(blocks):
        raise ValueError(f"layer must be below the {len(blocks)} layers of the model, got {layer}")
    return blocks[layer]


def attention_of(model: nn.Module, layer: int) -> nn.Module:
    """The multi-head attention of a layer, which has `heads` and its four projections."""
    attention = layer_of(model, layer).attention
    for part in ("heads", "key_heads", "to_query", "to_key", "to_value", "to_output"):
        if not hasattr(attention, part):
            raise TypeError(
                f"layer {layer} of the model must hold a MultiHeadAttention, "
                f"got {type(attention).__name__}, which has no {part}"
            )
    return attention


def width_of(model: nn.Module, layer: int) -> int:
    """The width of the tokens that a layer reads."""
    return attention_of(model, layer).to_query.in_features


def check_place(place: int, length: int) -> None:
    """Raise ValueError where a sequence of `length` tokens has no token number `place`."""
    if place >= length:
        raise ValueError(f"place must be below the {length} tokens of the sequence, got {place}")
