"""The energy of a read: one number a query, whose slope is the read."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attnlib.checks import check_attention, check_count, check_dtype, check_mask, check_scale
from attnlib.score.compare import dot_product
from attnlib.support import allowed_keys, index_grid


def energy(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    value: Float[Tensor, "*heads M E"],
    source: Float[Tensor, "*heads N E"],
    *,
    attn_mask: Bool[Tensor, "*#heads #N #M"] | None = None,
    is_causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
) -> Float[Tensor, "*heads N"]:
    r"""The energy of each query with a source z added to the scores through the values.

    .. math:: F_i(z) = \log \sum_{j \in S_i} e^{s_{ij} + z \cdot v_j}

    Its first derivative at z = 0 is the read of `attend`, sum_j p_ij v_j; its second derivative
    there is the covariance of the values under the weights. The energy of two parts of the keys is
    the `logaddexp` of their energies, which is why parts merge in any grouping.

    Shapes: as in `attend`, and a source z_i of the width of a value for each query. A row whose
    support is empty has energy minus infinity and derivative zero. Cost: N M (D + E).
    Raises ValueError or TypeError naming the argument that does not fit.
    Source: Shyam et al. (2024), observation 1, eqs. 5 and 6, there without the scale. As the
    logarithm of a moment generating function it generates cumulants: mean, then covariance.
    """
    check_attention(query, key, value)
    check_dtype("source", source, query)
    if source.shape != (*query.shape[:-1], value.shape[-1]):
        raise ValueError(
            f"source must have shape {(*query.shape[:-1], value.shape[-1])}, a vector of the width "
            f"of value for each query, got {tuple(source.shape)}"
        )
    check_scale(scale)
    check_count("query_offset", query_offset)
    scores = dot_product(query, key, scale) + source @ value.mT
    if attn_mask is not None:
        check_mask(attn_mask, scores.shape)
    where = index_grid(query, key.shape[-2], query_offset)
    allowed = allowed_keys(where, None, attn_mask, is_causal)
    return torch.logsumexp(scores.masked_fill(~allowed, -torch.inf), dim=-1)
