"""The derivations of chapter 4.1, where attention sinks come from."""
