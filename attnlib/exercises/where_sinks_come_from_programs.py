"""The programs of chapter 4.1: a sink measured, and a token read from a cache with kept sinks."""

import torch
from torch import Tensor

from attnlib.exercises.answers import call, close, numbers, require, tensor_of
from attnlib.exercises.registry import checker, mutant, solution
from attnlib.probes.sinks import sink_share
from attnlib.score.positions import rotate


def random(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Normal numbers in float64, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


# ---- 4.1.2 the share of sinks


def causal_maps(seed: int) -> Tensor:
    """Causal maps of 2 layers, 5 sequences, 4 heads, each drawn to its first keys more or less."""
    scores, pulls = random(seed, (2, 5, 4, 7, 7), (2, 5, 4, 1, 3))
    scores[..., :3] += 3 * pulls
    return scores.masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf).softmax(-1)


@checker("4.1.2")
def share_of_sinks(answer) -> str:
    """The mean over all maps of [mean over the queries i >= k of w_ik > threshold]."""
    for seed, key, threshold in ((412, 0, 0.6), (413, 0, 0.3), (414, 2, 0.2)):
        maps = causal_maps(seed)
        share = float(numbers(call(answer, maps, key, threshold), 1)[0])
        right = float(sink_share(maps, key, threshold))
        for name, other in _shares_gone_wrong(maps, key, threshold).items():
            require(close(share, right) or not close(share, other), name)
        require(close(share, right), f"key {key}: got {share:.3f}, expected {right:.3f}")
    edge = torch.full((1, 2, 2), 0.5, dtype=torch.float64)
    require(
        close(float(numbers(call(answer, edge, 0, 0.5), 1)[0]), 0.0),
        "a mean of exactly the threshold is no sink: larger, not at least as large",
    )
    return "Right for the first key and a later one, at three thresholds."


def _shares_gone_wrong(maps: Tensor, key: int, threshold: float) -> dict[str, float]:
    seen = maps[..., key:, key].mean(-1)
    others = {
        "the weights are averaged, but a map has a sink or has none: compare first": seen.mean(),
        "heads are averaged before the comparison: a map is one head of one sequence": (
            (seen.mean(-1) > threshold).double().mean()
        ),
        "queries before the key count too: they cannot see it, begin with i = key": (
            (maps[..., key].mean(-1) > threshold).double().mean()
        ),
        "that is the key behind: keys are counted from 0": (
            (maps[..., key + 1 :, key + 1].mean(-1) > threshold).double().mean()
        ),
        "single weights are compared: first the mean over the queries": (
            (maps[..., key:, key] > threshold).double().mean()
        ),
        "a sum over the queries is compared, not their mean": (
            (maps[..., key:, key].sum(-1) > threshold).double().mean()
        ),
        "the threshold is not used: it is an argument": (seen > 0.3).double().mean(),
        "the indicator comes last: compare each map with the threshold, then take the mean": (
            (seen.mean((0, 1, 2)) > threshold).double().mean()
        ),
    }
    return {name: float(other) for name, other in others.items()}


@solution("4.1.2")
def share(weights, key, threshold):
    return (weights[..., key:, key].mean(-1) > threshold).double().mean()


@mutant("4.1.2", "compare first")
def mean_of_the_weights(weights, key, threshold):
    return weights[..., key:, key].mean()


@mutant("4.1.2", "the indicator comes last")
def indicator_of_the_mean(weights, key, threshold):
    return float(weights[..., key:, key].mean() > threshold)


@mutant("4.1.2", "heads are averaged before")
def heads_together(weights, key, threshold):
    seen = weights.mean(-3) if weights.dim() > 3 else weights
    return (seen[..., key:, key].mean(-1) > threshold).double().mean()


@mutant("4.1.2", "they cannot see it")
def all_queries(weights, key, threshold):
    return (weights[..., key].mean(-1) > threshold).double().mean()


@mutant("4.1.2", "counted from 0")
def next_key(weights, key, threshold):
    return (weights[..., key + 1 :, key + 1].mean(-1) > threshold).double().mean()


@mutant("4.1.2", "first the mean over the queries")
def single_weights(weights, key, threshold):
    return (weights[..., key:, key] > threshold).double().mean()


@mutant("4.1.2", "a sum over the queries")
def summed(weights, key, threshold):
    return (weights[..., key:, key].sum(-1) > threshold).double().mean()


@mutant("4.1.2", "the threshold is not used")
def fixed_threshold(weights, key, threshold):
    return (weights[..., key:, key].mean(-1) > 0.3).double().mean()


@mutant("4.1.2", "larger, not at least")
def at_least(weights, key, threshold):
    return (weights[..., key:, key].mean(-1) >= threshold).double().mean()


# ---- 4.1.4 one read from a cache with kept sinks


def kept_tokens(count: int, sinks: int, window: int) -> list[int]:
    """The first `sinks` of `count` tokens and the last `window`, each once, in order."""
    return [j for j in range(count) if j < sinks or j >= count - window]


def read_from(query: Tensor, keys: Tensor, values: Tensor, kept: list[int], places, at) -> Tensor:
    """The read of a query that stands `at`, from keys that stand at `places`."""
    turned = rotate(keys[kept], torch.as_tensor(places))
    scores = turned @ rotate(query[None], torch.tensor([at]))[0] / query.shape[-1] ** 0.5
    return scores.softmax(-1) @ values[kept]


@checker("4.1.4")
def read_of_a_stream(answer) -> str:
    """The newest token reads the first sinks and the last window, positions in the cache."""
    for count, sinks, window in ((3, 2, 4), (12, 2, 4), (30, 0, 5), (30, 3, 6)):
        query, keys, values = random(414 + count, (8,), (count, 8), (count, 5))
        read = call(answer, query, keys, values, sinks, window)
        read = tensor_of(read, (5,), "the read")
        kept = kept_tokens(count, sinks, window)
        right = read_from(query, keys, values, kept, list(range(len(kept))), len(kept) - 1)
        if close(read, right):
            continue
        where = f"{count} tokens, {sinks} sinks, window {window}"
        for name, other in _reads_gone_wrong(query, keys, values, sinks, window).items():
            require(not close(read, other), f"{where}: {name}")
        require(False, f"{where}: wrong; which tokens are kept, and where do they stand?")
    return "Right while the text is short, without sinks, and long after the first tokens left."


def _reads_gone_wrong(query, keys, values, sinks, window) -> dict[str, Tensor]:
    count = len(keys)

    def read(kept, places=None, at=None):
        places = list(range(len(kept))) if places is None else places
        return read_from(query, keys, values, kept, places, len(places) - 1 if at is None else at)

    kept = kept_tokens(count, sinks, window)
    last = list(range(max(0, count - window), count))
    doubled = [*range(min(sinks, count)), *last]
    plain = (keys[kept] @ query / query.shape[-1] ** 0.5).softmax(-1) @ values[kept]
    scores = rotate(keys[kept], torch.arange(len(kept))) @ query / query.shape[-1] ** 0.5
    return {
        "a token that is a sink and in the window is kept twice: each token once": read(doubled),
        "the sinks are gone: the window alone is read": read(last),
        "nothing is left out: all tokens are read": read(list(range(count))),
        "the window is one too short: it holds the newest token and window - 1 before it": read(
            kept_tokens(count, sinks, window - 1)
        ),
        "the window is one too long": read(kept_tokens(count, sinks, window + 1)),
        "the newest token is missing: it reads its own key too": read(kept[:-1]),
        "positions are those of the text: count them in the cache": read(kept, kept, count - 1),
        "the query stands at its place in the text: its place is in the cache too": read(
            kept, at=count - 1
        ),
        "nothing is rotated: turn query and keys by their positions": plain,
        "the query is not rotated": scores.softmax(-1) @ values[kept],
        "the sinks stand behind the window: they come first": read(
            kept, [*range(len(kept) - sinks, len(kept)), *range(len(kept) - sinks)]
        ),
    }


def _answer(kept_of, places_of=None, at_of=None):
    """An answer made from which tokens it keeps, where they stand, and where the query stands."""

    def answer(query, keys, values, sinks, window):
        kept = kept_of(len(keys), sinks, window)
        places = list(range(len(kept))) if places_of is None else places_of(kept)
        at = len(kept) - 1 if at_of is None else at_of(len(keys))
        return read_from(query, keys, values, kept, places, at)

    return answer


@solution("4.1.4")
def streaming_read(query, keys, values, sinks, window):
    count = len(keys)
    kept = torch.arange(count)
    kept = kept[(kept < sinks) | (kept >= count - window)]
    place = torch.arange(len(kept))
    scores = rotate(keys[kept], place) @ rotate(query[None], place[-1:])[0]
    return (scores / query.shape[-1] ** 0.5).softmax(-1) @ values[kept]


mutant("4.1.4", "the sinks are gone", "evicted sinks")(
    _answer(lambda n, s, w: kept_tokens(n, 0, w))
)
mutant("4.1.4", "one too short", "short window")(_answer(lambda n, s, w: kept_tokens(n, s, w - 1)))
mutant("4.1.4", "one too long", "long window")(_answer(lambda n, s, w: kept_tokens(n, s, w + 1)))
mutant("4.1.4", "those of the text", "places in the text")(
    _answer(kept_tokens, lambda kept: kept, lambda count: count - 1)
)
mutant("4.1.4", "its place is in the cache too", "query in the text")(
    _answer(kept_tokens, at_of=lambda count: count - 1)
)
mutant("4.1.4", "kept twice", "sinks twice")(
    _answer(lambda n, s, w: [*range(min(s, n)), *range(max(0, n - w), n)])
)
mutant("4.1.4", "the newest token is missing", "no own key")(
    _answer(lambda n, s, w: kept_tokens(n, s, w)[:-1])
)
mutant("4.1.4", "nothing is left out", "everything")(_answer(lambda n, s, w: list(range(n))))


@mutant("4.1.4", "nothing is rotated")
def without_positions(query, keys, values, sinks, window):
    kept = kept_tokens(len(keys), sinks, window)
    return (keys[kept] @ query / query.shape[-1] ** 0.5).softmax(-1) @ values[kept]


@mutant("4.1.4", "must have shape")
def one_row_too_many(query, keys, values, sinks, window):
    return streaming_read(query, keys, values, sinks, window)[None]


# ---- 4.1.5 a property that exposes broken null logits


@checker("4.1.5")
def property_that_exposes_null_bugs(answer) -> str:
    """A function null_attention -> bool: True for right forms, False for four that are wrong."""
    for name, form in RIGHT_FORMS.items():
        require(_verdict(answer, form), f"your property rejects a right form: {name}")
    for name, form in BROKEN_FORMS.items():
        require(not _verdict(answer, form), f"your property accepts a broken form: {name}")
    return "Two right forms pass, four broken ones do not."


def _verdict(answer, form) -> bool:
    def unnamed(query, key, value):
        return form(query, key, value)

    verdict = call(answer, unnamed)
    if isinstance(verdict, Tensor) and verdict.numel() == 1:
        verdict = verdict.item()
    require(isinstance(verdict, bool), f"return True or False, got {type(verdict).__name__}")
    return verdict


def _scores(query, key):
    return query @ key.mT / query.shape[-1] ** 0.5


def _one_more_key(query, key, value):
    scores = torch.nn.functional.pad(_scores(query, key), (1, 0))
    return scores.softmax(-1)[..., 1:] @ value


def _gated(query, key, value):
    scores = _scores(query, key)
    return torch.sigmoid(scores.logsumexp(-1, keepdim=True)) * (scores.softmax(-1) @ value)


def _null_not_shifted(query, key, value):
    scores = _scores(query, key)
    sizes = (scores - scores.amax(-1, keepdim=True)).exp()
    return sizes / (1 + sizes.sum(-1, keepdim=True)) @ value


def _a_null_for_each_key(query, key, value):
    scores = _scores(query, key)
    total = torch.logaddexp(scores, torch.zeros_like(scores)).logsumexp(-1, keepdim=True)
    return (scores - total).exp() @ value


def _normalized_again(query, key, value):
    return _scores(query, key).softmax(-1) @ value


def _larger_of_both(query, key, value):
    scores = _scores(query, key)
    total = scores.logsumexp(-1, keepdim=True).clamp(min=0.0)
    return (scores - total).exp() @ value


RIGHT_FORMS = {
    "the plain one": _one_more_key,
    "the gate times softmax (compare with a tolerance, not exactly)": _gated,
}
BROKEN_FORMS = {
    "the rows sum to one, so its null has been divided away": _normalized_again,
    "it has one null for each key": _a_null_for_each_key,
    "it takes the larger of null and keys instead of their sum": _larger_of_both,
    "it subtracts the largest score from the keys and forgets the null": _null_not_shifted,
}


def _compared(form, width: int, size: float, count: int = 6, seed: int = 415):
    """The read of a form and the right one, on random inputs of this size."""
    query, key, value = random(seed, (count, width), (count, width), (count, 3))
    return form(size * query, key, value), _one_more_key(size * query, key, value)


@solution("4.1.5")
def equal_on_small_and_large_scores(null_attention) -> bool:
    """Compare with a softmax over one more key of zeros, small scores and large ones."""
    return all(torch.allclose(*_compared(null_attention, 4, size)) for size in (0.1, 1.0, 30.0))


@mutant("4.1.5", "rejects a right form: the plain one")
def always_false(null_attention):
    return False


@mutant("4.1.5", "with a tolerance")
def exactly_equal(null_attention):
    return torch.equal(*_compared(null_attention, 4, 1.0))


@mutant("4.1.5", "divided away")
def finite_reads(null_attention):
    return bool(_compared(null_attention, 4, 100.0)[0].isfinite().all())


@mutant("4.1.5", "divided away")
def large_scores_alone(null_attention):
    query = 100 * torch.ones(2, 4, dtype=torch.float64)
    value = torch.ones(2, 3, dtype=torch.float64)
    return torch.allclose(null_attention(query, query, value), value)


@mutant("4.1.5", "one null for each key")
def a_single_key(null_attention):
    return torch.allclose(*_compared(null_attention, 4, 1.0, count=1))


@mutant("4.1.5", "the larger of null and keys")
def a_large_null_alone(null_attention):
    query, key = -10 * torch.ones(2, 4).double(), torch.ones(2, 4).double()
    value = torch.ones(2, 3).double()
    wanted = _one_more_key(query, key, value)
    return torch.allclose(null_attention(query, key, value), wanted, rtol=1e-3, atol=0.0)


@mutant("4.1.5", "forgets the null")
def scores_of_zero(null_attention):
    return torch.allclose(*_compared(null_attention, 4, 0.0))


@mutant("4.1.5", "return True or False, got Tensor")
def not_a_bool(null_attention):
    read, wanted = _compared(null_attention, 4, 1.0)
    return read == wanted
