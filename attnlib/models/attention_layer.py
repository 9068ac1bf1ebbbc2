"""The layers of chapter 1.4 say three things: the queries, what is kept, and how it is unfolded."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attnlib.choices import check_choice
from attnlib.models.multi_head import MultiHeadAttention, read_weights
from attnlib.read.heads import merge_heads
from attnlib.score.positions import rotate
from attnlib.weight.softmax_attention import softmax_attention

Kept = tuple[Tensor, ...]
"""What is kept of the tokens for later queries: tensors (batch, M, numbers)."""


class AttentionLayer(nn.Module):
    r"""An attention layer as three maps, with the call of `MultiHeadAttention`.

    .. math:: y_i = W^O\,[\ldots;\ \mathrm{attention}(q^h(x), k^h(m), v^h(m))_i;\ \ldots],
              \qquad m = \mathrm{keep}(c)

    with the context c = x unless one is given. A subclass says what the queries are (`queries`),
    what is kept of a token (`keep`) and which keys and values that unfolds to
    (`keys_and_values`), and sets `to_output` and `cache_numbers`, the numbers kept a token.
    Each rotates what has a position, where `position` is "rope" (`placed`).

    Shapes: x (batch, N, width), context (batch, M, width) -> (batch, N, width).
    """

    operator: Callable[..., Tensor] = staticmethod(softmax_attention)
    cache_numbers: int
    to_output: nn.Linear

    def __init__(self, position: str, is_causal: bool):
        super().__init__()
        check_choice("position", position, ("none", "rope"))
        self.position, self.is_causal = position, is_causal

    def queries(
        self, x: Float[Tensor, "batch N width"], start: int = 0
    ) -> Float[Tensor, "batch H N D"]:
        """The queries of all heads, for tokens at the positions start, start + 1, ..."""
        raise NotImplementedError

    def keep(self, context: Float[Tensor, "batch M width"], start: int = 0) -> Kept:
        """What is kept of each token: `cache_numbers` numbers in all."""
        raise NotImplementedError

    def keys_and_values(self, *kept: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values of all heads, made from what is kept."""
        raise NotImplementedError

    def forward(
        self,
        x: Float[Tensor, "batch N width"],
        context: Float[Tensor, "batch M width"] | None = None,
        *,
        attn_mask: Bool[Tensor, "..."] | None = None,
        return_weights: bool = False,
    ) -> Float[Tensor, "batch N width"] | tuple[Tensor, Tensor]:
        """The read of x from its context; with `return_weights` also (batch, heads, N, M)."""
        query = self.queries(x)
        key, value = self.keys_and_values(*self.keep(x if context is None else context))
        options = {"is_causal": True} if self.is_causal else {}
        if attn_mask is not None:
            options["attn_mask"] = attn_mask
        out = self.to_output(merge_heads(self.operator(query, key, value, **options)))
        if return_weights:
            return out, read_weights(self.operator, query, key, **options)
        return out

    def step(
        self, kept: Kept | None, x: Float[Tensor, "batch N width"]
    ) -> tuple[Float[Tensor, "batch N width"], Kept]:
        """Decode the next token (or tokens): (read, what is kept now). Pass None to begin.

        Token by token it gives the rows of `forward`. Raises ValueError for a layer that is not
        causal: there a later token would change an earlier read.
        """
        check_causal(self)
        start = 0 if kept is None else kept[0].shape[1]
        new = self.keep(x, start)
        kept = new if kept is None else tuple(map(_joined, kept, new))
        key, value = self.keys_and_values(*kept)
        query = self.queries(x, start)
        read = self.operator(query, key, value, is_causal=True, query_offset=start)
        return self.to_output(merge_heads(read)), kept

    def placed(self, x: Float[Tensor, "*batch N D"], start: int = 0) -> Float[Tensor, "*batch N D"]:
        """Queries or keys, with position "rope" rotated to the positions start, start + 1, ..."""
        return rotated(x, start) if self.position == "rope" else x


def cache_numbers(layer: nn.Module) -> int:
    """How many numbers a layer keeps of each token for decoding.

    2 Hkv D for `MultiHeadAttention`: a key and a value for each key head. Raises TypeError for a
    module that does not say what it keeps.
    """
    if isinstance(layer, MultiHeadAttention):
        return layer.to_key.out_features + layer.to_value.out_features
    kept = getattr(layer, "cache_numbers", None)
    if not isinstance(kept, int):
        raise TypeError(
            "layer must be a MultiHeadAttention or have an integer cache_numbers, "
            f"got {type(layer).__name__}"
        )
    return kept


def projection(inputs: int, outputs: int) -> nn.Linear:
    """A matrix without bias whose outputs have the size of its inputs: std = inputs^(-1/2)."""
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=inputs**-0.5)
    return layer


def rotated(x: Float[Tensor, "*batch N D"], start: int = 0) -> Float[Tensor, "*batch N D"]:
    """Rotary encoding of the positions start ... start + N - 1."""
    return rotate(x, torch.arange(start, start + x.shape[-2], device=x.device))


def check_causal(layer: nn.Module) -> None:
    """Check that a layer may be decoded token by token."""
    if not layer.is_causal:
        raise ValueError("is_causal must be True for a layer that decodes step by step, got False")


def check_divides(name: str, number: int, whole: str, total: int) -> None:
    """Check that `number` divides `total`, which is called `whole`."""
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{name} must be an int, got {type(number).__name__}")
    if number < 1 or total % number:
        raise ValueError(f"{name} must divide {whole} {total}, got {number}")


def check_pairs(name: str, width: int) -> None:
    """Check that a width that is to be rotated consists of pairs."""
    if width < 2 or width % 2:
        raise ValueError(
            f"{name} must be even, because rope turns pairs of coordinates, got {width}"
        )


def _joined(old: Tensor, new: Tensor) -> Tensor:
    if old.shape[0] != new.shape[0]:
        raise ValueError(
            f"x must have the batch of what is kept ({old.shape[0]}), got {new.shape[0]}"
        )
    return torch.cat((old, new), dim=1)
