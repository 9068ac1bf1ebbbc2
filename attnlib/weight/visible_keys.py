"""n: how many keys a row may see."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def visible_keys(
    support: Bool[Tensor, "*batch N M"], dtype: torch.dtype
) -> Float[Tensor, "*batch N 1"]:
    """The number of keys in each row's support, as a column; one for a row that has none.

    So n is never the length of the tensor: padding, streaming and causal prefixes agree on it.
    Counted in float32 at least, since float16 ends at 65504.
    """
    count = support.sum(-1, keepdim=True).clamp(min=1)
    return count.to(torch.promote_types(dtype, torch.float32))
