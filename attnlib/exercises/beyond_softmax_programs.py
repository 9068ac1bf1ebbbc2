"""The exercises of chapter 2.1 on writing a weight: a sigmoid that counts, and 1.5-entmax."""

import torch
from torch import Tensor

from attnlib.attend import attend
from attnlib.exercises.answers import call, close, require, tensor_of
from attnlib.exercises.registry import checker, mutant, solution
from attnlib.weight.entmax import entmax15, sparsemax
from attnlib.weight.sigmoid import sigmoid


def random(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Normal numbers in float64, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


# ---- 2.1.3 sigmoid attention in which n is the number of keys that a row sees

SHAPES = (2, 5, 4), (2, 7, 4), (2, 7, 3)


@checker("2.1.3")
def sigmoid_that_counts(answer) -> str:
    """sigmoid(q.k / sqrt(D) - log n_i) v over the allowed keys, n_i counted row by row."""
    query, key, value = random(213, *SHAPES)
    every = torch.ones(2, 5, 7, dtype=torch.bool)
    got = tensor_of(call(answer, query, key, value, every), (2, 5, 3), "the read")
    _everything_allowed(got, query, key, value)
    causal = torch.ones(5, 7).tril(2).bool().expand(2, 5, 7)
    got = tensor_of(call(answer, query, key, value, causal), (2, 5, 3), "the read")
    _under_a_mask(got, query, key, value, causal)
    for row in (0, 3):
        alone = call(answer, query[:, row : row + 1], key, value, causal[:, row : row + 1])
        require(close(alone, got[:, row : row + 1]), "a query alone reads something else")
    _nothing_allowed(answer, query, key, value, causal)
    far = call(answer, 1e4 * query, key, value, causal)
    right = attend(1e4 * query, key, value, weight=sigmoid, attn_mask=causal)
    require(close(far, right), "right for small scores, wrong for large ones: use torch.sigmoid")
    return "Each row counts its own keys, a row without keys reads zero, large scores are safe."


def _everything_allowed(got: Tensor, query: Tensor, key: Tensor, value: Tensor) -> None:
    for scale, message in ((1.0, "the scale 1/sqrt(D) is missing"), (0.25, "the scale is 1/D")):
        near = attend(query, key, value, weight=sigmoid, scale=scale)
        require(not close(got, near), message)
    likely = {
        "that is softmax: nothing divides by the sum of a row": attend(query, key, value),
        "the bias is missing": _with_bias(query, key, value, 0.0),
        "the sign of the bias: subtract log n": _with_bias(query, key, value, 1.9459101),
        "the bias is -log n, not -log(n + 1)": _with_bias(query, key, value, -2.0794415),
        "the weights are divided by n: that is what the bias is for": (
            _with_bias(query, key, value, 0.0) / 7
        ),
    }
    for message, wrong in likely.items():
        require(not close(got, wrong, 1e-5), message)
    right = attend(query, key, value, weight=sigmoid)
    require(close(got, right), "already wrong where every key is allowed")


def _with_bias(query: Tensor, key: Tensor, value: Tensor, bias: float, allowed=None) -> Tensor:
    return attend(
        query,
        key,
        value,
        weight=lambda scores, support: sigmoid(scores, support, bias=bias),
        attn_mask=allowed,
    )


def _under_a_mask(got: Tensor, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> None:
    right = attend(query, key, value, weight=sigmoid, attn_mask=allowed)
    length = _with_bias(query, key, value, -1.9459101, allowed)
    require(not close(got, length, 1e-5), "n is the length of the tensor: count the allowed keys")
    require(
        not close(got, attend(query, key, value, weight=sigmoid)),
        "allowed is not looked at",
    )
    counted = _hidden_at_half(query, key, value, allowed)
    require(
        not close(got, counted),
        "a hidden key still has weight: sigmoid(0 + b) is not 0; hide after the sigmoid",
    )
    require(close(got, right), "right without a mask, wrong with one: is n counted row by row?")


def _hidden_at_half(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
    scores = (query @ key.mT / 2).masked_fill(~allowed, 0.0)
    return torch.sigmoid(scores - allowed.sum(-1, keepdim=True).log()) @ value


def _nothing_allowed(answer, query, key, value, allowed) -> None:
    allowed = allowed.clone()
    allowed[:, 2] = False
    got = tensor_of(call(answer, query, key, value, allowed), (2, 5, 3), "the read")
    require(not got.isnan().any(), "a row without keys gives NaN: log 0 is minus infinity")
    require(not got[:, 2].any(), "a row without keys must read zero")


@solution("2.1.3")
def counting_sigmoid(query, key, value, allowed):
    scores = query @ key.mT / query.shape[-1] ** 0.5
    n = allowed.sum(-1, keepdim=True).clamp(min=1)
    weights = torch.sigmoid(scores - n.log())
    return (weights * allowed) @ value


def _by_hand(query, key, value, allowed, bias, power=0.5):
    scores = query @ key.mT / query.shape[-1] ** power
    return (torch.sigmoid(scores + bias) * allowed) @ value


def _count(allowed):
    return allowed.sum(-1, keepdim=True).clamp(min=1)


@mutant("2.1.3", "1/sqrt(D) is missing")
def unscaled(query, key, value, allowed):
    return _by_hand(query, key, value, allowed, -_count(allowed).log(), power=0)


@mutant("2.1.3", "the scale is 1/D")
def scale_squared(query, key, value, allowed):
    return _by_hand(query, key, value, allowed, -_count(allowed).log(), power=1)


@mutant("2.1.3", "that is softmax")
def softmax_after_all(query, key, value, allowed):
    return attend(query, key, value, attn_mask=allowed)


@mutant("2.1.3", "the bias is missing")
def no_bias(query, key, value, allowed):
    return _by_hand(query, key, value, allowed, 0.0)


@mutant("2.1.3", "sign of the bias")
def bias_added(query, key, value, allowed):
    return _by_hand(query, key, value, allowed, _count(allowed).log())


@mutant("2.1.3", "not -log(n + 1)")
def one_key_too_many(query, key, value, allowed):
    return _by_hand(query, key, value, allowed, -(_count(allowed) + 1).log())


@mutant("2.1.3", "what the bias is for")
def divided_by_n(query, key, value, allowed):
    return _by_hand(query, key, value, allowed, 0.0) / _count(allowed)


@mutant("2.1.3", "length of the tensor")
def bias_of_the_length(query, key, value, allowed):
    return _by_hand(query, key, value, allowed, -torch.tensor(float(key.shape[-2])).log())


@mutant("2.1.3", "allowed is not looked at")
def mask_ignored(query, key, value, allowed):
    return attend(query, key, value, weight=sigmoid)


@mutant("2.1.3", "hide after the sigmoid")
def hidden_scores_zero(query, key, value, allowed):
    return _hidden_at_half(query, key, value, allowed)


@mutant("2.1.3", "row by row")
def one_count_for_all_rows(query, key, value, allowed):
    mean = allowed.double().sum(-1).mean()
    return _by_hand(query, key, value, allowed, -mean.log())


@mutant("2.1.3", "gives NaN")
def minus_infinity_from_the_count(query, key, value, allowed):
    bias = -allowed.sum(-1, keepdim=True).log()
    return _by_hand(query, key, value, allowed, bias - bias.isinf() * bias)


@mutant("2.1.3", "must read zero")
def empty_rows_see_all(query, key, value, allowed):
    allowed = allowed | ~allowed.any(-1, keepdim=True)
    return attend(query, key, value, weight=sigmoid, attn_mask=allowed)


@mutant("2.1.3", "use torch.sigmoid")
def powers_that_overflow(query, key, value, allowed):
    powers = torch.exp(query @ key.mT / query.shape[-1] ** 0.5 - _count(allowed).log())
    return (powers / (1 + powers)).nan_to_num() * allowed @ value


# ---- 2.1.4 1.5-entmax by sorting


@checker("2.1.4")
def entmax_by_sorting(answer) -> str:
    """[s / 2 - tau]_+^2 with the tau that makes the row sum to one, for any shape and size."""
    hand = torch.tensor([2.0, 1.6, -1.0], dtype=torch.float64)
    got = tensor_of(call(answer, hand), (3,), "the weights")
    all_keys = torch.ones(3, dtype=torch.bool)
    require(not close(got, hand.softmax(-1)), "that is softmax")
    require(not close(got, sparsemax(hand, all_keys)), "that is sparsemax: halve, then square")
    require(not close(got, (0.8, 0.6, 0.0)), "not squared: s / 2 - tau is 0.8 and 0.6 here")
    require(close(got.sum(), 1.0), f"the weights of 2, 1.6 and -1 sum to {got.sum():.3f}, not to 1")
    require(close(got, (0.64, 0.36, 0.0)), "wrong on the scores 2, 1.6 and -1 of Exercise 2.1.2")
    scores = random(214, (3, 4, 9))[0]
    _many_rows(answer, scores)
    shuffled = scores[..., torch.tensor([5, 2, 8, 0, 3, 7, 1, 6, 4])]
    got = tensor_of(call(answer, shuffled), (3, 4, 9), "the weights")
    require(close(got, _right(shuffled)), "shuffled scores must have shuffled weights")
    for shift in (1e4, -1e4):
        got = tensor_of(call(answer, scores + shift), (3, 4, 9), "the weights")
        require(
            close(got, _right(scores + shift), 1e-5),
            f"wrong near {shift:.0f}: subtract the highest score first, the weights stay the same",
        )
    equal = torch.zeros(2, 5, dtype=torch.float64)
    got = tensor_of(call(answer, equal), (2, 5), "the weights")
    require(close(got, equal + 0.2), "equal scores must share: 1/5 each of five")
    got = tensor_of(call(answer, equal[:, :1]), (2, 1), "the weights")
    require(close(got, equal[:, :1] + 1), "a single key must have weight 1")
    return "Exact: the sum is one, zeros are zeros, and rows of any size and shift are right."


def _right(scores: Tensor) -> Tensor:
    return entmax15(scores, torch.ones_like(scores, dtype=torch.bool))


def _many_rows(answer, scores: Tensor) -> None:
    got = tensor_of(call(answer, scores), (3, 4, 9), "the weights")
    right = _right(scores)
    flat = _right(scores.flatten()).view_as(scores)
    require(not close(got, flat), "one threshold for all rows: sort and sum along the last axis")
    require(not close(got, _right(scores.mT).mT), "the wrong axis: rows lie along the last one")
    ranked = scores.sort(-1, descending=True).values
    require(
        not close(got, _right(ranked)),
        "the weights come out in sorted order: apply tau to the scores as they were given",
    )
    more = ((got > 0).sum(-1) != (right > 0).sum(-1)).any()
    require(
        not more,
        "the wrong number of keys has weight: k is the last place whose own s / 2 is above its tau",
    )
    require(close(got, right), "the right keys have weight, but not the right ones: check tau")


@solution("2.1.4")
def entmax_from_sorted(scores):
    x = (scores - scores.amax(-1, keepdim=True)) / 2
    ranked = x.sort(-1, descending=True).values
    k = torch.arange(1, x.shape[-1] + 1)
    mean = ranked.cumsum(-1) / k
    spread = ranked.square().cumsum(-1) - k * mean**2
    taus = mean - ((1 - spread) / k).clamp(min=0).sqrt()
    last = (taus <= ranked).sum(-1, keepdim=True)
    return (x - taus.gather(-1, last - 1)).clamp(min=0) ** 2


def _thresholds(scores, axis=-1):
    """s / 2 below its maximum, the same sorted, and tau for each number of keys."""
    x = (scores - scores.amax(-1, keepdim=True)) / 2
    ranked = x.sort(-1, descending=True).values
    k = torch.arange(1, x.shape[-1] + 1)
    mean = ranked.cumsum(-1) / k
    spread = ranked.square().cumsum(-1) - k * mean**2
    return x, ranked, mean - ((1 - spread) / k).clamp(min=0).sqrt()


@mutant("2.1.4", "that is softmax")
def softmax_of_scores(scores):
    return scores.softmax(-1)


@mutant("2.1.4", "that is sparsemax")
def sparsemax_of_scores(scores):
    return sparsemax(scores, torch.ones_like(scores, dtype=torch.bool))


@mutant("2.1.4", "not squared")
def ramp_not_squared(scores):
    x, ranked, taus = _thresholds(scores)
    last = (taus <= ranked).sum(-1, keepdim=True)
    return (x - taus.gather(-1, last - 1)).clamp(min=0)


@mutant("2.1.4", "sum to 1.640")
def squares_without_a_threshold(scores):
    return (scores / 2).clamp(min=0) ** 2


@mutant("2.1.4", "of Exercise 2.1.2")
def scores_not_halved(scores):
    return entmax_from_sorted(2 * scores)


@mutant("2.1.4", "of Exercise 2.1.2")
def squares_divided_by_their_sum(scores):
    squares = (scores / 2).clamp(min=0) ** 2
    return squares / squares.sum(-1, keepdim=True)


@mutant("2.1.4", "one threshold for all rows")
def all_rows_at_once(scores):
    return entmax_from_sorted(scores.flatten()).view_as(scores)


@mutant("2.1.4", "the wrong axis")
def columns(scores):
    return entmax_from_sorted(scores.mT).mT if scores.dim() > 1 else entmax_from_sorted(scores)


@mutant("2.1.4", "sorted order")
def weights_of_sorted(scores):
    return entmax_from_sorted(scores.sort(-1, descending=True).values)


@mutant("2.1.4", "wrong number of keys")
def two_keys_always(scores):
    x, _, taus = _thresholds(scores)
    place = min(1, scores.shape[-1] - 1)
    return (x - taus[..., place : place + 1]).clamp(min=0) ** 2


@mutant("2.1.4", "subtract the highest")
def squares_of_large_numbers(scores):
    x = scores.float() / 2
    ranked = x.sort(-1, descending=True).values
    k = torch.arange(1, x.shape[-1] + 1)
    mean = ranked.cumsum(-1) / k
    spread = ranked.square().cumsum(-1) - k * mean**2
    taus = mean - ((1 - spread) / k).clamp(min=0).sqrt()
    last = (taus <= ranked).sum(-1, keepdim=True).clamp(min=1)
    return ((x - taus.gather(-1, last - 1)).clamp(min=0) ** 2).double()


@mutant("2.1.4", "must share")
def ties_to_the_first(scores):
    if scores.shape[-1] > 1 and (scores == scores[..., :1]).all():
        return torch.nn.functional.one_hot(scores.argmax(-1), scores.shape[-1]).double()
    return entmax_from_sorted(scores)


@mutant("2.1.4", "single key")
def at_least_two_keys(scores):
    return entmax_from_sorted(scores) if scores.shape[-1] > 1 else scores.clamp(min=0) ** 2
