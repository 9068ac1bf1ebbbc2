"""Probes: what a model attends to and how large its numbers are, read without changing it."""

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
