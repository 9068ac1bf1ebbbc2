"""Interventions: changes to a forward pass that are undone afterwards, whatever happens."""

from attnlib.interventions.hooks import (
    injected,
    replaced_value,
    without_heads,
    without_perceptron,
)

__all__ = ["injected", "replaced_value", "without_heads", "without_perceptron"]
