"""From a name or a callable to the operator of one attention layer."""

import copy
import inspect
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnlib import atlas
from attnlib.score.additive_attention import additive_attention


class AdditiveAttention(nn.Module):
    """Additive attention with its own parameters: an operator that carries what it learns.

    All heads share W, U (hidden, head_width) and v (hidden), which start as in nn.Linear.
    Source: Bahdanau et al. (2015), appendix A.1.2.
    """

    def __init__(self, head_width: int, hidden: int | None = None):
        super().__init__()
        hidden = head_width if hidden is None else hidden
        self.query_matrix = nn.Parameter(torch.empty(hidden, head_width))
        self.key_matrix = nn.Parameter(torch.empty(hidden, head_width))
        self.vector = nn.Parameter(torch.empty(hidden))
        for matrix in (self.query_matrix, self.key_matrix):
            nn.init.normal_(matrix, std=head_width**-0.5)
        nn.init.normal_(self.vector, std=hidden**-0.5)

    def forward(
        self,
        query: Float[Tensor, "*batch heads N D"],
        key: Float[Tensor, "*batch heads M D"],
        value: Float[Tensor, "*batch heads M E"],
        *,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        query_offset: int = 0,
    ) -> Float[Tensor, "*batch heads N E"]:
        """The read of `attnlib.additive_attention` with this layer's parameters."""
        return additive_attention(
            query,
            key,
            value,
            query_matrix=self.query_matrix,
            key_matrix=self.key_matrix,
            vector=self.vector,
            attn_mask=attn_mask,
            is_causal=is_causal,
            query_offset=query_offset,
        )


WITH_PARAMETERS: dict[str, type[nn.Module]] = {"additive": AdditiveAttention}
"""Mechanisms of the atlas that need parameters, as modules that hold them."""


def layer_operator(
    operator: str | Callable[..., Tensor] | type[nn.Module], head_width: int
) -> Callable[..., Tensor]:
    """The operator for one layer: found in the atlas by name, or taken as given.

    Every layer has its own parameters: a class of modules is called with the width of a head, and
    a module that exists already is copied.
    Raises ValueError for an unknown name (with the nearest known one) and for an operator that
    cannot be called with query, key and value alone.
    """
    if isinstance(operator, str):
        operator = WITH_PARAMETERS.get(operator) or atlas.get(operator)
    entry = operator if isinstance(operator, atlas.Mechanism) else atlas.entry_of(operator)
    if entry is not None:
        if entry.promises is None:
            raise ValueError(
                f"operator must have the form (query, key, value, ...) -> read, "
                f"got {entry.key!r}, which has another"
            )
        operator = entry.function
    if isinstance(operator, type) and issubclass(operator, nn.Module):
        operator = operator(head_width)
    if not callable(operator):
        raise TypeError(
            "operator must be a name in the atlas or a callable (query, key, value, ...), "
            f"got {type(operator).__name__}"
        )
    _check_needs_no_more(operator)
    return copy.deepcopy(operator) if isinstance(operator, nn.Module) else operator


def parameters_of(operator: Callable[..., Tensor]) -> dict[str, inspect.Parameter]:
    """The arguments of an operator by name."""
    call = operator.forward if isinstance(operator, nn.Module) else operator
    return dict(inspect.signature(call).parameters)


def takes(operator: Callable[..., Tensor], argument: str) -> bool:
    """Whether an operator can be called with `argument`."""
    parameters = parameters_of(operator)
    kinds = {parameter.kind for parameter in parameters.values()}
    return argument in parameters or inspect.Parameter.VAR_KEYWORD in kinds


def name_of(operator: Callable[..., Tensor]) -> str:
    """What to call an operator in a message."""
    return getattr(operator, "__name__", None) or type(operator).__name__


def _check_needs_no_more(operator: Callable[..., Tensor]) -> None:
    needed = [
        name
        for name, parameter in parameters_of(operator).items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        and parameter.default is inspect.Parameter.empty
    ]
    if needed:
        raise ValueError(
            f"operator {name_of(operator)} needs {', '.join(needed)}: give them with "
            "functools.partial, or pass a torch.nn.Module that holds them, as AdditiveAttention"
        )
