"""Checked exercises of chapter 6.1, the support chosen by content: derivations and measurements."""
