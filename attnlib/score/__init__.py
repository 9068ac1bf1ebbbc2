"""Score: how a query is compared with a key, what changes the score, where positions enter."""

from attnlib.score.changes import alibi, alibi_slopes, bias, relative_bias, soft_cap, then
from attnlib.score.compare import additive, dot_product, general, trilinear
from attnlib.score.positions import rotate, sinusoidal

__all__ = [
    "additive",
    "alibi",
    "alibi_slopes",
    "bias",
    "dot_product",
    "general",
    "relative_bias",
    "rotate",
    "sinusoidal",
    "soft_cap",
    "then",
    "trilinear",
]
