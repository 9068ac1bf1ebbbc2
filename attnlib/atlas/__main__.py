"""`python -m attnlib.atlas`: write book/atlas.json."""

from attnlib.atlas.export import write

print(f"wrote {write().name}")
