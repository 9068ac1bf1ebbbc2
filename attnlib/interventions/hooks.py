"""Changes to a forward pass for the length of a `with` block."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnlib.checks import check_count, check_tensor
from attnlib.models.operators import name_of, takes
from attnlib.probes.layers import attention_of, check_place, layer_of, layers_of, width_of


@contextmanager
def injected(
    model: nn.Module, layer: int, place: int, vector: Float[Tensor, " width"]
) -> Iterator[nn.Module]:
    r"""Add a vector to one token of the residual stream before a layer: x_place + vector.

    Inside the `with` block every pass through `model` has it; afterwards the model is as it was,
    after an error too. `layer` counts from 0, `place` is a position of the sequence.
    Raises ValueError for a layer that the model does not have, a vector of another width, and, at
    the pass, a place behind the end of the sequence.
    """
    block = layer_of(model, layer)
    check_count("place", place)
    _check_vector("vector", vector, width_of(model, layer))

    def add(module: nn.Module, inputs: tuple) -> tuple:
        x, *rest = inputs
        check_place(place, x.shape[1])
        there = torch.arange(x.shape[1], device=x.device) == place
        return (x + there[:, None] * vector.to(x), *rest)

    hook = block.register_forward_pre_hook(add)
    try:
        yield model
    finally:
        hook.remove()


@contextmanager
def without_heads(model: nn.Module, heads: dict[int, int | list[int]]) -> Iterator[nn.Module]:
    """Let some heads say nothing: what they read becomes zero before the output projection.

    `heads` names them by layer, such as {0: [1, 3], 2: 0}. Inside the `with` block every pass has
    the change; afterwards the model is as it was, after an error too.
    Raises ValueError for a layer or a head that the model does not have, before anything changes.
    """
    if not isinstance(heads, dict):
        raise TypeError(f"heads must be a dict from layers to heads, got {type(heads).__name__}")
    keeps = {layer: _kept_heads(model, layer, names) for layer, names in heads.items()}

    def silence(keep: Tensor):
        def forget(module: nn.Module, inputs: tuple) -> tuple:
            (merged,) = inputs
            return (merged * keep.to(merged),)

        return forget

    hooks = []
    try:
        for layer, keep in keeps.items():
            output = attention_of(model, layer).to_output
            hooks.append(output.register_forward_pre_hook(silence(keep)))
        yield model
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def replaced_value(
    model: nn.Module,
    layer: int,
    place: int,
    value: float | Float[Tensor, " values"] = 0.0,
) -> Iterator[nn.Module]:
    """Give one key of a layer another value vector, in all heads; keys and scores stay.

    `value` is a number for all entries (zero drains the value) or a vector for all value heads side
    by side. `hidden_key` is another change: it takes the weight away too, for the other keys.
    Inside the `with` block every pass has the change; afterwards the model is as it was, after an
    error too.
    Raises ValueError for a layer that the model does not have, a vector of another width, and, at
    the pass, a place behind the end of the sequence.
    """
    to_value = attention_of(model, layer).to_value
    check_count("place", place)
    if isinstance(value, Tensor):
        _check_vector("value", value, to_value.out_features)
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"value must be a number or a torch.Tensor, got {type(value).__name__}")

    def replace(module: nn.Module, inputs: tuple, values: Tensor) -> Tensor:
        check_place(place, values.shape[1])
        there = torch.arange(values.shape[1], device=values.device)[:, None] == place
        return torch.where(there, torch.as_tensor(value).to(values), values)

    hook = to_value.register_forward_hook(replace)
    try:
        yield model
    finally:
        hook.remove()


@contextmanager
def without_perceptron(
    model: nn.Module, layer: int, place: int | None = None
) -> Iterator[nn.Module]:
    """Let the perceptron of a layer add nothing, to one token or (place=None) to all.

    Inside the `with` block every pass has the change; afterwards the model is as it was, after an
    error too.
    Raises ValueError for a layer that the model does not have and, at the pass, for a place behind
    the end of the sequence.
    """
    perceptron = layer_of(model, layer).perceptron
    if place is not None:
        check_count("place", place)

    def forget(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        if place is None:
            return torch.zeros_like(output)
        check_place(place, output.shape[1])
        there = torch.arange(output.shape[1], device=output.device)[:, None] == place
        return output.masked_fill(there, 0.0)

    hook = perceptron.register_forward_hook(forget)
    try:
        yield model
    finally:
        hook.remove()


def _check_vector(name: str, vector: Tensor, width: int) -> None:
    check_tensor(name, vector)
    if tuple(vector.shape) != (width,):
        raise ValueError(f"{name} must have shape ({width},), got {tuple(vector.shape)}")
    if not vector.isfinite().all():
        raise ValueError(f"{name} must be finite, got {vector[~vector.isfinite()][0]}")


def _kept_heads(model: nn.Module, layer: int, names: int | list[int]) -> Tensor:
    """1 for each number of the merged heads that stays, 0 for those of the heads named."""
    attention = attention_of(model, layer)
    names = [names] if isinstance(names, int) else list(names)
    for head in names:
        check_count("heads", head)
        if head >= attention.heads:
            raise ValueError(
                f"heads of layer {layer} must be below its {attention.heads} heads, got {head}"
            )
    keep = torch.ones(attention.heads)
    keep[names] = 0.0
    return keep.repeat_interleave(attention.to_output.in_features // attention.heads)


@contextmanager
def hidden_key(model: nn.Module, place: int) -> Iterator[nn.Module]:
    """Let no other token see the key at `place`, in any layer and head.

    The token itself still sees its own key, so that a causal row is never empty. Inside the `with`
    block every pass has the change; afterwards the model is as it was, after an error too.
    Raises TypeError where an operator takes no attn_mask, and ValueError, at the pass, for a place
    behind the end of the sequence.
    """
    check_count("place", place)
    attentions = [attention_of(model, layer) for layer in range(len(layers_of(model)))]
    for attention in attentions:
        if not takes(attention.operator, "attn_mask"):
            raise TypeError(f"operator {name_of(attention.operator)} of the model has no attn_mask")

    def hide(module: nn.Module, inputs: tuple, options: dict) -> tuple[tuple, dict]:
        length = inputs[0].shape[1]
        check_place(place, length)
        seen = torch.ones(length, length, dtype=torch.bool, device=inputs[0].device)
        seen[:, place] = False
        seen[place, place] = True
        mask = options.get("attn_mask")
        return inputs, {**options, "attn_mask": seen if mask is None else seen & mask}

    hooks = []
    try:
        for attention in attentions:
            hooks.append(attention.register_forward_pre_hook(hide, with_kwargs=True))
        yield model
    finally:
        for hook in hooks:
            hook.remove()
