"""Rank-augmented linear attention: keys weighted by what all queries together look for."""

from jaxtyping import Float
from torch import Tensor

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.checks import check_scale
from attnlib.read.feature_checks import check_features
from attnlib.score.compare import dot_product
from attnlib.weight.division import divided
from attnlib.weight.feature_maps.elementwise import elu_plus_one


def key_shares(
    query_features: Float[Tensor, "*heads N D"],
    key_features: Float[Tensor, "*heads M D"],
    scale: float | None = None,
) -> Float[Tensor, "*heads M"]:
    r"""How much each key counts in the buffer; the mean over the keys is 1.

    .. math:: \alpha_j = M\,\mathrm{softmax}_j\!\left(\bar q \cdot \phi(k_j) / \sqrt{D}\right),
              \qquad \bar q = \frac1N \sum_i \phi(q_i)

    Source: Fan et al. (2025), "RALA".
    """
    asked = query_features.mean(-2, keepdim=True)
    keys = key_features.shape[-2]
    return keys * dot_product(asked, key_features, scale).softmax(-1).squeeze(-2)


def key_value_buffer(
    key_features: Float[Tensor, "*heads M D"],
    value: Float[Tensor, "*heads M E"],
    shares: Float[Tensor, "*heads M"],
) -> Float[Tensor, "*heads D E"]:
    r"""The D x E matrix that all queries read, :math:`B = \sum_j \alpha_j \phi(k_j) v_j^\top`."""
    return (shares[..., None] * key_features).mT @ value


def dense_rank_augmented_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    value: Float[Tensor, "*heads M E"],
    *,
    scale: float | None = None,
) -> Float[Tensor, "*heads N E"]:
    """Rank-augmented attention by its N x M weights: the oracle."""
    if 0 in (query.shape[-2], key.shape[-2]):
        return query.new_zeros(*query.shape[:-1], value.shape[-1])
    sink, source = elu_plus_one(query), elu_plus_one(key)
    weights = sink @ source.mT * key_shares(sink, source, scale)[..., None, :]
    return divided(weights, weights.sum(-1, keepdim=True)) @ value


@mechanism(
    key="rala",
    paper="rala",
    chapter="3-linear/feature-maps",
    section="rank",
    step="weight",
    idea="linear attention whose key-value sum is reweighted by a softmax over the keys",
    equation=r"\frac{\phi(q_i) \sum_j \alpha_j \phi(k_j) v_j^\top}"
    r"{\phi(q_i) \cdot \sum_j \alpha_j \phi(k_j)}",
    cost="time (N + M) D E, memory (N + M)(D + E) + D E",
    oracle=dense_rank_augmented_attention,
    promises=Promises(causal=False, grouped_query=False, padding=False),
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def rank_augmented_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    value: Float[Tensor, "*heads M E"],
    *,
    scale: float | None = None,
) -> Float[Tensor, "*heads N E"]:
    r"""Linear attention in which key j counts alpha_j times.

    .. math:: o_i = \frac{\phi(q_i)^\top B}{\phi(q_i) \cdot \sum_j \alpha_j \phi(k_j)}, \qquad
              B = \sum_j \alpha_j\, \phi(k_j) v_j^\top, \qquad \phi = \mathrm{elu} + 1

    with the shares alpha of `key_shares`. Weights are positive and sum to one. The second half of
    the mechanism, a gate on the read, needs the layer's input: `attnlib.models.rank_augmented`.
    A row whose sum vanishes reads zero: entries of query and key below about -35 in float32.

    Shapes and scale (of the shares) as in `attend`. Cost: time (N + M) D E.
    Raises ValueError or TypeError naming the argument that does not fit.
    Source: Fan et al. (2025), without the rotary encoding of their code. Derived in chapter 3.1.
    """
    check_features(query, key, value)
    check_scale(scale)
    if 0 in (query.shape[-2], key.shape[-2]):
        # A sum over nothing: zeros that still belong to the graph of query, key and value.
        return query[..., :0] @ (key[..., :0, :0].mT @ value[..., :0, :])
    dtype, half = value.dtype, value.element_size() < 4
    if half:
        query, key, value = query.float(), key.float(), value.float()
    sink, source = elu_plus_one(query), elu_plus_one(key)
    shares = key_shares(sink, source, scale)
    total = (sink * (shares[..., None] * source).sum(-2, keepdim=True)).sum(-1, keepdim=True)
    return divided(sink @ key_value_buffer(source, value, shares), total).to(dtype)
