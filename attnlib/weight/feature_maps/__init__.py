"""Feature maps phi: vectors whose product phi(q) . phi(k) stands for a weight before division."""

from attnlib.weight.feature_maps.elementwise import elu_plus_one, exponential, relu
from attnlib.weight.feature_maps.hedgehog import HedgehogMap, hedgehog, hedgehog_exponential
from attnlib.weight.feature_maps.log_normal import Exponents, matched_exponents
from attnlib.weight.feature_maps.random_features import (
    orthogonal_directions,
    positive_random_features,
)
from attnlib.weight.feature_maps.taylor import (
    standardized,
    standardized_polynomial,
    taylor,
    taylor_features,
    taylor_state_size,
)

__all__ = [
    "Exponents",
    "HedgehogMap",
    "elu_plus_one",
    "exponential",
    "hedgehog",
    "hedgehog_exponential",
    "matched_exponents",
    "orthogonal_directions",
    "positive_random_features",
    "relu",
    "standardized",
    "standardized_polynomial",
    "taylor",
    "taylor_features",
    "taylor_state_size",
]
