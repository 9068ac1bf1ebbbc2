"""Probes: what a model attends to and how large its numbers are, read without changing it."""
