"""Checked exercises of chapter 8.1, windows and neighborhoods: derivations and measurements."""
