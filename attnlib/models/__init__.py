"""Small models, each about a page, that take any operator and position scheme by name."""

from attnlib.models.blocks import Block
from attnlib.models.language import DecoderLM, sample
from attnlib.models.multi_head import MultiHeadAttention
from attnlib.models.operators import AdditiveAttention
from attnlib.models.positions import POSITIONS
from attnlib.models.vision import VisionTransformer

__all__ = [
    "POSITIONS",
    "AdditiveAttention",
    "Block",
    "DecoderLM",
    "MultiHeadAttention",
    "VisionTransformer",
    "sample",
]
