"""Group attention: joints of one person read each other, then equal joints of all people."""

from jaxtyping import Float
from torch import Tensor, nn

from attnlib.atlas import Taxonomy, mechanism
from attnlib.checks import check_attention, check_count
from attnlib.models.multi_head import MultiHeadAttention
from attnlib.support import Support
from attnlib.weight.softmax_attention import softmax_attention


def same_instance(instances: int, parts: int) -> Support:
    """The keys of the query's own instance; token i is part i % parts of instance i // parts."""
    _check_groups(instances, parts)
    return Support(
        lambda b, h, q_idx, kv_idx: q_idx // parts == kv_idx // parts,
        f"same_instance({instances}, {parts})",
    )


def same_type(instances: int, parts: int) -> Support:
    """The keys of the query's own type in all instances, itself among them."""
    _check_groups(instances, parts)
    return Support(
        lambda b, h, q_idx, kv_idx: q_idx % parts == kv_idx % parts,
        f"same_type({instances}, {parts})",
    )


def instance_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    parts: int,
) -> Float[Tensor, "*heads N E"]:
    """Softmax attention over the `parts` tokens of each instance: instances are a batch.

    Equal to `attend` with the support `same_instance`. Cost: N parts scores in the place of N^2.
    Raises ValueError where the tokens are not a whole number of instances.
    """
    check_attention(query, key, value)
    check_parts(query, key, parts)
    apart = (x.unflatten(-2, (-1, parts)) for x in (query, key, value))
    return softmax_attention(*apart).flatten(-3, -2)


def type_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    parts: int,
) -> Float[Tensor, "*heads N E"]:
    """Softmax attention over the tokens of one type, one from each instance: types are a batch.

    Equal to `attend` with the support `same_type`. Cost: N^2 / parts scores in the place of N^2.
    Raises ValueError where the tokens are not a whole number of instances.
    """
    check_attention(query, key, value)
    check_parts(query, key, parts)
    apart = (x.unflatten(-2, (-1, parts)).transpose(-3, -2) for x in (query, key, value))
    return softmax_attention(*apart).transpose(-3, -2).flatten(-3, -2)


@mechanism(
    key="grouppose-group-attention",
    paper="grouppose-group-attention",
    chapter="8-vision/windows-and-neighbourhoods",
    section="groups-of-joints",
    step="support",
    idea="attention among the queries of one person, then among the queries of one type",
    equation=r"S_i = \{ j : \mathrm{person}(j) = \mathrm{person}(i) \}, \;\text{then}\;"
    r" \{ j : \mathrm{type}(j) = \mathrm{type}(i) \}",
    cost="scores N (K + 1)^2 + (K + 1) N^2 for N people of K joints, full attention N^2 (K + 1)^2",
    promises=None,
    taxonomy=Taxonomy("self", "single", "soft", "multi-head"),
)
class GroupPoseAttention(nn.Module):
    r"""Two attentions one after the other: within instances, then across them within a type.

    .. math:: y = x + \mathrm{within}(\mathrm{norm}(x)), \qquad
        z = y + \mathrm{across}(\mathrm{norm}(y))

    An instance has `parts` tokens: K joints and one token for the whole. After both, every token
    has been in reach of every other, over one of its own person or type.

    Shapes: x (batch, instances * parts, width) -> the same.
    Cost: instances parts^2 + parts instances^2 scores a head.
    Raises ValueError where the tokens are not a whole number of instances.
    Source: Liu et al. (2023), Group Pose, section 3.2.
    """

    def __init__(self, width: int, heads: int, *, parts: int):
        super().__init__()
        check_count("parts", parts, least=1)
        self.parts = parts
        self.within_norm, self.across_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.within = MultiHeadAttention(width, heads, operator=Grouped(instance_attention, parts))
        self.across = MultiHeadAttention(width, heads, operator=Grouped(type_attention, parts))

    def forward(self, x: Float[Tensor, "batch N width"]) -> Float[Tensor, "batch N width"]:
        """The tokens after both reads."""
        x = x + self.within(self.within_norm(x))
        return x + self.across(self.across_norm(x))


class Grouped(nn.Module):
    """An operator with its number of parts fixed."""

    def __init__(self, operator, parts: int):
        super().__init__()
        self.operator, self.parts = operator, parts

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The operator's read."""
        return self.operator(query, key, value, parts=self.parts)


def score_counts(instances: int, parts: int) -> dict[str, int]:
    """How many scores a head computes for full attention and for the two groups together."""
    _check_groups(instances, parts)
    return {
        "full": (instances * parts) ** 2,
        "grouped": instances * parts**2 + parts * instances**2,
    }


def check_parts(query: Tensor, key: Tensor, parts: int) -> None:
    """Check that the tokens are a whole number of instances of `parts` tokens each."""
    check_count("parts", parts, least=1)
    for name, x in (("query", query), ("key", key)):
        if x.shape[-2] % parts:
            raise ValueError(
                f"parts must divide the {x.shape[-2]} tokens of {name}, one for each part of an "
                f"instance, got {parts}"
            )
    if query.shape[-2] != key.shape[-2]:
        raise ValueError(
            f"key must have the {query.shape[-2]} tokens of query, got {key.shape[-2]}"
        )


def _check_groups(instances: int, parts: int) -> None:
    check_count("instances", instances, least=1)
    check_count("parts", parts, least=1)
