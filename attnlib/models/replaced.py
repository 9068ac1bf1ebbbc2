"""The same language model with another attention layer in every block."""

from collections.abc import Callable

import torch
from torch import nn

from attnlib.models.language import DecoderLM


def with_attention(
    model: DecoderLM, make_layer: Callable[[], nn.Module], *, seed: int = 0
) -> DecoderLM:
    """Put `make_layer()` into every block of a language model; the model is changed and returned.

    All other parameters stay. The same `seed` gives the same new parameters, and the global random
    state is left as it was. The new layers bring their own positions: of the model's `position`
    only what is added to the tokens ("sinusoidal", "learned") stays in force.
    Raises TypeError for a model of another kind or a `make_layer` that makes no module; ValueError
    for one that makes a layer twice, or a layer that is not causal.
    """
    if not isinstance(model, DecoderLM):
        raise TypeError(f"model must be a DecoderLM, got {type(model).__name__}")
    if not callable(make_layer):
        raise TypeError(f"make_layer must be callable, got {type(make_layer).__name__}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [make_layer() for _ in model.blocks]
    _check_layers(layers)
    for block, layer in zip(model.blocks, layers, strict=True):
        block.attention = layer
    return model


def _check_layers(layers: list[nn.Module]) -> None:
    for layer in layers:
        if not isinstance(layer, nn.Module):
            raise TypeError(f"make_layer must make a torch.nn.Module, got {type(layer).__name__}")
        if not getattr(layer, "is_causal", True):
            raise ValueError(
                "make_layer must make layers with is_causal=True for a language model, "
                f"got a {type(layer).__name__} that sees the future"
            )
    if len({id(layer) for layer in layers}) < len(layers):
        raise ValueError("make_layer must make a new layer at each call, got the same one twice")
