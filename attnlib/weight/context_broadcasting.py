"""Equal weights handed out for free: half of every token becomes the mean of all of them."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.atlas import Taxonomy, mechanism
from attnlib.checks import check_tensor


@mechanism(
    key="context-broadcasting",
    paper="context-broadcasting",
    chapter="2-weights/beyond-softmax",
    section="equal-weights",
    step="weight",
    idea="every token is averaged with the mean of all tokens, without a parameter",
    equation=r"\tfrac12 (I + \tfrac1n \mathbf{1}\mathbf{1}^\top) X",
    cost="time N D, memory N D",
    promises=None,
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="single"
    ),
)
def context_broadcasting(
    x: Float[Tensor, "*batch N width"], present: Bool[Tensor, "*batch N"] | None = None
) -> Float[Tensor, "*batch N width"]:
    r"""x_i <- (x_i + (1/n) sum_j x_j) / 2 over the n tokens that are present (all unless given).

    The same as attention with the constant weights (I + 11^T / n) / 2. A token that is not present
    enters no mean, and becomes zero. Shapes: (..., N, width) to the same.
    Source: Hyeon-Woo et al. (2023), "CB". Derived in chapter 2.1.
    """
    check_tensor("x", x)
    if present is None:
        present = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
    if present.dtype != torch.bool or present.shape != x.shape[:-1]:
        raise ValueError(
            f"present must be a bool tensor of shape {tuple(x.shape[:-1])}, "
            f"got {present.dtype} {tuple(present.shape)}"
        )
    tokens = x.masked_fill(~present[..., None], 0.0)
    count = present.sum(-1, keepdim=True)[..., None].clamp(min=1)
    mean = tokens.sum(-2, keepdim=True) / count
    return ((tokens + mean) / 2).masked_fill(~present[..., None], 0.0)
