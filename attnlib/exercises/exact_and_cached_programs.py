"""The exercises of chapter 1.4 on reading in parts: a merge, and attention in one pass."""

import torch
from torch import Tensor

from attnlib.attend import attend
from attnlib.counting import largest_tensor
from attnlib.exercises.answers import call, close, require, tensor_of
from attnlib.exercises.registry import checker, mutant, solution
from attnlib.memory.partial_read import empty_read, merge, partial_read


def random(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Normal numbers in float64, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


# ---- 1.4.3 the merge of two parts


@checker("1.4.3")
def merge_of_two_parts(answer) -> str:
    """(max, total, read) of both parts, for parts of any size of score and parts without keys."""
    scores, value = random(143, (4, 6), (6, 3))
    scores[1, :3] += 4.0  # here the first part has the highest score, in the next row the second
    scores[2, 3:] += 4.0
    a, b = partial_read(scores[:, :3], value[:3]), partial_read(scores[:, 3:], value[3:])
    highest, total, read = _merged(answer, a, b)
    right = partial_read(scores, value)
    require(not close(highest, a.max + b.max), "max: the two were added; it is the higher one")
    for side, name in ((a, "first"), (b, "second")):
        one_side = close(highest, side.max)
        require(not one_side, f"max: always that of the {name} part; it is the higher, row by row")
    require(close(highest, right.max), "max: it is torch.maximum of the two")
    require(not close(total, a.total + b.total), "total: added as they stand, nothing is rescaled")
    swapped = a.total * torch.exp(b.max - right.max) + b.total * torch.exp(a.max - right.max)
    require(not close(total, swapped), "total: each part has the factor of the other")
    require(
        close(total, right.total),
        "total: rescale each part by e^(its own max - the common max), the difference is negative",
    )
    require(not close(read, a.read + b.read), "read: the totals are rescaled, the reads are not")
    require(
        not close(read, right.read / right.total),
        "read: it is divided already; keep the sum, and divide once at the end",
    )
    require(close(read, right.read), "read: it has the same factors as the total")
    _far_apart(answer)
    _without_keys(answer)
    return "Right in both orders, for scores near 10000 and -10000, and for parts without keys."


def _merged(answer, a, b) -> tuple[Tensor, Tensor, Tensor]:
    result = call(answer, a, b)
    require(
        isinstance(result, (tuple, list)) and len(result) == 3,
        "return three tensors: max, total, read",
    )
    names = ("max", "total", "read")
    return tuple(
        tensor_of(came, tuple(part.shape), name)
        for name, came, part in zip(names, result, a, strict=True)
    )


def _far_apart(answer) -> None:
    scores, value = random(144, (2, 4), (4, 3))
    for shift in (1e4, -1e4):
        parts = (
            partial_read(scores[:, :2] + shift, value[:2]),
            partial_read(scores[:, 2:] + shift, value[2:]),
        )
        right = partial_read(scores + shift, value)
        fits = all(close(x, y) for x, y in zip(_merged(answer, *parts), right, strict=True))
        require(
            fits,
            f"right for small scores, wrong near {shift:.0f}: take powers only of differences to "
            "the common maximum",
        )


def _without_keys(answer) -> None:
    scores, value = random(145, (2, 4), (4, 3))
    part, empty = partial_read(scores, value), empty_read(scores, 3)
    for a, b in ((part, empty), (empty, part)):
        merged = _merged(answer, a, b)
        require(
            all(close(x, y) for x, y in zip(merged, part, strict=True)),
            "a part without keys (max -inf, total 0, read 0) must change nothing",
        )
    highest, total, read = _merged(answer, empty, empty)
    require(
        not total.isnan().any() and not read.isnan().any() and not highest.isnan().any(),
        "two parts without keys give NaN: (-inf) - (-inf) is no number",
    )
    require(
        (highest == -torch.inf).all(),
        "the max of two parts without keys must stay -inf: any other number would beat low scores",
    )
    require((total == 0).all() and (read == 0).all(), "two parts without keys must add up to zero")


def _with_scales(a, b, scale_a, scale_b, scale_a_of_read=None, scale_b_of_read=None):
    """Both parts as one, with factors that a mutant chooses."""
    highest = torch.maximum(a[0], b[0])
    total = a[1] * scale_a + b[1] * scale_b
    scale_a = scale_a if scale_a_of_read is None else scale_a_of_read
    scale_b = scale_b if scale_b_of_read is None else scale_b_of_read
    return highest, total, a[2] * scale_a + b[2] * scale_b


def _scales(a, b):
    highest = torch.maximum(a[0], b[0])
    finite = highest.masked_fill(highest == -torch.inf, 0.0)
    return torch.exp(a[0] - finite), torch.exp(b[0] - finite)


solution("1.4.3")(merge)


@mutant("1.4.3", "the higher one")
def maxima_added(a, b):
    return a[0] + b[0], *_with_scales(a, b, *_scales(a, b))[1:]


@mutant("1.4.3", "always that of the first part")
def maximum_of_the_first(a, b):
    scale = torch.exp(b[0] - a[0])
    return a[0], a[1] + b[1] * scale, a[2] + b[2] * scale


@mutant("1.4.3", "nothing is rescaled")
def nothing_rescaled(a, b):
    return torch.maximum(a[0], b[0]), a[1] + b[1], a[2] + b[2]


@mutant("1.4.3", "factor of the other")
def factors_exchanged(a, b):
    return _with_scales(a, b, *reversed(_scales(a, b)))


@mutant("1.4.3", "the difference is negative")
def sign_of_the_exponent(a, b):
    return _with_scales(a, b, *(1 / scale for scale in _scales(a, b)))


@mutant("1.4.3", "the reads are not")
def read_not_rescaled(a, b):
    return _with_scales(a, b, *_scales(a, b), 1.0, 1.0)


@mutant("1.4.3", "divided already")
def divided_already(a, b):
    highest, total, read = _with_scales(a, b, *_scales(a, b))
    return highest, total, read / total


@mutant("1.4.3", "wrong near 10000")
def powers_of_the_maxima(a, b):
    scales = [torch.exp(part[0]) / torch.exp(torch.maximum(a[0], b[0])) for part in (a, b)]
    return _with_scales(a, b, *scales)


@mutant("1.4.3", "give NaN")
def nan_without_keys(a, b):
    highest = torch.maximum(a[0], b[0])
    return _with_scales(a, b, torch.exp(a[0] - highest), torch.exp(b[0] - highest))


@mutant("1.4.3", "must stay -inf")
def maximum_made_finite(a, b):
    highest, total, read = _with_scales(a, b, *_scales(a, b))
    return highest.masked_fill(highest == -torch.inf, 0.0), total, read


@mutant("1.4.3", "must change nothing")
def empty_part_wipes_the_other(a, b):
    both = (a[1] > 0) & (b[1] > 0)
    return _with_scales(a, b, *(scale * both for scale in _scales(a, b)))


@mutant("1.4.3", "three tensors")
def two_tensors(a, b):
    return _with_scales(a, b, *_scales(a, b))[:2]


# ---- 1.4.4 attention in one pass over the keys


@checker("1.4.4")
def attention_in_one_pass(answer) -> str:
    """softmax(q.k / sqrt(D)) v, chunk by chunk, without a tensor of all N x M scores."""
    query, key, value = random(146, (2, 3, 4), (2, 6, 4), (2, 6, 5))
    whole = tensor_of(call(answer, query, key, value, 6), (2, 3, 5))
    unscaled = attend(query, key, value, scale=1.0)
    require(not close(whole, unscaled), "already with one chunk: the scale 1/sqrt(D) is missing")
    right = attend(query, key, value)
    require(close(whole, right), "already wrong with one chunk: not softmax(q.k / sqrt(D)) v")
    _growing_chunks(answer)
    for keys, chunk in ((8, 4), (7, 3), (7, 1), (3, 5)):
        _random_case(answer, keys, chunk)
    _extreme_scores(answer)
    _no_matrix(answer)
    return "Equal to attend for any chunk and any size of score, and no tensor holds all scores."


def _growing_chunks(answer) -> None:
    """Scores that are equal, that fall and that rise, two chunks each: where does it go wrong?"""
    value = random(147, (1, 6, 2))[0]
    level = torch.zeros(1, 6, 1, dtype=torch.float64)
    fall = torch.arange(6.0, 0.0, -1.0, dtype=torch.float64).view(1, 6, 1)

    def fits(key: Tensor, value: Tensor) -> bool:
        query = torch.ones(1, 2, 1, dtype=torch.float64)
        return close(call(answer, query, key, value, 3), attend(query, key, value))

    require(
        fits(level, value),
        "with two chunks of equal scores the read is not the mean of the values: sum over all "
        "chunks, and divide by the total once, at the end",
    )
    require(
        fits(fall, value),
        "wrong when the highest score stands in the first chunk: all chunks need one running "
        "maximum, not each its own",
    )
    require(
        fits(fall.flip(1), torch.ones_like(value)),
        "wrong when the highest score stands in the last chunk: total and read must be rescaled "
        "by the same factor",
    )
    require(
        fits(fall.flip(1), value),
        "wrong when the highest score stands in the last chunk: rescale what was summed before by "
        "e^(old maximum - new maximum)",
    )


def _random_case(answer, keys: int, chunk: int) -> None:
    query, key, value = random(148, (2, 3, 4), (2, keys, 4), (2, keys, 5))
    read = tensor_of(call(answer, query, key, value, chunk), (2, 3, 5))
    right = attend(query, key, value)
    whole = keys // chunk * chunk
    if 0 < whole < keys:
        dropped = close(read, attend(query, key[:, :whole], value[:, :whole]))
        require(
            not dropped,
            f"with {keys} keys in chunks of {chunk} the last, shorter chunk is dropped",
        )
    require(close(read, right), f"wrong for {keys} keys in chunks of {chunk}")


def _extreme_scores(answer) -> None:
    query, key, value = random(149, (1, 2, 1), (1, 5, 1), (1, 5, 2))
    for size in (1e4, -1e4):
        inputs = size * query.abs().ceil(), 1 + key.abs() / 10, value
        read = tensor_of(call(answer, *inputs, 2), (1, 2, 2))
        message = (
            "scores near 10000 overflow: subtract the running maximum before you take powers"
            if size > 0
            else "scores near -10000 are lost: the running maximum must begin at minus infinity"
        )
        require(read.isfinite().all() and close(read, attend(*inputs)), message)


def _no_matrix(answer) -> None:
    inputs = random(150, (2, 64, 8), (2, 256, 8), (2, 256, 8))
    largest = largest_tensor(lambda: call(answer, *inputs, 16))
    most = 64 * 256
    require(
        largest < most,
        f"an operation makes a tensor of {largest} numbers, as many as there are scores in all: "
        "compute the scores of one chunk at a time and keep none",
    )


def _chunks(query, key, value, chunk):
    """Scores and values of one chunk after the other."""
    for keys, values in zip(key.split(chunk, -2), value.split(chunk, -2), strict=True):
        yield query @ keys.mT / query.shape[-1] ** 0.5, values


@solution("1.4.4")
def online_attention(query, key, value, chunk):
    return _folded(query, key, value, chunk)


def _folded(query, key, value, chunk, begin=-torch.inf, of_total=True, of_read=True):
    """The online softmax, with what a mutant may change: where it begins and what it rescales."""
    highest = torch.full_like(query[..., :1], begin)
    total, read = 0.0, 0.0
    for scores, values in _chunks(query, key, value, chunk):
        new = torch.maximum(highest, scores.amax(-1, keepdim=True))
        scale, powers = torch.exp(highest - new), torch.exp(scores - new)
        total = total * (scale if of_total else 1.0) + powers.sum(-1, keepdim=True)
        read = read * (scale if of_read else 1.0) + powers @ values
        highest = new
    return read / total


@mutant("1.4.4", "e^(old maximum - new maximum)")
def rescaling_forgotten(query, key, value, chunk):
    return _folded(query, key, value, chunk, of_total=False, of_read=False)


@mutant("1.4.4", "by the same factor")
def only_the_read_rescaled(query, key, value, chunk):
    return _folded(query, key, value, chunk, of_total=False)


@mutant("1.4.4", "must begin at minus infinity")
def maximum_begins_at_zero(query, key, value, chunk):
    return _folded(query, key, value, chunk, begin=0.0)


@mutant("1.4.4", "subtract the running maximum")
def no_maximum(query, key, value, chunk):
    total, read = 0.0, 0.0
    for scores, values in _chunks(query, key, value, chunk):
        total = total + scores.exp().sum(-1, keepdim=True)
        read = read + scores.exp() @ values
    return read / total


@mutant("1.4.4", "not each its own")
def maximum_of_each_chunk(query, key, value, chunk):
    total, read = 0.0, 0.0
    for scores, values in _chunks(query, key, value, chunk):
        powers = torch.exp(scores - scores.amax(-1, keepdim=True))
        total, read = total + powers.sum(-1, keepdim=True), read + powers @ values
    return read / total


@mutant("1.4.4", "divide by the total once")
def divided_in_every_chunk(query, key, value, chunk):
    return sum(torch.softmax(s, -1) @ v for s, v in _chunks(query, key, value, chunk))


@mutant("1.4.4", "not each its own")
def mean_of_the_reads_of_chunks(query, key, value, chunk):
    reads = [torch.softmax(s, -1) @ v for s, v in _chunks(query, key, value, chunk)]
    return sum(reads) / len(reads)


@mutant("1.4.4", "shorter chunk is dropped")
def last_chunk_dropped(query, key, value, chunk):
    whole = max(key.shape[-2] // chunk, 1) * chunk
    return _folded(query, key[..., :whole, :], value[..., :whole, :], chunk)


@mutant("1.4.4", "scale 1/sqrt(D) is missing")
def no_scale(query, key, value, chunk):
    return _folded(query * query.shape[-1] ** 0.5, key, value, chunk)


@mutant("1.4.4", "as many as there are scores")
def all_scores_at_once(query, key, value, chunk):
    return attend(query, key, value)


@mutant("1.4.4", "already wrong with one chunk")
def weights_of_base_two(query, key, value, chunk):
    return attend(query, key, value, scale=torch.tensor(2.0).log().item() / 2)
