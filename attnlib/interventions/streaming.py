"""A trained model read as a stream: each layer keeps the first keys and the last ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn

from attnlib.memory.streaming_attention import streaming_attention
from attnlib.memory.streaming_cache import check_cache_sizes
from attnlib.models.positions import AddedPosition
from attnlib.probes.layers import attention_of, layers_of
from attnlib.weight.softmax_attention import softmax_attention


@contextmanager
def streamed(model: nn.Module, *, sinks: int, window: int) -> Iterator[nn.Module]:
    """Let every layer of a causal model see its first `sinks` keys and its last `window` alone.

    With rotary positions they are counted in the cache, as `StreamingCache` counts them; a model
    without positions keeps none. A pass over a whole text then gives what the model would say token
    by token with a cache of sinks + window places. Afterwards the model is as it was, after an
    error too.
    Raises ValueError, before anything changes, for a model that is not causal, that does not use
    softmax attention, or whose positions are neither "rope" nor "none".
    """
    check_cache_sizes(sinks, window)
    attentions = [attention_of(model, layer) for layer in range(len(layers_of(model)))]
    added = getattr(model, "position", None)
    if isinstance(added, AddedPosition) and added.table is not None:
        raise ValueError(
            "position must be 'rope' or 'none' for positions in a cache, "
            "got one that is added to the tokens"
        )
    for layer, attention in enumerate(attentions):
        if not attention.is_causal or attention.operator is not softmax_attention:
            raise ValueError(f"model must have causal softmax attention, layer {layer} has not")
        if attention.position not in ("rope", "none"):
            raise ValueError(
                "position must be 'rope' or 'none' for positions in a cache, "
                f"got {attention.position!r}"
            )
    before = [(attention.operator, attention.position) for attention in attentions]
    try:
        for attention in attentions:
            attention.operator = partial(
                streaming_attention,
                sinks=sinks,
                window=window,
                rotary=attention.position == "rope",
            )
            attention.position = "none"
        yield model
    finally:
        for attention, (operator, position) in zip(attentions, before, strict=True):
            attention.operator, attention.position = operator, position
