"""One pass through a model with everything written down that the layers see and say."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnlib.models.multi_head import read_weights, rotate_all
from attnlib.probes.layers import attention_of, layers_of
from attnlib.read.heads import repeat_key_heads, split_heads


class LayerRecord(NamedTuple):
    """What one layer read and wrote."""

    before: Float[Tensor, "batch N width"]
    """The residual stream that enters."""
    query: Float[Tensor, "batch heads N D"]
    """As the score compares them: rotated, where the position is rotary."""
    key: Float[Tensor, "batch heads N D"]
    value: Float[Tensor, "batch heads N E"]
    weights: Float[Tensor, "batch heads N N"]
    attention: Float[Tensor, "batch N width"]
    """What the attention adds to the stream."""
    perceptron: Float[Tensor, "batch N width"]
    """What the perceptron adds to the stream."""
    after: Float[Tensor, "batch N width"]
    """The residual stream that leaves."""


class Recording(NamedTuple):
    """The answer of a model, and the record of each layer."""

    logits: Tensor
    layers: tuple[LayerRecord, ...]

    @property
    def weights(self) -> Float[Tensor, "layers batch heads N N"]:
        """The weights of all layers."""
        return torch.stack([layer.weights for layer in self.layers])


@torch.no_grad()
def record(model: nn.Module, tokens: Tensor) -> Recording:
    """Run the model once and write down what each layer reads, weighs and adds.

    `model` is a `DecoderLM`, a `VisionTransformer` or another model with a list `blocks` of layers
    with multi-head attention; `tokens` is its input. Nothing of the model changes, and what is
    measured is what an intervention around the call has made of it. The weights are those that
    the operator gives to the keys that the model has.
    Raises TypeError for a model without such layers.
    """
    blocks = layers_of(model)
    for layer in range(len(blocks)):
        attention_of(model, layer)
    kept: list[dict[str, Tensor]] = [{} for _ in blocks]
    hooks = []
    try:
        for block, notes in zip(blocks, kept, strict=True):
            hooks += _listen(block, notes)
        logits = model(tokens)
    finally:
        for hook in hooks:
            hook.remove()
    pairs = zip(blocks, kept, strict=True)
    return Recording(logits, tuple(_layer(block.attention, notes) for block, notes in pairs))


def _listen(block: nn.Module, notes: dict[str, Tensor]) -> list:
    """Hooks that write what passes through a block into `notes`."""
    attention = block.attention

    def output_of(name: str):
        def listen(module: nn.Module, inputs: tuple, output: Tensor | tuple) -> None:
            notes[name] = output[0] if isinstance(output, tuple) else output

        return listen

    def before(module: nn.Module, inputs: tuple) -> None:
        notes["before"] = inputs[0]

    def mask(module: nn.Module, inputs: tuple, options: dict) -> None:
        notes["attn_mask"] = options.get("attn_mask")

    parts = {
        "query": attention.to_query,
        "key": attention.to_key,
        "value": attention.to_value,
        "attention": attention,
        "perceptron": block.perceptron,
        "after": block,
    }
    return [
        # Hooks run in the order of their registration: interventions came first, so what is
        # written down is what the layer really reads.
        block.register_forward_pre_hook(before),
        attention.register_forward_pre_hook(mask, with_kwargs=True),
        *(part.register_forward_hook(output_of(name)) for name, part in parts.items()),
    ]


def _layer(attention: nn.Module, notes: dict[str, Tensor]) -> LayerRecord:
    query = split_heads(notes["query"], attention.heads)
    key = split_heads(notes["key"], attention.key_heads)
    value = split_heads(notes["value"], attention.key_heads)
    key, value = repeat_key_heads(query, key, value)
    if attention.position == "rope":
        query, key = rotate_all(query), rotate_all(key)
    options = attention.options(notes["attn_mask"])
    weights = read_weights(attention.operator, query, key, **options)
    names = ("attention", "perceptron", "after")
    return LayerRecord(
        notes["before"], query, key, value, weights, *(notes[name] for name in names)
    )
