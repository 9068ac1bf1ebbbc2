"""Branches of one attention layer: a router says, place by place, which of them is read."""

import torch
from jaxtyping import Float
from torch import Tensor

from attnlib.atlas import Taxonomy, mechanism
from attnlib.checks import check_tensor


@mechanism(
    key="moa-personalization",
    paper="moa-personalization",
    chapter="5-heads/mixtures-of-heads",
    section="personal-and-frozen-branches",
    step="read",
    idea="a frozen and a personal branch of attention, mixed by a router for each pixel",
    equation=r"y_i = \sum_n R_{in} \,\mathrm{attention}_n(x)_i",
    cost="time that of all branches",
    promises=None,
    taxonomy=Taxonomy(
        sequences="distinctive", levels="single", positions="soft", representations="multi-head"
    ),
)
def mixed_branches(
    branches: Float[Tensor, "batch X N width"], router: Float[Tensor, "batch N X"]
) -> Float[Tensor, "batch N width"]:
    r"""The branches' outputs, weighed at each place by its row of the router.

    .. math:: y_i = \sum_n R_{in}\, y^n_i

    A row that is one for one branch and zero elsewhere gives that branch exactly, as long as the
    others are finite. Shapes: X branches; see the signature. Cost: B X N width.
    Raises ValueError where the two do not belong together.
    Source: Wang et al. (2024), "MoA: Mixture-of-Attention". Derived in chapter 5.2.
    """
    check_tensor("branches", branches)
    if branches.dim() != 4:
        raise ValueError(
            f"branches must have shape (batch, X, N, width), got {tuple(branches.shape)}"
        )
    batch, count, places, _ = branches.shape
    if router.shape != (batch, places, count):
        raise ValueError(
            f"router must have shape {(batch, places, count)}, got {tuple(router.shape)}"
        )
    return (branches * router.mT[..., None]).sum(1)


def background_loss(
    router: Float[Tensor, "batch N 2"], mask: Float[Tensor, "batch N"]
) -> Float[Tensor, ""]:
    r"""The mean of ((1 - M)(1 - R_prior))^2: outside the subject the prior branch shall be read.

    `mask` is one on the subject and zero on the background, branch 0 the prior.
    Raises ValueError where the two do not belong together.
    Source: Wang et al. (2024), the loss of the router.
    """
    if router.shape != (*mask.shape, 2):
        raise ValueError(
            f"router must have shape {(*mask.shape, 2)} for this mask, got {tuple(router.shape)}"
        )
    return ((1 - mask) * (1 - router[..., 0])).square().mean()


def overlap(first: Tensor, second: Tensor) -> Float[Tensor, ""]:
    """Intersection over union of two sets of places, given as bool tensors of one shape.

    Two empty sets overlap fully. Raises ValueError for other dtypes and for different shapes.
    """
    if first.dtype != torch.bool or second.dtype != torch.bool or first.shape != second.shape:
        raise ValueError(
            "first and second must be bool tensors of one shape, got "
            f"{first.dtype} {tuple(first.shape)} and {second.dtype} {tuple(second.shape)}"
        )
    union = (first | second).sum()
    return (first & second).sum() / union if union else torch.tensor(1.0)
