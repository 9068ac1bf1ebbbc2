"""The exercises of chapter 2.1 on signed weights: in one pass over the keys, and a planted bug."""

import torch
from torch import Tensor

from attnlib.attend import attend
from attnlib.counting import largest_tensor
from attnlib.exercises.answers import call, close, require, tensor_of
from attnlib.exercises.beyond_softmax_programs import random
from attnlib.exercises.registry import checker, mutant, solution
from attnlib.weight.signed import signed

# ---- 2.1.5 signed attention in one pass over the keys


@checker("2.1.5")
def signed_in_one_pass(answer) -> str:
    """sign(s) e^|s| v over the sum of e^|s|, chunk by chunk, for scores of any size."""
    query, key, value = random(215, (2, 3, 4), (2, 6, 4), (2, 6, 5))
    whole = tensor_of(call(answer, query, key, value, 6), (2, 3, 5), "the read")
    _one_chunk(whole, query, key, value)
    right = attend(query, key, value, weight=signed)
    # The last keys score highest in size, so what came before has to shrink.
    growing = key * torch.linspace(0.1, 4.0, 6, dtype=torch.float64)[:, None]
    for chunk in (1, 2, 4):
        got = tensor_of(call(answer, query, key, value, chunk), (2, 3, 5), "the read")
        shrunk = tensor_of(call(answer, query, growing, value, chunk), (2, 3, 5), "the read")
        fits = close(got, right) and close(shrunk, attend(query, growing, value, weight=signed))
        require(
            fits,
            f"right with one chunk, wrong with chunk={chunk}: bring the total and the read to the "
            "new maximum of |s|, and divide once at the end",
        )
    for size in (1e4, -1e4):
        large = tensor_of(call(answer, size * query, key, value, 2), (2, 3, 5), "the read")
        require(
            close(large, attend(size * query, key, value, weight=signed)),
            "wrong for scores near 10000 and -10000: the maximum is that of |s|, not of s",
        )
    query, key, value = random(216, (64, 4), (512, 4), (512, 4))
    most = largest_tensor(lambda: call(answer, query, key, value, 16))
    require(
        most <= 512 * 4,
        f"your function makes a tensor of {most} numbers; with chunk 16 no more than 16 scores of "
        "a query are needed at a time",
    )
    return "The state of softmax is enough: one maximum, one total, and a read that has signs."


def _one_chunk(got: Tensor, query: Tensor, key: Tensor, value: Tensor) -> None:
    scores = query @ key.mT / query.shape[-1] ** 0.5
    powers = scores.abs().exp()
    likely = {
        "the scale 1/sqrt(D) is missing": attend(query, key, value, weight=signed, scale=1.0),
        "that is softmax of s: the size of a weight is e^|s|, its sign that of s": (
            attend(query, key, value)
        ),
        "the signs are lost: that is the softmax of |s|": (
            powers / powers.sum(-1, keepdim=True) @ value
        ),
        "divided by the sum of the signed weights: the total adds e^|s| without signs": (
            scores.sign() * powers / (scores.sign() * powers).sum(-1, keepdim=True) @ value
        ),
        "divided by the size of the signed sum: the total adds e^|s| without signs": (
            scores.sign() * powers / (scores.sign() * powers).sum(-1, keepdim=True).abs() @ value
        ),
        "that is sign(s) e^s: a negative score weighs by its size, e^|s|": (
            scores.sign() * scores.exp() / scores.exp().sum(-1, keepdim=True) @ value
        ),
    }
    for message, wrong in likely.items():
        require(not close(got, wrong), f"already with one chunk: {message}")
    right = attend(query, key, value, weight=signed)
    require(close(got, right), "already wrong with one chunk: not sign(s) e^|s| / sum of e^|s|")


@solution("2.1.5")
def signed_attention(query, key, value, chunk):
    highest = torch.full_like(query[..., :1], -torch.inf)
    total, read = 0.0, 0.0
    for keys, values in zip(key.split(chunk, -2), value.split(chunk, -2), strict=True):
        scores = query @ keys.mT / query.shape[-1] ** 0.5
        new = torch.maximum(highest, scores.abs().amax(-1, keepdim=True))
        scale, powers = (highest - new).exp(), (scores.abs() - new).exp()
        total = total * scale + powers.sum(-1, keepdim=True)
        read = read * scale + (scores.sign() * powers) @ values
        highest = new
    return read / total


def _folded(query, key, value, chunk, size=torch.abs, power=0.5, sign=torch.sign, keep=None):
    """The solution with one step that a mutant chooses."""
    highest = torch.full_like(query[..., :1], -torch.inf)
    total, read = 0.0, 0.0
    for keys, values in zip(key.split(chunk, -2), value.split(chunk, -2), strict=True):
        scores = query @ keys.mT / query.shape[-1] ** power
        new = torch.maximum(highest, size(scores).amax(-1, keepdim=True))
        scale, powers = (highest - new).exp(), (size(scores) - new).exp()
        scale_of_read = scale if keep is None else keep
        total = total * scale + powers.sum(-1, keepdim=True)
        read = read * scale_of_read + (sign(scores) * powers) @ values
        highest = new
    return read / total


@mutant("2.1.5", "1/sqrt(D) is missing")
def not_scaled(query, key, value, chunk):
    return _folded(query, key, value, chunk, power=0)


@mutant("2.1.5", "that is softmax of s")
def plain_softmax(query, key, value, chunk):
    return attend(query, key, value)


@mutant("2.1.5", "signs are lost")
def without_signs(query, key, value, chunk):
    return _folded(query, key, value, chunk, sign=torch.ones_like)


@mutant("2.1.5", "sign(s) e^s")
def powers_of_the_score(query, key, value, chunk):
    return _folded(query, key, value, chunk, size=lambda scores: scores)


def _over(query, key, value, total_of):
    scores = query @ key.mT / query.shape[-1] ** 0.5
    weights = scores.sign() * scores.abs().exp()
    return weights / total_of(weights.sum(-1, keepdim=True)) @ value


@mutant("2.1.5", "sum of the signed weights")
def signed_total(query, key, value, chunk):
    return _over(query, key, value, lambda total: total)


@mutant("2.1.5", "size of the signed sum")
def size_of_the_total(query, key, value, chunk):
    return _over(query, key, value, torch.abs)


@mutant("2.1.5", "to the new maximum")
def read_does_not_shrink(query, key, value, chunk):
    return _folded(query, key, value, chunk, keep=1.0)


@mutant("2.1.5", "to the new maximum")
def mean_of_the_chunks(query, key, value, chunk):
    pairs = zip(key.split(chunk, -2), value.split(chunk, -2), strict=True)
    reads = [attend(query, keys, values, weight=signed) for keys, values in pairs]
    return torch.stack(reads).mean(0)


@mutant("2.1.5", "not of s")
def maximum_of_the_scores(query, key, value, chunk):
    highest = torch.full_like(query[..., :1], -torch.inf)
    total, read = 0.0, 0.0
    for keys, values in zip(key.split(chunk, -2), value.split(chunk, -2), strict=True):
        scores = query @ keys.mT / query.shape[-1] ** 0.5
        new = torch.maximum(highest, scores.amax(-1, keepdim=True))
        scale, powers = (highest - new).exp(), (scores.abs() - new).exp()
        total = total * scale + powers.sum(-1, keepdim=True)
        read = read * scale + (scores.sign() * powers) @ values
        highest = new
    return read / total


@mutant("2.1.5", "makes a tensor of")
def all_scores_at_once(query, key, value, chunk):
    return attend(query, key, value, weight=signed)


# ---- 2.1.6 a bug: who reads the future?


@checker("2.1.6")
def repaired_signed_attention(answer) -> str:
    """sign(s) e^|s| over the allowed keys alone: hidden keys have no weight and no share."""
    query, key, value = random(217, (2, 6, 4), (2, 6, 4), (2, 6, 3))
    every = torch.ones(2, 6, 6, dtype=torch.bool)
    got = tensor_of(call(answer, query, key, value, every), (2, 6, 3), "the read")
    right = attend(query, key, value, weight=signed)
    softmax = attend(query, key, value)
    require(not close(got, softmax), "that is softmax: the repair must keep the signs")
    require(close(got, right), "where every key is allowed the function was right, and is not now")
    causal = every.tril()
    got = tensor_of(call(answer, query, key, value, causal), (2, 6, 3), "the read")
    _hidden_keys(answer, got, query, key, value, causal)
    empty = causal.clone()
    empty[:, 2] = False
    got = tensor_of(call(answer, query, key, value, empty), (2, 6, 3), "the read")
    require(not got.isnan().any(), "a row in which nothing is allowed gives NaN; it reads zero")
    require(not got[:, 2].any(), "a row in which nothing is allowed must read zero")
    large = tensor_of(call(answer, 1e4 * query, key, value, causal), (2, 6, 3), "the read")
    wanted = attend(1e4 * query, key, value, weight=signed, attn_mask=causal)
    require(
        close(large, wanted),
        "right for small scores, wrong for large ones: take the maximum over allowed keys only",
    )
    return "Hide a key after its size is known: minus infinity has the largest size of all."


def _hidden_keys(answer, got, query, key, value, causal) -> None:
    right = attend(query, key, value, weight=signed, attn_mask=causal)
    changed = value.clone()
    changed[:, 5] += 1.0
    moved = tensor_of(call(answer, query, key, changed, causal), (2, 6, 3), "the read")
    require(
        close(moved[:, :5], got[:, :5]) and got.isfinite().all(),
        "row 0 still reads the future: what does the fill become when its size is taken?",
    )
    after = _zeroed_afterwards(query, key, value, causal)
    require(
        not close(got, after),
        "hidden keys read nothing now, but they still have a share of the total",
    )
    require(close(got, right), "no row reads the future, but the weights are not right")


def _zeroed_afterwards(query, key, value, allowed):
    scores = query @ key.mT / query.shape[-1] ** 0.5
    weights = scores.sign() * scores.abs().softmax(-1)
    return (weights * allowed) @ value


@solution("2.1.6")
def hidden_after_the_size(query, key, value, allowed):
    scores = query @ key.mT / query.shape[-1] ** 0.5
    size = scores.abs().masked_fill(~allowed, -1e9)
    weights = scores.sign() * size.softmax(-1)
    return (weights * allowed) @ value


@mutant("2.1.6", "still reads the future")
def planted(query, key, value, allowed):
    scores = query @ key.mT / query.shape[-1] ** 0.5
    scores = scores.masked_fill(~allowed, -1e9)
    weights = scores.sign() * scores.abs().softmax(-1)
    return weights @ value


@mutant("2.1.6", "still reads the future")
def filled_with_infinity(query, key, value, allowed):
    scores = query @ key.mT / query.shape[-1] ** 0.5
    scores = scores.masked_fill(~allowed, -torch.inf)
    return (scores.sign() * scores.abs().softmax(-1)) @ value


@mutant("2.1.6", "share of the total")
def zeroed_afterwards(query, key, value, allowed):
    return _zeroed_afterwards(query, key, value, allowed)


@mutant("2.1.6", "share of the total")
def scores_filled_with_zero(query, key, value, allowed):
    scores = query @ key.mT / query.shape[-1] ** 0.5
    powers = scores.abs().exp()
    return (scores.sign() * powers * allowed) / powers.sum(-1, keepdim=True) @ value


@mutant("2.1.6", "must keep the signs")
def softmax_instead(query, key, value, allowed):
    return attend(query, key, value, attn_mask=allowed)


@mutant("2.1.6", "and is not now")
def signs_dropped(query, key, value, allowed):
    return attend(query, key, value, weight=lambda s, a: signed(s, a).abs(), attn_mask=allowed)


@mutant("2.1.6", "weights are not right")
def zero_scores_share(query, key, value, allowed):
    scores = (query @ key.mT / query.shape[-1] ** 0.5).masked_fill(~allowed, 0.0)
    return (scores.sign() * scores.abs().softmax(-1)) @ value


@mutant("2.1.6", "gives NaN")
def nan_without_keys(query, key, value, allowed):
    scores = query @ key.mT / query.shape[-1] ** 0.5
    size = scores.abs().masked_fill(~allowed, -torch.inf)
    return (scores.sign() * size.softmax(-1)) @ value


@mutant("2.1.6", "must read zero")
def equal_weights_without_keys(query, key, value, allowed):
    scores = query @ key.mT / query.shape[-1] ** 0.5
    size = scores.abs().masked_fill(~allowed, -1e9)
    return (scores.sign() * size.softmax(-1)) @ value


@mutant("2.1.6", "over allowed keys only")
def maximum_over_all_keys(query, key, value, allowed):
    scores = query @ key.mT / query.shape[-1] ** 0.5
    powers = (scores.abs() - scores.abs().amax(-1, keepdim=True)).exp() * allowed
    total = powers.sum(-1, keepdim=True)
    return (scores.sign() * powers) / total.masked_fill(total == 0, 1.0) @ value
