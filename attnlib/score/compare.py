"""The score step: how a query is compared with a key."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from attnlib.checks import check_dtype


def dot_product(
    query: Float[Tensor, "*batch N D"],
    key: Float[Tensor, "*batch M D"],
    scale: float | None = None,
) -> Float[Tensor, "*batch N M"]:
    r"""Scaled dot product, s_ij = scale * q_i . k_j, with scale 1/sqrt(D) unless given.

    The query is scaled before the product, so that half precision does not overflow in it.
    Source: Vaswani et al. (2017), eq. 1; without the scale Luong et al. (2015), eq. 8 ("dot").
    """
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"key must have the width of query for a dot product: query has {query.shape[-1]}, "
            f"key has {key.shape[-1]}"
        )
    if query.shape[-1] == 0:
        raise ValueError("query must have a width of at least 1, got 0")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return (query * scale) @ key.transpose(-2, -1)


def general(matrix: Float[Tensor, "D K"]) -> Callable[..., Tensor]:
    r"""Bilinear score, s_ij = scale * q_i^T W k_j (scale 1 unless given).

    Source: Luong et al. (2015), eq. 8 ("general").
    """

    def score(query, key, scale=None):
        if (query.shape[-1], key.shape[-1]) != tuple(matrix.shape):
            raise ValueError(
                f"matrix must have shape (query width, key width) = "
                f"({query.shape[-1]}, {key.shape[-1]}), got {tuple(matrix.shape)}"
            )
        return dot_product(query @ matrix, key, scale=1.0 if scale is None else scale)

    return score


def additive(
    query_matrix: Float[Tensor, "A D"],
    key_matrix: Float[Tensor, "A K"],
    vector: Float[Tensor, " A"],
) -> Callable[..., Tensor]:
    r"""Additive score, s_ij = scale * v . tanh(W q_i + U k_j) (scale 1 unless given).

    Cost: memory N M A, because the hyperbolic tangent is taken for every pair.
    Source: Bahdanau et al. (2015), appendix A.1.2.
    """
    parameters = {"query_matrix": query_matrix, "key_matrix": key_matrix, "vector": vector}
    shapes = [tuple(weights.shape) for weights in parameters.values()]
    if [len(shape) for shape in shapes] != [2, 2, 1] or len({shape[0] for shape in shapes}) != 1:
        raise ValueError(
            "query_matrix, key_matrix and vector must have shapes (A, D), (A, K) and (A,), "
            f"got {shapes}"
        )

    def score(query, key, scale=None):
        for name, tokens, weights in (
            ("query_matrix", query, query_matrix),
            ("key_matrix", key, key_matrix),
        ):
            if weights.shape[-1] != tokens.shape[-1]:
                raise ValueError(
                    f"{name} must have shape (hidden, {tokens.shape[-1]}), "
                    f"got {tuple(weights.shape)}"
                )
        for name, weights in parameters.items():
            check_dtype(name, weights, query)
        hidden = torch.tanh(
            (query @ query_matrix.mT).unsqueeze(-2) + (key @ key_matrix.mT).unsqueeze(-3)
        )
        return hidden @ vector * (1.0 if scale is None else scale)

    return score


def trilinear(vector: Float[Tensor, " three_D"]) -> Callable[..., Tensor]:
    r"""Score of a pair and its product, s_ij = scale * w . [q_i; k_j; q_i * k_j] (scale 1).

    Computed without the N x M x 3D tensor, because the three parts of w act one by one.
    Source: Seo et al. (2017), section 2, attention flow layer.
    """

    def score(query, key, scale=None):
        width = query.shape[-1]
        if key.shape[-1] != width or vector.shape != (3 * width,):
            raise ValueError(
                f"query, key and vector must have widths D, D and 3 D, "
                f"got {width}, {key.shape[-1]} and {tuple(vector.shape)}"
            )
        check_dtype("vector", vector, query)
        of_query, of_key, of_product = vector.split(width)
        scores = (
            (query @ of_query)[..., :, None]
            + (key @ of_key)[..., None, :]
            + (query * of_product) @ key.mT
        )
        return scores * (1.0 if scale is None else scale)

    return score
