r"""Who reads for a token: gates over heads, the losses that keep them in order, and what they do.

A router gives each token a score for each head, (..., heads). The gate g_h says how much of head
h's read the token takes, and a gate of exactly zero means that the head need not read for it.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attnlib.atlas import Taxonomy, mechanism
from attnlib.checks import check_count, check_tensor

Scores = Float[Tensor, "*tokens heads"]
Gates = Float[Tensor, "*tokens heads"]


def chosen_heads(scores: Scores, active: int) -> Bool[Tensor, "*tokens heads"]:
    """True for the `active` heads with the largest scores of each token.

    Raises ValueError for more active heads than there are heads, or none.
    """
    check_tensor("scores", scores)
    check_active(active, scores.shape[-1])
    best = scores.topk(active, dim=-1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)


def top_k_gates(scores: Scores, active: int) -> Gates:
    r"""The softmax over all heads, kept for the `active` largest and zero for the others.

    .. math:: g_h = p_h \text{ for } h \in \mathrm{top}_k(p), \text{ else } 0, \qquad
              p = \mathrm{softmax}(\mathrm{scores})

    Gates of a token sum to less than one, unless all heads are active.
    Raises ValueError for more active heads than there are heads, or none.
    Source: the routed heads of Jin et al. (2024), "MoH", eq. 5, without the factor alpha_2.
    """
    return chosen_heads(scores, active) * scores.softmax(dim=-1)


@mechanism(
    key="moa-attention-heads",
    paper="moa-attention-heads",
    chapter="5-heads/mixtures-of-heads",
    section="heads-as-experts",
    step="read",
    idea="each token picks a few of many query heads, which share one key and one value",
    equation=r"\sum_{h \in \mathrm{top}_k} g_h\, W^O_h\, \mathrm{softmax}(W^Q_h x\, K^\top)\, V",
    cost="time k N M (D + E) whatever the number of heads, and N heads width for the router",
    promises=None,
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def renormalized_gates(scores: Scores, active: int) -> Gates:
    r"""`top_k_gates` divided by their sum, through which no gradient goes.

    .. math:: g_h = \frac{p_h}{\mathrm{detach}(\sum_{j \in G} p_j)}
              \text{ for } h \in G = \mathrm{top}_k(p), \text{ else } 0

    Gates of a token sum to one. With a gradient through the sum, the router would learn from the
    shares among the chosen only, and from nothing where one head is active.
    Raises ValueError for more active heads than there are heads, or none.
    Source: Zhang et al. (2022), "Mixture of Attention Heads"; its public program has the
    division, detached, as a comment.
    """
    gates = top_k_gates(scores, active)
    return gates / gates.sum(dim=-1, keepdim=True).detach()


def two_way_gates(
    shared_scores: Float[Tensor, "*tokens shared"],
    routed_scores: Float[Tensor, "*tokens routed"],
    way_scores: Float[Tensor, "*tokens 2"],
    active: int,
) -> Float[Tensor, "*tokens shared_plus_routed"]:
    r"""Gates of heads that are always on, then of routed heads of which `active` are chosen.

    .. math:: g = [\,\alpha_1 \,\mathrm{softmax}(\mathrm{shared});\;
              \alpha_2 \,\mathrm{top\_k\_gates}(\mathrm{routed}, k)\,], \qquad
              [\alpha_1, \alpha_2] = \mathrm{softmax}(\mathrm{way})

    Raises ValueError for more active heads than routed heads, or none.
    Source: Jin et al. (2024), "MoH", eqs. 5 and 6.
    """
    check_ways(shared_scores, routed_scores, way_scores)
    way = way_scores.softmax(dim=-1)
    always = shared_scores.softmax(dim=-1)
    chosen = top_k_gates(routed_scores, active)
    return torch.cat((way[..., :1] * always, way[..., 1:] * chosen), dim=-1)


@mechanism(
    key="moh-mixture-of-heads",
    paper="moh-mixture-of-heads",
    chapter="5-heads/mixtures-of-heads",
    section="shared-and-routed",
    step="read",
    idea="some heads are always on, each token picks a few of the others, two coefficients weigh "
    "the two kinds",
    equation=r"\sum_h g_h\, W^O_h\, o_h, g = [\alpha_1 \mathrm{softmax}; \alpha_2 \mathrm{top}_k]",
    cost="time a N M (D + E) for a share a of heads that are on",
    promises=None,
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def level_two_way_gates(
    shared_scores: Float[Tensor, "*tokens shared"],
    routed_scores: Float[Tensor, "*tokens routed"],
    way_scores: Float[Tensor, "*tokens 2"],
    active: int,
) -> Float[Tensor, "*tokens shared_plus_routed"]:
    r"""`two_way_gates`, scaled so that a router without an opinion opens every gate to one.

    .. math:: g = [\,2 \alpha_1 S \,\mathrm{softmax}(\mathrm{shared});\;
              2 \alpha_2 k \,p / \textstyle\sum_{j \in G} p_j \text{ on } G\,]

    for S shared heads, p = softmax(routed) and G its k = `active` largest. Where all scores are
    equal and all heads active this is multi-head attention.
    The sum has its gradient, as in the authors' program: with active=1 the routed gate does not
    depend on the routed scores, and the task teaches that router nothing.
    Source: the program of Jin et al. (2024), which has these factors; their eq. 5 has none.
    """
    check_ways(shared_scores, routed_scores, way_scores)
    way = 2 * way_scores.softmax(dim=-1)
    always = shared_scores.shape[-1] * shared_scores.softmax(dim=-1)
    chosen = top_k_gates(routed_scores, active)
    chosen = active * chosen / chosen.sum(dim=-1, keepdim=True)
    return torch.cat((way[..., :1] * always, way[..., 1:] * chosen), dim=-1)


@mechanism(
    key="pvchat-remoh",
    paper="pvchat-remoh",
    chapter="5-heads/mixtures-of-heads",
    section="relu-routing",
    step="read",
    idea="a ReLU of the scores opens heads; a penalty on the gates steers how many",
    equation=r"\sum_h g_h(x)\, W^O_h\, o_h, \quad g = [\alpha_1; \alpha_2\, \mathrm{relu}(W_r x)]",
    cost="time a N M (D + E) for a share a of heads that are on",
    promises=None,
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def relu_gates(scores: Scores) -> Gates:
    """relu(scores): a continuous function of the scores; a head that opens begins at zero.

    How many heads are open is not fixed. Source: Shi et al. (2025), "PVChat".
    """
    check_tensor("scores", scores)
    return scores.relu()


def balance_loss(scores: Scores, gates: Gates) -> Float[Tensor, ""]:
    r"""heads * sum_h f_h P_h: one for a level load, heads / k where the same k heads have it all.

    f_h is head h's share of all choices (`load`), P_h the mean over tokens of softmax(scores)_h.
    Both sum to one. Only P has a gradient; it takes probability from the heads that are often
    chosen.
    Source: Fedus et al. (2022), "Switch Transformers", eq. 4, for one choice a token; with f and P
    summing to one for more, as in Zhang et al. (2022). Jin et al. (2024), eq. 7, write
    sum_h P_h f_h with f summing to k, which is ours times k / heads.
    """
    check_tensor("scores", scores)
    if gates.shape != scores.shape:
        raise ValueError(
            f"gates must have the shape of scores {tuple(scores.shape)}, got {tuple(gates.shape)}"
        )
    probability = scores.softmax(dim=-1).flatten(0, -2).mean(dim=0)
    return scores.shape[-1] * (load(gates).to(probability) * probability).sum()


def z_loss(scores: Scores) -> Float[Tensor, ""]:
    """The mean over tokens of (log sum_h exp scores_h)^2, which keeps the router's scores small.

    Source: Zoph et al. (2022), "ST-MoE".
    """
    check_tensor("scores", scores)
    return scores.logsumexp(dim=-1).square().mean()


def load(gates: Gates) -> Float[Tensor, " heads"]:
    """Each head's share of all choices, a gate that is not zero being one choice; float64.

    Sums to one; all zero where nothing is chosen. It has no gradient.
    """
    counts = (gates != 0).flatten(0, -2).sum(dim=0).double()
    return counts / counts.sum().clamp(min=1)


def entropy(shares: Float[Tensor, "*rows H"]) -> Float[Tensor, "*rows"]:
    """-sum_h p_h log p_h (nats) of shares that sum to one: log H if alike, 0 if one has all."""
    logarithms = shares.where(shares != 0, 1.0).log()  # a share of zero adds 0, with gradient 0
    return -(shares * logarithms).sum(dim=-1)


def heads_in_use(gates: Gates) -> Float[Tensor, ""]:
    """exp of the entropy of the load: the number of heads that a level load would need."""
    return entropy(load(gates)).exp()


def gate_entropy(gates: Gates) -> Float[Tensor, ""]:
    """Mean over tokens of the entropy (nats) of a token's gates, divided by their sum.

    log k for k equal gates; a token without an open gate counts as zero. Raises ValueError for
    negative gates.
    """
    check_tensor("gates", gates)
    if gates.numel() and float(gates.detach().min()) < 0:
        raise ValueError(f"gates must not be negative, got {float(gates.detach().min()):.3g}")
    tiny = torch.finfo(gates.dtype).tiny
    return entropy(gates / gates.sum(dim=-1, keepdim=True).clamp(min=tiny)).mean()


def choice_shares(
    types: Int[Tensor, "*tokens"], gates: Gates, count: int
) -> Float[Tensor, "count heads"]:
    """The joint shares p(type, head) of all choices: row t tells what tokens of type t chose.

    Raises ValueError where `types` are no integers below `count`, one for each token.
    """
    check_count("count", count, least=1)
    if types.is_floating_point() or types.shape != gates.shape[:-1]:
        raise ValueError(
            f"types must be integers of shape {tuple(gates.shape[:-1])}, "
            f"got {types.dtype} of shape {tuple(types.shape)}"
        )
    if types.numel() and not 0 <= int(types.min()) <= int(types.max()) < count:
        raise ValueError(
            f"types must lie in 0 ... {count - 1}, got {int(types.min())} ... {int(types.max())}"
        )
    choices = (gates != 0).flatten(0, -2).double()
    counts = choices.new_zeros(count, choices.shape[-1]).index_add_(0, types.flatten(), choices)
    return counts / counts.sum().clamp(min=1)


def choice_information(types: Int[Tensor, "*tokens"], gates: Gates, count: int) -> float:
    r"""I(type; head) in nats: what the type of a token tells of a head that it chose.

    .. math:: \sum_{t,h} p(t, h) \log \frac{p(t, h)}{p(t)\, p(h)}

    Each choice is one event. Zero where all types choose alike, at most log H. Counted from
    finitely many events it is a little above zero for independent ones too (about
    (types - 1)(heads - 1) / (2 events)): compare it with that of shuffled types.
    """
    joint = choice_shares(types, gates, count)
    apart = joint.sum(dim=1, keepdim=True) * joint.sum(dim=0, keepdim=True)
    ratio = joint / apart.clamp(min=torch.finfo(apart.dtype).tiny)
    return float(torch.special.xlogy(joint, ratio).sum())


def check_ways(shared_scores: Tensor, routed_scores: Tensor, way_scores: Tensor) -> None:
    """Check the scores of two kinds of heads, and that there is one pair of ways for each token."""
    check_tensor("shared_scores", shared_scores)
    check_tensor("routed_scores", routed_scores)
    check_tensor("way_scores", way_scores)
    tokens = shared_scores.shape[:-1]
    for name, scores in (("routed_scores", routed_scores), ("way_scores", way_scores)):
        if scores.shape[:-1] != tokens:
            raise ValueError(
                f"{name} must be for the tokens of shared_scores, {tuple(tokens)}, "
                f"got shape {tuple(scores.shape)}"
            )
    if way_scores.shape[-1] != 2:
        raise ValueError(f"way_scores must be two a token, got {way_scores.shape[-1]}")


def check_active(active: int, heads: int) -> None:
    """Check that `active` of `heads` heads may be chosen."""
    check_count("active", active, least=1)
    if active > heads:
        raise ValueError(f"active must be at most the number of heads, {heads}, got {active}")


def check_head_names(name: str, named: Sequence[int], heads: int) -> None:
    """Check that heads are named by different integers from 0 to `heads` - 1."""
    for head in named:
        check_count(f"each head in {name}", head)
        if head >= heads:
            raise ValueError(f"{name} must name heads 0 ... {heads - 1}, got {head}")
    if len(set(named)) < len(named):
        raise ValueError(f"{name} must name each head once, got {list(named)}")
