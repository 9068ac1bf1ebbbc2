"""Heads that look back and heads that keep a state, and heads between them."""

import torch
from jaxtyping import Float
from torch import Tensor

from attnlib.atlas import Taxonomy, mechanism

PerHead = Float[Tensor, "H 1 1"]


@mechanism(
    key="wuneng-hybrid-heads",
    paper="wuneng-hybrid-heads",
    chapter="3-linear/recurrent-and-chunked-in-practice",
    section="state-heads-beside-softmax-heads",
    step="read",
    idea="softmax heads, state heads and mixtures of both, concatenated",
    equation=r"[\,o^a + \alpha o^s;\ o^s;\ \mu (g\, o^a + (1 - g)\, o^s)\,]",
    cost="time 2 N E a pair of heads, besides the heads",
    promises=None,
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def hybrid_heads(
    looking: Float[Tensor, "*batch H N E"],
    keeping: Float[Tensor, "*batch H N E"],
    *,
    added: PerHead,
    mixed: PerHead,
    share: Float[Tensor, "*batch H N 1"],
) -> Float[Tensor, "*batch H_times_3 N E"]:
    r"""Three heads of two: the looking one with some of the other added, the other, a mixture.

    .. math:: [\,o^a + \alpha o^s;\ o^s;\ \mu (g\, o^a + (1 - g)\, o^s)\,]

    with alpha = `added` and mu = `mixed`, one number a head, and g = `share` in 0 ... 1, one a
    token. With alpha = mu = 0 this is the plain concatenation [o^a; o^s; 0], exactly.
    Raises ValueError where the two kinds of heads differ in shape.
    Source: Xiao et al. (2025, "WuNeng"): state heads, additive modulation, gated middle heads.
    """
    if looking.shape != keeping.shape:
        raise ValueError(
            f"keeping must have the shape of looking, {tuple(looking.shape)}, "
            f"got {tuple(keeping.shape)}"
        )
    middle = share * looking + (1 - share) * keeping
    return torch.cat((looking + added * keeping, keeping, mixed * middle), dim=-3)
