"""The puzzles of chapter K.1 on tiles: scores as a product, and causal attention of one tile.

Each has one kernel; its mutants are the same kernel with `wrong` set. Needs Triton.
"""

import torch
import triton
import triton.language as tl

from attnlib.attend import attend
from attnlib.exercises.answers import close, compared, require
from attnlib.exercises.kernel_trials import Case, Changed, numbers, result_of
from attnlib.exercises.registry import checker, mutant, solution

# ---- K.1.7 scores: the product of queries and transposed keys


@checker("K.1.7")
def product_with_keys(answer) -> str:
    """scores = Q K^T, tile by tile, half-precision inputs and float32 sums."""
    shapes = ((32, 32, 64), (19, 35, 40), (5, 3, 16), (33, 33, 256))
    for queries, keys, width in shapes:
        query = numbers(queries, queries, width, dtype=torch.float16)
        key = numbers(keys + 1, keys, width, dtype=torch.float16)
        case = Case(
            (query, key),
            (queries, keys),
            lambda given, out: (*given, out, *out.shape, given[0].shape[1]),
            (triton.cdiv(queries, 16), triton.cdiv(keys, 16)),
            {"block_size": 16},
            dtype=torch.float32,
        )
        result = result_of(answer, case)
        right = (query.float() @ key.float().mT).double()
        first, last = (
            query[:, part].float() @ key[:, part].float().mT
            for part in (slice(16), slice(-16, None))
        )
        likely = [
            (
                first * (width // 16),
                "the first block of the width is added again and again: k moves",
            ),
            (last, "only the last block of the width is left: the tiles must be added"),
        ]
        if queries == keys:
            likely.append((right.mT, "rows and columns are swapped: rows are queries"))
        near = (result - right).abs().max() < 0.01 * width**0.5
        require(
            close(result, right, 3e-5) or not near,
            "right up to rounding in half precision: the accumulator must be float32",
        )
        compared(result, right, likely, "right places, wrong scores", tolerance=3e-5)
    return "Right for square and ragged tables, and summed in float32 over a width of 256."


@solution("K.1.7")
@triton.jit
def scores_kernel(
    query_ptr,
    key_ptr,
    scores_ptr,
    queries,
    keys,
    width,
    block_size: tl.constexpr,
    wrong: tl.constexpr = "",
):
    i = tl.program_id(0) * block_size + tl.arange(0, block_size)[:, None]
    j = tl.program_id(1) * block_size + tl.arange(0, block_size)[None, :]
    total = tl.zeros([block_size, block_size], tl.float32)
    if wrong == "half":
        total = tl.zeros([block_size, block_size], tl.float16)
    for start in range(0, width, block_size):
        k = start + tl.arange(0, block_size)
        if wrong == "first block again":
            k = tl.arange(0, block_size)
        in_query = (i < queries) & (k[None, :] < width)
        in_key = (k[:, None] < width) & (j < keys)
        if wrong == "width not masked":
            in_query = (i < queries) & (k[None, :] >= 0)
            in_key = (k[:, None] >= 0) & (j < keys)
        query = tl.load(query_ptr + i * width + k[None, :], mask=in_query, other=0.0)
        key = tl.load(key_ptr + j * width + k[:, None], mask=in_key, other=0.0)
        if wrong == "half":
            total = (total + tl.dot(query, key)).to(tl.float16)
        elif wrong == "not added":
            total = tl.dot(query, key)
        else:
            total = tl.dot(query, key, total)
    inside = (i < queries) & (j < keys)
    places = i * keys + j
    if wrong == "swapped":
        places = j * keys + i
    if wrong == "no mask":
        inside = (i >= 0) & (j >= 0)
    tl.store(scores_ptr + places, total, mask=inside)


for _wrong, _says in (
    ("half", "the accumulator must be float32"),
    ("first block again", "the first block of the width is added again"),
    ("not added", "only the last block of the width"),
    ("width not masked", "numbers that lie beside"),
    ("swapped", "rows and columns are swapped"),
    ("no mask", "writes past the end"),
):
    mutant("K.1.7", _says, _wrong)(Changed(scores_kernel, wrong=_wrong))

# ---- K.1.8 causal attention, all of it in one tile


@checker("K.1.8")
def attention_in_one_tile(answer) -> str:
    """read = softmax(scale Q K^T over j <= i) V, queries and keys in one tile."""
    width = 16
    for count, lift in ((13, 1.0), (16, 1.0), (13, 60.0)):
        query, key, value = (
            numbers(seed, count, width, dtype=torch.float32) for seed in (181, 182, 183)
        )
        key = key * lift
        case = Case(
            (query, key, value),
            (count, width),
            lambda given, out, count=count: (*given, out, count, width**-0.5),
            (1,),
            {"width": width, "block_size": 16},
            dtype=torch.float32,
        )
        result = result_of(answer, case)
        wide = [x.double() for x in (query, key, value)]
        right = attend(*wide, is_causal=True)
        if lift > 1:
            require(
                close(result, right, 1e-4),
                "right for small scores, wrong for large ones: the max of each row is not "
                "subtracted before the exponential",
            )
        compared(result, right, _wrong_tiles(*wide), _TILE, tolerance=1e-5)
    return "Equal to attend with a causal mask, for 13 and 16 tokens and for large scores."


_TILE = "right places, wrong reads: scores, mask, softmax along the keys (axis 1), then the values"


def _wrong_tiles(query, key, value) -> list[tuple[torch.Tensor, str]]:
    count, scale = len(query), query.shape[-1] ** -0.5
    seen = torch.ones(count, count, dtype=torch.bool).tril()
    scores = query @ key.mT
    hidden = (scale * scores).masked_fill(~seen, -torch.inf)
    powers = (hidden - hidden.amax(-1, keepdim=True)).exp()
    padded = powers.sum(-1, keepdim=True) + (16 - count) * (-hidden.amax(-1, keepdim=True)).exp()
    return [
        (attend(query, key, value), "the future is visible: the causal mask is missing"),
        (attend(query, key, value, is_causal=True, scale=1.0), "the scale is missing"),
        (hidden.softmax(0) @ value, "the softmax runs over the wrong axis: along queries"),
        (powers @ value, "the weights are not divided by the sum of their row"),
        (powers / padded @ value, "padded keys have weight"),
        (hidden.softmax(-1).mT @ value, "the weights are transposed: rows are queries"),
    ]


@solution("K.1.8")
@triton.jit
def attention_tile(
    query_ptr,
    key_ptr,
    value_ptr,
    read_ptr,
    count,
    scale,
    width: tl.constexpr,
    block_size: tl.constexpr,
    wrong: tl.constexpr = "",
):
    rows = tl.arange(0, block_size)
    places = rows[:, None] * width + tl.arange(0, width)[None, :]
    inside = (rows < count)[:, None] & (tl.arange(0, width) >= 0)[None, :]
    query = tl.load(query_ptr + places, mask=inside, other=0.0)
    key = tl.load(key_ptr + places, mask=inside, other=0.0)
    value = tl.load(value_ptr + places, mask=inside, other=0.0)
    scores = tl.dot(query, tl.trans(key), input_precision="ieee")
    if wrong != "no scale":
        scores = scores * scale
    keys, queries = rows[None, :], rows[:, None]
    seen = keys <= queries
    if wrong == "not causal":
        seen = (keys < count) & (queries >= 0)
    scores = tl.where(seen, scores, -float("inf"))
    axis: tl.constexpr = 0 if wrong == "wrong axis" else 1
    if wrong == "wrong axis":
        scores = tl.where((keys < count) & (queries < count), scores, -float("inf"))
        scores = tl.where((keys >= count) & (queries == keys), 0.0, scores)
    highest = tl.max(scores, axis, keep_dims=True)
    if wrong == "no max":
        highest = tl.zeros_like(highest)
    powers = tl.exp(scores - highest)
    total = tl.sum(powers, axis, keep_dims=True)
    if wrong == "not divided":
        total = tl.full(total.shape, 1.0, tl.float32)
    weights = powers / total
    if wrong == "transposed":
        weights = tl.trans(tl.where((keys < count) & (queries < count), weights, 0.0))
    read = tl.dot(weights, value, input_precision="ieee")
    if wrong == "no mask":
        inside = (rows >= 0)[:, None] & (tl.arange(0, width) >= 0)[None, :]
    tl.store(read_ptr + places, read, mask=inside)


for _wrong, _says in (
    ("no scale", "the scale is missing"),
    ("not causal", "the causal mask is missing"),
    ("wrong axis", "over the wrong axis"),
    ("not divided", "not divided by the sum"),
    ("no max", "the max of each row is not subtracted"),
    ("transposed", "the weights are transposed"),
    ("no mask", "writes past the end"),
):
    mutant("K.1.8", _says, _wrong)(Changed(attention_tile, wrong=_wrong))
