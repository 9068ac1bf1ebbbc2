"""Interventions: changes to a forward pass that are undone afterwards, whatever happens."""

from attnlib.atlas import Taxonomy, mechanism
from attnlib.interventions.hooks import (
    hidden_key,
    injected,
    replaced_value,
    without_heads,
    without_perceptron,
)
from attnlib.interventions.streaming import streamed

_SELF = Taxonomy(sequences="self", levels="single", positions="soft", representations="multi-head")

mechanism(
    key="injected-direction",
    paper="secondary-sinks",
    chapter="4-sinks/where-sinks-come-from",
    section="secondary-sinks",
    step="memory",
    idea="an intervention: a vector is added to one token before a layer, and a key becomes a sink",
    equation=r"x_j \leftarrow x_j + c\, u",
    cost="one addition",
    promises=None,
    taxonomy=_SELF,
)(injected)

mechanism(
    key="without-heads",
    paper="sixteen-heads",
    chapter="5-heads/mixtures-of-heads",
    section="all-gates-at-one",
    step="read",
    idea="an intervention: some heads add nothing to the sum over heads",
    equation=r"\sum_h g_h W^O_h o_h, \quad g_h \in \{0, 1\}",
    cost="one product",
    promises=None,
    taxonomy=_SELF,
)(without_heads)

__all__ = [
    "hidden_key",
    "injected",
    "replaced_value",
    "streamed",
    "without_heads",
    "without_perceptron",
]
