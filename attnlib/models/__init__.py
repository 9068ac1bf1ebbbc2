"""Small models, each about a page, that take any operator and position scheme by name."""

from attnlib.models.attention_layer import AttentionLayer, cache_numbers
from attnlib.models.blocks import Block
from attnlib.models.decayed_heads import GatedLinearAttention, StateSpaceDuality
from attnlib.models.head_embeddings import AddedHeadEmbeddings, MultipliedHeadEmbeddings
from attnlib.models.language import DecoderLM, sample
from attnlib.models.latent import (
    LatentAttention,
    LatentAttentionAfterRotation,
    LatentAttentionBeforeRotation,
)
from attnlib.models.layer_reweaving import LayerReweaving, ReweavingLM
from attnlib.models.merged_projections import (
    EfficientAttention,
    OptimizedAttention,
    SuperAttention,
)
from attnlib.models.multi_head import MultiHeadAttention
from attnlib.models.operators import WITH_PARAMETERS, AdditiveAttention
from attnlib.models.persistent_tokens import PersistentTokens, PictureReader
from attnlib.models.positions import POSITIONS
from attnlib.models.replaced import with_attention
from attnlib.models.titans_layers import MemoryAsContext, MemoryAsGate, MemoryAsLayer
from attnlib.models.unequal_heads import UnequalHeadsAttention
from attnlib.models.vision import VisionTransformer
from attnlib.models.working_memory import FactReader, WorkingMemory
from attnlib.read.hedgehog_attention import HedgehogAttention

WITH_PARAMETERS.update(
    {
        "hedgehog": HedgehogAttention,
        "gated-linear-attention": GatedLinearAttention,
        "state-space-duality": StateSpaceDuality,
    }
)

__all__ = [
    "POSITIONS",
    "AddedHeadEmbeddings",
    "AdditiveAttention",
    "AttentionLayer",
    "Block",
    "DecoderLM",
    "EfficientAttention",
    "FactReader",
    "GatedLinearAttention",
    "HedgehogAttention",
    "LatentAttention",
    "LatentAttentionAfterRotation",
    "LatentAttentionBeforeRotation",
    "LayerReweaving",
    "MemoryAsContext",
    "MemoryAsGate",
    "MemoryAsLayer",
    "MultiHeadAttention",
    "MultipliedHeadEmbeddings",
    "OptimizedAttention",
    "PersistentTokens",
    "PictureReader",
    "ReweavingLM",
    "StateSpaceDuality",
    "SuperAttention",
    "UnequalHeadsAttention",
    "VisionTransformer",
    "WorkingMemory",
    "cache_numbers",
    "sample",
    "with_attention",
]
