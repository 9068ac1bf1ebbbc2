"""Multi-head attention: project, split into heads, call an operator, merge, project."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attnlib.atlas import entry_of
from attnlib.choices import check_choice
from attnlib.models.operators import layer_operator, name_of, takes
from attnlib.models.positions import SCORED
from attnlib.read.heads import merge_heads, repeat_key_heads, split_heads
from attnlib.score.changes import alibi, relative_bias
from attnlib.score.positions import rotate
from attnlib.weight.softmax_attention import softmax_attention


class MultiHeadAttention(nn.Module):
    r"""A sum over heads, each with its own query, key, value and output projection.

    .. math:: y_i = \sum_h W^O_h \, \mathrm{operator}(W^Q_h x, W^K_h c, W^V_h c)_i

    with the context c = x unless one is given (cross-attention). `operator` is any function or
    module with the signature of `softmax_attention`, a name in the atlas, or a class of modules,
    made here with the width of a head (`AdditiveAttention`, for instance). `position` is "none",
    "rope" (turns queries and keys), or "alibi" or "relative" (change the score, so the operator
    must take `score_mod`). With `key_heads` < heads, groups of heads share keys and values.
    `reach` is the distance from which on all distances share one relative bias.

    Shapes: x (batch, N, width), context (batch, M, width) -> (batch, N, width).
    Cost: 4 N width^2 for the projections, and the operator's.
    Raises ValueError for sizes that do not divide and for unknown names.
    Source: Vaswani et al. (2017), section 3.2.2.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        operator: str | Callable[..., Tensor] | type[nn.Module] = softmax_attention,
        position: str = "none",
        key_heads: int | None = None,
        is_causal: bool = False,
        reach: int = 32,
    ):
        super().__init__()
        key_heads = heads if key_heads is None else key_heads
        check_choice("position", position, ("none", *SCORED))
        _check_sizes(width, heads, key_heads, position)
        self.heads, self.key_heads = heads, key_heads
        self.position, self.is_causal = position, is_causal
        self.operator = layer_operator(operator, width // heads)
        if position in ("alibi", "relative") and not takes(self.operator, "score_mod"):
            raise ValueError(
                f"position {position!r} changes the score, and operator {name_of(self.operator)} "
                "takes no score_mod; choose none, sinusoidal, learned or rope"
            )
        if is_causal and not takes(self.operator, "is_causal"):
            raise ValueError(f"operator {name_of(self.operator)} has no causal form")

        key_width = width // heads * key_heads
        self.to_query = nn.Linear(width, width, bias=False)
        self.to_key = nn.Linear(width, key_width, bias=False)
        self.to_value = nn.Linear(width, key_width, bias=False)
        self.to_output = nn.Linear(width, width, bias=False)
        for layer in (self.to_query, self.to_key, self.to_value, self.to_output):
            nn.init.normal_(layer.weight, std=width**-0.5)
        if position == "relative":
            self.distance_bias = nn.Parameter(torch.zeros(heads, 2 * reach + 1))

    def forward(
        self,
        x: Float[Tensor, "batch N width"],
        context: Float[Tensor, "batch M width"] | None = None,
        *,
        attn_mask: Bool[Tensor, "..."] | None = None,
        return_weights: bool = False,
    ) -> Float[Tensor, "batch N width"] | tuple[Tensor, Tensor]:
        """The read of x from its context; with `return_weights` also (batch, heads, N, M)."""
        context = x if context is None else context
        query = split_heads(self.to_query(x), self.heads)
        key = split_heads(self.to_key(context), self.key_heads)
        value = split_heads(self.to_value(context), self.key_heads)
        key, value = repeat_key_heads(query, key, value)
        if self.position == "rope":
            query, key = rotate_all(query), rotate_all(key)

        options = self.options(attn_mask)
        out = self.to_output(merge_heads(self.operator(query, key, value, **options)))
        if return_weights:
            return out, read_weights(self.operator, query, key, **options)
        return out

    def options(self, attn_mask: Tensor | None) -> dict:
        """The keyword arguments of the operator: only those that are in use."""
        options = {}
        if self.is_causal:
            options["is_causal"] = True
        if attn_mask is not None:
            options["attn_mask"] = attn_mask
        if self.position == "alibi":
            options["score_mod"] = alibi(self.heads)
        if self.position == "relative":
            options["score_mod"] = relative_bias(self.distance_bias)
        return options


def rotate_all(x: Float[Tensor, "*batch N D"]) -> Float[Tensor, "*batch N D"]:
    """Rotary encoding of the positions 0 ... N - 1."""
    return rotate(x, torch.arange(x.shape[-2], device=x.device))


def read_weights(
    operator: Callable[..., Tensor], query: Tensor, key: Tensor, **options
) -> Float[Tensor, "*batch heads N M"]:
    """The weights of any operator that is linear in its values: read the identity matrix.

    If value j is the j-th unit vector, then sum_j w_ij v_j is the row of weights itself.
    Raises ValueError for an operator of the atlas that is not linear in its values.
    """
    entry = entry_of(operator)
    if entry is not None and not entry.promises.linear_in_values:
        raise ValueError(
            f"operator {entry.key!r} is not linear in its values, so it has no weights to return"
        )
    keys = key.shape[-2]
    unit = torch.eye(keys, dtype=key.dtype, device=key.device)
    return operator(query, key, unit.expand(*key.shape[:-2], keys, keys), **options)


def _check_sizes(width: int, heads: int, key_heads: int, position: str) -> None:
    if heads < 1 or width % heads:
        raise ValueError(f"heads must divide width {width}, got {heads}")
    if key_heads < 1 or heads % key_heads:
        raise ValueError(f"key_heads must divide heads {heads}, got {key_heads}")
    if position == "rope" and (width // heads) % 2:
        raise ValueError(
            f"position 'rope' turns pairs of coordinates: width / heads must be even, "
            f"got {width} / {heads} = {width // heads}"
        )
