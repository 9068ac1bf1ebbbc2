"""The attention mechanisms of an executable textbook.

attention = score -> support -> weight -> read -> memory: a module for each step, `attend` for all
of them in one dense function, and mechanisms that change one step or compute it faster.
"""

from attnlib import memory, read, score, support, weight
from attnlib.atlas import Promises, Taxonomy, all_mechanisms, get, mechanism
from attnlib.attend import attend
from attnlib.memory.additive_recurrence import additive_recurrence, additive_recurrence_step
from attnlib.memory.cache import KeyValueCache, softmax_attention_step
from attnlib.memory.decayed_state import (
    decayed_attention,
    decayed_attention_dense,
    decayed_attention_step,
)
from attnlib.memory.delta_attention import delta_rule_attention, gated_delta_rule_attention
from attnlib.memory.dynamical_system import System, dynamical_system
from attnlib.memory.fixed_cache import FixedCache
from attnlib.memory.gated_linear import gated_linear_attention
from attnlib.memory.hebbian import hebbian_attention
from attnlib.memory.hgrn2 import hgrn2_attention
from attnlib.memory.hopfield import hopfield_attention
from attnlib.memory.latent import (
    LatentCache,
    explicit_latent_attention,
    latent_attention,
    latent_attention_step,
)
from attnlib.memory.lightning import lightning_attention
from attnlib.memory.miras_attention import memora_attention, moneta_attention, yaad_attention
from attnlib.memory.neural_memory_attention import linear_memory_attention, neural_memory_attention
from attnlib.memory.reinforced_pathways import reinforced_attention
from attnlib.memory.retention import retention
from attnlib.memory.short_long import short_long_convolution
from attnlib.memory.split_decode import split_decode
from attnlib.memory.state_space_duality import state_space_duality
from attnlib.memory.streaming_attention import streaming_attention, streaming_attention_step
from attnlib.memory.streaming_cache import StreamingCache
from attnlib.memory.test_time_training import ttt_linear_attention
from attnlib.memory.tree import tree_attention
from attnlib.read.agent_attention import agent_attention
from attnlib.read.all_or_here import all_or_here_attention
from attnlib.read.attention_experts import soft_attention_experts
from attnlib.read.based_attention import based_attention
from attnlib.read.bidirectional import bidirectional_attention
from attnlib.read.block_sparse import block_sparse_attention
from attnlib.read.branches import mixed_branches
from attnlib.read.chunked_softmax import chunked_softmax_attention
from attnlib.read.disc_attention import disc_attention
from attnlib.read.efficient_attention import efficient_attention
from attnlib.read.fastmax_attention import fastmax_attention
from attnlib.read.flash_attention import flash_attention
from attnlib.read.flow_attention import flow_attention, flow_attention_step
from attnlib.read.foveal_attention import aggregated_attention, foveal_attention
from attnlib.read.halo_attention import halo_attention
from attnlib.read.hashed_attention import hashed_attention
from attnlib.read.head_routing import (
    level_two_way_gates,
    relu_gates,
    renormalized_gates,
    top_k_gates,
    two_way_gates,
)
from attnlib.read.head_spans import SpanRule, head_spans_attention
from attnlib.read.hedgehog_attention import HedgehogAttention, hedgehog_attention
from attnlib.read.hybrid_heads import hybrid_heads
from attnlib.read.injective_attention import injective_attention
from attnlib.read.landmark_attention import landmark_attention
from attnlib.read.leave_one_out import all_but_one_gates
from attnlib.read.linear_attention import (
    LinearState,
    feature_map_attention,
    linear_attention,
    linear_attention_step,
)
from attnlib.read.log_normal_attention import log_normal_attention
from attnlib.read.mixture_of_blocks import moba_attention
from attnlib.read.mixture_of_groups import mixture_of_groups_attention
from attnlib.read.native_sparse_attention import NativeSparseAttention, native_sparse_attention
from attnlib.read.neighborhood_attention import (
    generalized_neighborhood_attention,
    neighborhood_attention,
)
from attnlib.read.performer import performer_attention
from attnlib.read.pointing import pointer_attention
from attnlib.read.radial_attention import radial_attention
from attnlib.read.rank_augmented import rank_augmented_attention
from attnlib.read.rectangle_attention import rectangle_attention
from attnlib.read.routing_attention import RoutingAttention, routing_attention
from attnlib.read.shared_heads import (
    grouped_query_attention,
    multi_query_attention,
    unequal_heads_attention,
)
from attnlib.read.skipped_heads import gated_heads_attention, skipped_heads_attention
from attnlib.read.sub_tokens import merge_tokens, split_tokens
from attnlib.read.task_global import task_global_attention
from attnlib.read.taylor_attention import taylor_attention
from attnlib.read.window_attention import window_attention
from attnlib.score.additive_attention import additive_attention
from attnlib.weight.context_broadcasting import context_broadcasting
from attnlib.weight.entmax_attention import (
    entmax15_attention,
    entmax_attention,
    sparsemax_attention,
)
from attnlib.weight.gaussian_features import gaussian_adaptive_attention
from attnlib.weight.key_bias_attention import KeyBiasAttention, key_bias_attention
from attnlib.weight.latent_gate import gated_by_latent
from attnlib.weight.null_logit_attention import NullLogitAttention, null_logit_attention
from attnlib.weight.rectified_attention import relu_attention, squared_relu_attention
from attnlib.weight.sigmoid_attention import sigmoid_attention
from attnlib.weight.signed_attention import signed_attention
from attnlib.weight.soft_mask import soft_masked_attention
from attnlib.weight.softmax_attention import softmax_attention
from attnlib.weight.softplus_attention import (
    reweighted_softplus_attention,
    softplus_attention,
)
from attnlib.weight.uniform_attention import uniform_attention

__version__ = "0.1.0"

__all__ = [
    "FixedCache",
    "HedgehogAttention",
    "KeyBiasAttention",
    "KeyValueCache",
    "LatentCache",
    "LinearState",
    "NativeSparseAttention",
    "NullLogitAttention",
    "Promises",
    "RoutingAttention",
    "SpanRule",
    "StreamingCache",
    "System",
    "Taxonomy",
    "additive_attention",
    "additive_recurrence",
    "additive_recurrence_step",
    "agent_attention",
    "aggregated_attention",
    "all_but_one_gates",
    "all_mechanisms",
    "all_or_here_attention",
    "attend",
    "based_attention",
    "bidirectional_attention",
    "block_sparse_attention",
    "chunked_softmax_attention",
    "context_broadcasting",
    "decayed_attention",
    "decayed_attention_dense",
    "decayed_attention_step",
    "delta_rule_attention",
    "disc_attention",
    "dynamical_system",
    "efficient_attention",
    "entmax15_attention",
    "entmax_attention",
    "explicit_latent_attention",
    "fastmax_attention",
    "feature_map_attention",
    "flash_attention",
    "flow_attention",
    "flow_attention_step",
    "foveal_attention",
    "gated_by_latent",
    "gated_delta_rule_attention",
    "gated_heads_attention",
    "gated_linear_attention",
    "gaussian_adaptive_attention",
    "generalized_neighborhood_attention",
    "get",
    "grouped_query_attention",
    "halo_attention",
    "hashed_attention",
    "head_spans_attention",
    "hebbian_attention",
    "hedgehog_attention",
    "hgrn2_attention",
    "hopfield_attention",
    "hybrid_heads",
    "injective_attention",
    "key_bias_attention",
    "landmark_attention",
    "latent_attention",
    "latent_attention_step",
    "level_two_way_gates",
    "lightning_attention",
    "linear_attention",
    "linear_attention_step",
    "linear_memory_attention",
    "log_normal_attention",
    "mechanism",
    "memora_attention",
    "memory",
    "merge_tokens",
    "mixed_branches",
    "mixture_of_groups_attention",
    "moba_attention",
    "moneta_attention",
    "multi_query_attention",
    "native_sparse_attention",
    "neighborhood_attention",
    "neural_memory_attention",
    "null_logit_attention",
    "performer_attention",
    "pointer_attention",
    "radial_attention",
    "rank_augmented_attention",
    "read",
    "rectangle_attention",
    "reinforced_attention",
    "relu_attention",
    "relu_gates",
    "renormalized_gates",
    "retention",
    "reweighted_softplus_attention",
    "routing_attention",
    "score",
    "short_long_convolution",
    "sigmoid_attention",
    "signed_attention",
    "skipped_heads_attention",
    "soft_attention_experts",
    "soft_masked_attention",
    "softmax_attention",
    "softmax_attention_step",
    "softplus_attention",
    "sparsemax_attention",
    "split_decode",
    "split_tokens",
    "squared_relu_attention",
    "state_space_duality",
    "streaming_attention",
    "streaming_attention_step",
    "support",
    "task_global_attention",
    "taylor_attention",
    "top_k_gates",
    "tree_attention",
    "ttt_linear_attention",
    "two_way_gates",
    "unequal_heads_attention",
    "uniform_attention",
    "weight",
    "window_attention",
    "yaad_attention",
]
