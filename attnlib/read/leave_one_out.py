"""Experts that are all heads but one, and the gate on a head that a mixture of them comes to."""

from jaxtyping import Float
from torch import Tensor

from attnlib.atlas import Taxonomy, mechanism
from attnlib.checks import check_tensor


@mechanism(
    key="mae-h-minus-one",
    paper="mae-h-minus-one",
    chapter="5-heads/mixtures-of-heads",
    section="leave-one-out",
    step="read",
    idea="a mixture of experts, each the sum of all heads but one",
    equation=r"\sum_i g_i \tfrac{H}{H-1} \sum_{j \neq i} y_j = \sum_j \tfrac{H}{H-1} (1 - g_j) y_j",
    cost="time N H, besides the heads",
    promises=None,
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def all_but_one_gates(
    gates: Float[Tensor, "*batch N H"],
) -> Float[Tensor, "*batch N H"]:
    r"""The gate on each head when expert i, all heads but head i, is trusted by g_i.

    .. math:: \sum_i g_i \frac{H}{H-1} \sum_{j \neq i} y_j
              = \sum_j \underbrace{\frac{H}{H-1} (1 - g_j)}_{\text{gate of head } j} y_j

    because head j is missing from one expert only. Uniform gates g_i = 1 / H give gates
    of one: multi-head attention. One gate of one gives one expert: H - 1 heads, scaled.
    Shapes: (..., N, H) -> (..., N, H). Cost: N H.
    Raises ValueError for fewer than two heads and TypeError for what is no floating-point tensor.
    Source: Peng et al. (2020). Derived in chapter 5.2.
    """
    check_tensor("gates", gates)
    heads = gates.shape[-1] if gates.dim() else 0
    if heads < 2:
        raise ValueError(f"gates must be of at least 2 heads to leave one out, got {heads}")
    return heads / (heads - 1) * (1 - gates)


def leave_one_out_experts(
    outputs: Float[Tensor, "batch H N width"],
) -> Float[Tensor, "batch H N width"]:
    r"""Expert i is the sum of all heads but head i, as large as if it had them all.

    .. math:: e_i = \frac{H}{H-1} \sum_{j \neq i} y_j

    `outputs` are the heads after their output projections, so that the sum over heads is
    multi-head attention. Cost: B H N width. Raises ValueError for fewer than two heads.
    Source: Peng et al. (2020).
    """
    if outputs.dim() != 4 or outputs.shape[1] < 2:
        raise ValueError(
            "outputs must have shape (batch, heads, N, width) with at least 2 heads, "
            f"got {tuple(outputs.shape)}"
        )
    heads = outputs.shape[1]
    return heads / (heads - 1) * (outputs.sum(1, keepdim=True) - outputs)
