"""The derivations of chapter 5.2, heads as experts."""
