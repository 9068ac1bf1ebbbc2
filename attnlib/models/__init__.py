"""Small models, each about a page, that take any operator and position scheme by name."""

from attnlib.models.aggregated_foveal import AggregatedAttention
from attnlib.models.all_or_here import AllOrHere
from attnlib.models.attention_layer import AttentionLayer, cache_numbers
from attnlib.models.blocks import Block
from attnlib.models.channel_attention import ChannelAttention
from attnlib.models.decayed_heads import GatedLinearAttention, StateSpaceDuality
from attnlib.models.gated_positional import GatedPositionalAttention
from attnlib.models.grid_operators import NearDisc, NearFovea, RowWindows
from attnlib.models.group_pose import GroupPoseAttention
from attnlib.models.head_embeddings import AddedHeadEmbeddings, MultipliedHeadEmbeddings
from attnlib.models.landmark_language import LandmarkLM
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
from attnlib.models.mixture_of_sparse_heads import MixtureOfSparseHeads
from attnlib.models.multi_head import MultiHeadAttention
from attnlib.models.operators import WITH_PARAMETERS, AdditiveAttention
from attnlib.models.persistent_tokens import PersistentTokens, PictureReader
from attnlib.models.positions import POSITIONS
from attnlib.models.rectangle_windows import RectangleWindowAttention
from attnlib.models.replaced import with_attention
from attnlib.models.routed_operators import GroupedQueries, RoutedShares
from attnlib.models.sparse_operators import MeanLandmarks, MixtureOfBlocks, NearBlocks
from attnlib.models.titans_layers import MemoryAsContext, MemoryAsGate, MemoryAsLayer
from attnlib.models.unequal_heads import UnequalHeadsAttention
from attnlib.models.vision import VisionTransformer
from attnlib.models.working_memory import FactReader, WorkingMemory
from attnlib.read.hedgehog_attention import HedgehogAttention
from attnlib.read.native_sparse_attention import NativeSparseAttention

WITH_PARAMETERS.update(
    {
        "hedgehog": HedgehogAttention,
        "gated-linear-attention": GatedLinearAttention,
        "state-space-duality": StateSpaceDuality,
        "block-sparse": NearBlocks,
        "clear-conv-like": NearDisc,
        "foveal": NearFovea,
        "landmark-attention": MeanLandmarks,
        "moba": MixtureOfBlocks,
        "moga-groups": GroupedQueries,
        "rectangle-windows": RowWindows,
        "routing-transformer": RoutedShares,
        "yuan-2025": NativeSparseAttention,
    }
)

__all__ = [
    "POSITIONS",
    "AddedHeadEmbeddings",
    "AdditiveAttention",
    "AggregatedAttention",
    "AllOrHere",
    "AttentionLayer",
    "Block",
    "ChannelAttention",
    "DecoderLM",
    "EfficientAttention",
    "FactReader",
    "GatedLinearAttention",
    "GatedPositionalAttention",
    "GroupPoseAttention",
    "HedgehogAttention",
    "LandmarkLM",
    "LatentAttention",
    "LatentAttentionAfterRotation",
    "LatentAttentionBeforeRotation",
    "LayerReweaving",
    "MemoryAsContext",
    "MemoryAsGate",
    "MemoryAsLayer",
    "MixtureOfSparseHeads",
    "MultiHeadAttention",
    "MultipliedHeadEmbeddings",
    "OptimizedAttention",
    "PersistentTokens",
    "PictureReader",
    "RectangleWindowAttention",
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
