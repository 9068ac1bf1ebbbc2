"""Feature maps phi: vectors whose product phi(q) . phi(k) stands for a weight before division."""

from attnlib.weight.feature_maps.elementwise import elu_plus_one, exponential, relu

__all__ = ["elu_plus_one", "exponential", "relu"]
