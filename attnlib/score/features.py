"""The score of linear attention: a product of features instead of an exponential of a product."""

from collections.abc import Callable

from torch import Tensor

FeatureMap = Callable[[Tensor], Tensor]
"""Takes (..., length, D) to the features (..., length, R), one row at a time."""


def feature_product(
    feature_map: FeatureMap, key_feature_map: FeatureMap | None = None
) -> Callable[..., Tensor]:
    r"""Score s_ij = phi(q_i) . phi'(k_j), with phi' = phi unless given. Takes no scale.

    Source: Katharopoulos et al. (2020), eq. 4.
    """
    of_key = feature_map if key_feature_map is None else key_feature_map

    def score(query, key, scale=None):
        return features_of("feature_map", feature_map, query) @ (
            features_of("key_feature_map", of_key, key).mT
        )

    return score


def features_of(name: str, feature_map: FeatureMap, x: Tensor) -> Tensor:
    """phi(x), once it is sure that it has one row of features for each row of x."""
    if not callable(feature_map):
        raise TypeError(f"{name} must be callable, got {type(feature_map).__name__}")
    features = feature_map(x)
    if features.shape[:-1] != x.shape[:-1] or features.dtype != x.dtype:
        raise ValueError(
            f"{name} must take {x.dtype} of shape {tuple(x.shape)} to features of shape "
            f"{(*x.shape[:-1], 'R')} and the same dtype, got {features.dtype} of shape "
            f"{tuple(features.shape)}"
        )
    return features
