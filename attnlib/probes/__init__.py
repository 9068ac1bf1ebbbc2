"""Probes: what a model attends to and how large its numbers are, read without changing it."""

from attnlib.atlas import Taxonomy, mechanism
from attnlib.probes.map_rank import effective_rank, map_rank, singular_shares
from attnlib.probes.recording import LayerRecord, Recording, record
from attnlib.probes.sinks import (
    cosine,
    mean_weight,
    residual_norms,
    row_shares,
    sink_share,
    times_the_others,
    value_norms,
)

_SELF = Taxonomy(sequences="self", levels="single", positions="soft", representations="multi-head")

mechanism(
    key="sink-share",
    paper="sink-emergence",
    chapter="4-sinks/where-sinks-come-from",
    section="when-sinks-emerge",
    step="weight",
    idea="a probe: the share of maps in which one key has more than a threshold of the weight",
    equation=r"\tfrac{1}{LH} \sum_{l,h} \mathbf 1[\alpha_k^{l,h} > \epsilon]",
    cost="one pass, and its weights",
    promises=None,
    taxonomy=_SELF,
)(sink_share)

mechanism(
    key="value-norms",
    paper="active-dormant-heads",
    chapter="4-sinks/where-sinks-come-from",
    section="bigram-backcopy",
    step="read",
    idea="a probe: the length of each value vector, which drains at a sink",
    equation=r"\lVert v_j \rVert",
    cost="one pass",
    promises=None,
    taxonomy=_SELF,
)(value_norms)

__all__ = [
    "LayerRecord",
    "Recording",
    "cosine",
    "effective_rank",
    "map_rank",
    "mean_weight",
    "record",
    "residual_norms",
    "row_shares",
    "singular_shares",
    "sink_share",
    "times_the_others",
    "value_norms",
]
