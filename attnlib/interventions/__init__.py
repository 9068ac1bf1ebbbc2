"""Interventions: changes to a forward pass that are undone afterwards, whatever happens."""

from attnlib.interventions.hooks import (
    hidden_key,
    injected,
    replaced_value,
    without_heads,
    without_perceptron,
)
from attnlib.interventions.streaming import streamed

__all__ = [
    "hidden_key",
    "injected",
    "replaced_value",
    "streamed",
    "without_heads",
    "without_perceptron",
]
