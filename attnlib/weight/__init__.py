"""Weight: how the scores in the support become weights."""

from attnlib.weight.extremes import hardmax, uniform
from attnlib.weight.softmax import softmax

__all__ = ["hardmax", "softmax", "uniform"]
