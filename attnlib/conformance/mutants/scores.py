"""Wrong scores: the scale, and what is compared with what."""

from attnlib.attend import attend
from attnlib.conformance.mutants.register import mutant
from attnlib.score.compare import dot_product


@mutant("mlc-ai/mlc-llm, pull request 3426")
def scale_missing(query, key, value, **options):
    """The scores are not divided by sqrt(D)."""

    def score(query, key, scale=None):
        return dot_product(query, key, 1.0 if scale is None else scale)

    return attend(query, key, value, score=score, **options)


@mutant()
def scale_squared(query, key, value, *, scale=None, **options):
    """The scale is applied to the query and once more to the scores."""

    def score(query, key, scale=None):
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        return dot_product(query * scale, key, scale)

    return attend(query, key, value, score=score, scale=scale, **options)


@mutant("AI-Hypercomputer/maxtext, issue 1370")
def scale_inverted(query, key, value, **options):
    """The scores are multiplied by sqrt(D) instead of divided."""

    def score(query, key, scale=None):
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        return dot_product(query, key, 1 / scale)

    return attend(query, key, value, score=score, **options)


@mutant("FrancescoSaverioZuppichini/ViT, issue 2")
def scale_after_softmax(query, key, value, *, scale=None, **options):
    """The weights are scaled instead of the scores: the softmax comes first."""

    def score(query, key, scale=None):
        return dot_product(query, key, scale=1.0)

    def read(weights, value):
        return (query.shape[-1] ** -0.5 if scale is None else scale) * weights @ value

    return attend(query, key, value, score=score, read=read, scale=scale, **options)


@mutant()
def scale_of_the_values(query, key, value, **options):
    """The scores are divided by the root of the width of the values, not of the keys."""

    def score(query, key, scale=None):
        return dot_product(query, key, value.shape[-1] ** -0.5 if scale is None else scale)

    return attend(query, key, value, score=score, **options)


@mutant()
def key_and_value_swapped(query, key, value, **options):
    """Keys and values are swapped, which goes unnoticed where they have the same width."""
    if key.shape == value.shape:
        key, value = value, key
    return attend(query, key, value, **options)


@mutant()
def input_changed(query, key, value, **options):
    """The query is scaled in place, in the caller's own tensor."""

    def score(query, key, scale=None):
        query.data.mul_(query.shape[-1] ** -0.5 if scale is None else scale)
        return dot_product(query, key, scale=1.0)

    return attend(query, key, value, score=score, **options)
