"""One function on trial: what it takes, tensors to try it with, and how to call it."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attnlib.atlas import Promises
from attnlib.conformance.report import Broken, NotChecked

EXACT = 1e-9
"""Two float64 results that should be the same may differ by this, relative to their size."""


class Inputs(NamedTuple):
    """The three tensors that every mechanism takes."""

    query: Tensor
    key: Tensor
    value: Tensor


class Trial:
    """A function, its promises and what it is compared with."""

    def __init__(
        self,
        function: Callable[..., Tensor],
        promises: Promises,
        oracle: Callable[..., Tensor] | None = None,
        arguments: Callable[[Tensor, Tensor, Tensor], dict[str, Any]] | None = None,
        recurrent: Callable[..., tuple[Tensor, Any]] | None = None,
        positions: str | None = None,
    ):
        self.function = function
        self.promises = promises
        self.oracle = oracle
        self.arguments = arguments or promises.arguments or (lambda query, key, value: {})
        self.recurrent = recurrent
        self.positions = positions

    def takes(self, argument: str) -> bool:
        """Whether the signature of the function has this argument."""
        return takes(self.function, argument)

    def needs(self, argument: str) -> None:
        """End the check quietly where the function has no such argument."""
        if not self.takes(argument):
            raise NotChecked(f"takes no {argument}")

    def __call__(self, inputs: Inputs, **options: Any) -> Tensor:
        """Run the function on these inputs, with the further arguments that it needs.

        A function that works in chunks is given chunks shorter than the sequence.
        """
        if self.takes("chunk"):
            options = {"chunk": max(2, inputs.key.shape[-2] // 4)} | options
        return self.function(*inputs, **{**self.arguments(*inputs), **options})

    def expected(self, inputs: Inputs, **options: Any) -> Tensor:
        """Run the oracle on these inputs."""
        further = {
            name: given
            for name, given in self.arguments(*inputs).items()
            if takes(self.oracle, name)
        }
        return self.oracle(*inputs, **further, **options)

    def lengths(self, *lengths: int) -> list[int]:
        """Those of the lengths that the function promises to take."""
        return [length for length in lengths if length >= self.promises.shortest]

    def causal_settings(self) -> list[dict[str, Any]]:
        """The options to try where a check concerns the plain and the causal form alike.

        A function that is causal unless told otherwise has the causal form alone.
        """
        if not (self.promises.causal and self.takes("is_causal")):
            return [{}]
        always = inspect.signature(self.function).parameters["is_causal"].default is True
        return [{"is_causal": True}] if always else [{}, {"is_causal": True}]


def takes(function: Callable[..., Any], argument: str) -> bool:
    """Whether the signature of a function has an argument of this name."""
    return argument in inspect.signature(function).parameters


def draw(
    queries: int,
    keys: int,
    *,
    lead: tuple[int, ...] = (2, 2),
    key_lead: tuple[int, ...] | None = None,
    width: int = 4,
    value_width: int = 3,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Inputs:
    """Query, key and value with normal entries; `lead` are the dimensions before the length."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    key_lead = lead if key_lead is None else key_lead
    return Inputs(
        normal(*lead, queries, width),
        normal(*key_lead, keys, width),
        normal(*key_lead, keys, value_width),
    )


def difference(got: Tensor, wanted: Tensor) -> float:
    """The largest difference relative to the size of what is wanted; infinite for NaN."""
    if got.shape != wanted.shape:
        raise Broken(f"the read has shape {tuple(got.shape)}, expected {tuple(wanted.shape)}")
    if got.numel() == 0:
        return 0.0
    size = max(1.0, wanted.abs().max().item())
    worst = (got.double() - wanted.double()).abs().max().item()
    return worst / size if worst == worst else float("inf")


def slopes(total: Tensor, inputs: Inputs) -> tuple[Tensor, ...]:
    """The gradients of a number; zero for an input that it does not depend on."""
    return torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)


def weights_of(trial: Trial, inputs: Inputs, **options: Any) -> Tensor:
    """The weights (..., N, M), read off by giving key j the j-th unit vector as its value."""
    keys = inputs.key.shape[-2]
    unit = torch.eye(keys, dtype=inputs.value.dtype).expand(*inputs.key.shape[:-2], keys, keys)
    return trial(inputs._replace(value=unit.contiguous()), **options)


def lower(queries: int, keys: int, offset: int = 0) -> Tensor:
    """The causal rule as a table of bools: query i sees keys j <= i + offset."""
    return torch.arange(keys)[None, :] <= torch.arange(queries)[:, None] + offset
