"""The read step: gathering values, and splitting and merging heads."""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor


def weighted_sum(
    weights: Float[Tensor, "*batch N M"], value: Float[Tensor, "*batch M E"]
) -> Float[Tensor, "*batch N E"]:
    """The read: o_i = sum_j w_ij v_j."""
    return weights @ value


def split_heads(x: Float[Tensor, "*batch N width"], heads: int) -> Float[Tensor, "*batch h N d"]:
    """Cut the width into heads: (..., N, heads * D) -> (..., heads, N, D)."""
    if heads < 1 or x.shape[-1] % heads:
        raise ValueError(f"heads must divide the width {x.shape[-1]} of x, got {heads}")
    return rearrange(x, "... n (h d) -> ... h n d", h=heads)


def merge_heads(x: Float[Tensor, "*batch heads N D"]) -> Float[Tensor, "*batch N width"]:
    """Lay the heads side by side: (..., heads, N, D) -> (..., N, heads * D)."""
    return rearrange(x, "... h n d -> ... n (h d)")


def repeat_key_heads(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Give each query head its key head: query head h reads key head h // (heads / key_heads)."""
    if query.dim() < 3:
        return key, value
    group = query.shape[-3] // key.shape[-3]
    return key.repeat_interleave(group, dim=-3), value.repeat_interleave(group, dim=-3)
