"""Mixtures whose experts are heads, branches or parts of tokens."""
