"""Interventions: changes to a forward pass that are undone afterwards, whatever happens."""
