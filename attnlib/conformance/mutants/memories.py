"""Wrong memories: forms for one token at a time that look in the wrong place."""

from attnlib.attend import attend
from attnlib.conformance.mutants.register import mutant
from attnlib.memory.cache import KeyValueCache


@mutant(meant_for="step")
def state_is_stale(cache, query, key, value):
    """The token reads the cache before its own key and value are appended."""
    if cache is None:
        cache = KeyValueCache(key[..., :0, :], value[..., :0, :])
    return attend(query, cache.key, cache.value), cache.append(key, value)


@mutant("pytorch/pytorch, issue 103082", meant_for="step")
def step_without_offset(cache, query, key, value):
    """The causal mask of a single row starts at the first key: all later ones are hidden."""
    cache = KeyValueCache(key, value) if cache is None else cache.append(key, value)
    return attend(query, cache.key, cache.value, is_causal=True), cache
