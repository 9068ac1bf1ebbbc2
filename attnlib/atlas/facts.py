"""The facts that the atlas holds: what a mechanism promises, how it is filed, what it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

STEPS = ("score", "support", "weight", "read", "memory")
"""The steps of attention; a mechanism changes one of them."""

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

AXES = {
    "sequences": ("distinctive", "co", "self"),
    "levels": ("single", "multi"),
    "positions": ("soft", "hard", "local"),
    "representations": ("single", "multi-representation", "multi-head"),
}


@dataclass(frozen=True)
class Promises:
    """What a mechanism promises; `attnlib.conformance.check` holds it to every line.

    A promise about an argument (`causal`, `grouped_query`, `padding`) is checked where the function
    takes that argument; a registered mechanism may only make it where it does.
    """

    causal: bool = True
    """With is_causal, query i sees keys j <= i + query_offset alone, for any N and M."""
    cross: bool = True
    """Queries and keys may differ in number, N != M."""
    exact: bool = True
    """Equal to its oracle up to rounding."""
    error: float | None = None
    """Where not exact: the largest relative error (root mean square) against the oracle."""
    query_equivariant: bool = True
    """Permuting the queries permutes the reads."""
    key_invariant: bool = True
    """Permuting the keys together with their values changes nothing."""
    linear_in_values: bool = True
    """The read is a weighted sum of the values, with weights that do not depend on them."""
    normalized: bool = True
    """The weights of a row sum to one."""
    positive: bool = True
    """No weight is negative."""
    grouped_query: bool = True
    """With enable_gqa, query head h reads key head h // (heads / key_heads)."""
    padding: bool = True
    """Keys that attn_mask forbids change nothing, as long as their values are finite; a row without
    keys reads zero."""
    constant_state: bool = False
    """Its form for one token at a time keeps a state whose size does not grow."""
    score_range: float = 1e4
    """Reads and gradients stay finite for scaled dot products up to this size, in every dtype."""
    dtypes: tuple[torch.dtype, ...] = FLOATS
    """The dtypes that it takes, and gives back."""
    any_leading: bool = True
    """Takes (N, D), (heads, N, D) and any number of batch dimensions."""
    shared_width: bool = True
    """Query and key must have the same width."""
    clear_errors: bool = True
    """Wrong input raises ValueError or TypeError with the name of the argument."""
    shortest: int = 0
    """The fewest queries and keys that it takes."""
    arguments: Callable[[Tensor, Tensor, Tensor], dict[str, Any]] | None = None
    """(query, key, value) -> further arguments for a trial call, always the same for one shape."""

    def __post_init__(self):
        if self.exact == (self.error is not None):
            raise ValueError(
                "error must be given exactly where exact=False, "
                f"got exact={self.exact}, error={self.error}"
            )
        if not self.score_range > 0:
            raise ValueError(f"score_range must be positive, got {self.score_range}")
        for dtype in self.dtypes:
            if dtype not in FLOATS:
                raise ValueError(f"dtypes must be floating-point dtypes, got {dtype}")

    def facts(self) -> dict[str, Any]:
        """The promises as plain data."""
        facts = asdict(self)
        facts["dtypes"] = [str(dtype).removeprefix("torch.") for dtype in self.dtypes]
        facts["arguments"] = self.arguments is not None
        return facts


@dataclass(frozen=True)
class Taxonomy:
    """Where a mechanism stands on the four axes of the attentive survey (Chaudhari et al., 2021).

    sequences: "distinctive" (query and keys from two sequences), "co", "self", as its source paper
    uses it; levels: "single" or "multi"; positions: "soft" (every key of the support has weight),
    "hard" (one key has all of it), "local" (a window); representations: "single",
    "multi-representation", "multi-head". The tag `positions` is tested on the weights.
    """

    sequences: str
    levels: str
    positions: str
    representations: str

    def __post_init__(self):
        for axis, values in AXES.items():
            if getattr(self, axis) not in values:
                raise ValueError(f"{axis} must be one of {values}, got {getattr(self, axis)!r}")


@dataclass(frozen=True)
class Mechanism:
    """A mechanism and the facts about it. Calling it runs it.

    `promises` is None where its form is not `(query, key, value, ...) -> read`.
    """

    key: str
    function: Callable[..., Tensor]
    step: str
    idea: str
    equation: str
    cost: str
    promises: Promises | None
    taxonomy: Taxonomy
    paper: str | None = None
    chapter: str | None = None
    section: str | None = None
    oracle: Callable[..., Tensor] | None = None
    recurrent: Callable[..., tuple[Tensor, Any]] | None = None

    def __call__(self, *args: Any, **options: Any) -> Tensor:
        return self.function(*args, **options)

    @property
    def name(self) -> str:
        """The name of the function."""
        return self.function.__name__

    @property
    def module(self) -> str:
        """The module that defines the function."""
        return self.function.__module__

    def facts(self) -> dict[str, Any]:
        """All facts as plain data, ready for JSON."""
        return {
            "key": self.key,
            "name": self.name,
            "module": self.module,
            "step": self.step,
            "idea": self.idea,
            "equation": self.equation,
            "cost": self.cost,
            "paper": self.paper,
            "chapter": self.chapter,
            "section": self.section,
            "oracle": None if self.oracle is None else self.oracle.__name__,
            "recurrent": None if self.recurrent is None else self.recurrent.__name__,
            "promises": None if self.promises is None else self.promises.facts(),
            "taxonomy": asdict(self.taxonomy),
        }
