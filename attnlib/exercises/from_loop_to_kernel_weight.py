"""The exercise of chapter K.2 on a weight: a mean of rectified scores. Needs Triton.

The functions of the answer are run inside `attention_kernel` of the chapter.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from attnlib.exercises.answers import compared, require
from attnlib.exercises.from_loop_to_kernel_attention import (
    NARROW,
    WIDE,
    Weight,
    causal,
    everything,
    head,
    narrow,
    reads,
    scores_of,
    strict,
)
from attnlib.exercises.kernel_trials import functions
from attnlib.exercises.registry import checker, mutant, solution
from attnlib.kernels.tiles import padded, product

# ---- K.2.5 squares of rectified scores over the number of keys

BLOCK = 16


@checker("K.2.5")
def mean_of_rectified_scores(answer) -> str:
    """w_ij = max(s_ij, 0)^2 / n_i over the n_i keys that query i may see."""
    weight = Weight(*functions(answer, ("begin", "fold", "finish")))
    every = torch.ones(37, 37, dtype=torch.bool)
    for width, N, support, seen in (
        (WIDE, 20, everything, every[:20]),
        (NARROW, 37, causal, every.tril()),
        (NARROW, 37, strict, every.tril(-1)),
    ):
        inputs = head(N, 37, width)

        def run(inputs=inputs, support=support):
            return reads("functions", inputs, BLOCK, support, weight)

        result = run() if width == WIDE else narrow(run)
        scores, value = scores_of(*inputs[:2]), inputs[2]
        empty = ~seen.any(-1)
        require(
            not result[empty].isnan().any(),
            "a query that sees no key reads 0 / 0: the count of no keys must not divide",
        )
        right = scores.clamp(min=0).square() * seen / seen.sum(-1, keepdim=True).clamp(min=1)
        compared(result, right @ value, _wrong_means(scores, value, seen), _MEAN)
    return "Right for one row of `seen` as for many, and a query that sees nothing reads zero."


_MEAN = (
    "wrong reads: add up max(s, 0)^2 v and the number of keys that are seen, and divide once, at "
    "the end"
)


def _wrong_means(scores: Tensor, value: Tensor, seen: Tensor) -> list[tuple[Tensor, str]]:
    rows, keys = seen.shape
    count = seen.sum(-1, keepdim=True).clamp(min=1)
    kept = scores.clamp(min=0) * seen
    squares = kept.square()
    last = keys - 1 if seen[0].all() else torch.arange(rows)[:, None] // BLOCK * BLOCK + BLOCK - 1
    visited = (torch.as_tensor(last) // BLOCK + 1) * BLOCK  # keys in all tiles of a block
    positive = (kept > 0).sum(-1, keepdim=True)
    total = squares.sum(-1, keepdim=True)
    everywhere = scores.clamp(min=0).square() * _in_tiles(seen)
    apart, running = torch.zeros_like(squares), torch.zeros_like(squares)
    chained = torch.zeros(rows, value.shape[1], dtype=value.dtype)
    before = torch.zeros_like(count)
    for start in range(0, keys, BLOCK):
        part = slice(start, start + BLOCK)
        here = seen[:, part].sum(-1, keepdim=True)
        before = before + here
        apart[:, part] = squares[:, part] / here.clamp(min=1)
        running[:, part] = squares[:, part] / before.clamp(min=1)
        visits = _in_tiles(seen)[:, part].any(-1, keepdim=True)
        divided = (chained + squares[:, part] @ value[part]) / before.clamp(min=1)
        chained = torch.where(visits, divided, chained)
    again = "divided inside every tile: only the last tile knows the count, so divide in `finish`"
    return [
        (squares @ value, "not divided by the number of keys"),
        (apart @ value, again),
        (running @ value, again),
        (chained, again),
        (
            squares / visited @ value,
            "divided by all keys of the tiles: n_i counts only those that are seen",
        ),
        (squares / keys @ value, "divided by M: n_i counts only the keys that query i may see"),
        (
            squares / positive.clamp(min=1) @ value,
            "only keys with positive scores are counted: n_i counts all that may be seen",
        ),
        (squares / total.where(total > 0, 1.0) @ value, "the weights are made to sum to one"),
        (kept / count @ value, "no square: the weights are max(s, 0)^2"),
        (
            (scores * seen).square() / count @ value,
            "not rectified: negative scores have the weight 0",
        ),
        (
            everywhere / count @ value,
            "keys that are not seen have weight: `seen` counts, and it masks the weights too",
        ),
    ]


def _in_tiles(seen: Tensor) -> Tensor:
    """Which keys a query block visits under the chapter's bounds: all of its tiles."""
    rows, keys = seen.shape
    if seen[0].all():
        return torch.ones_like(seen)
    i, j = torch.arange(rows)[:, None], torch.arange(keys)[None, :]
    return j < i // BLOCK * BLOCK + BLOCK


@triton.jit
def begin(B: tl.constexpr, E: tl.constexpr):
    return tl.zeros([B], tl.float64), tl.zeros([B, padded(E)], tl.float64)


@triton.jit
def fold(state, scores, seen, value):
    count, read = state
    count += tl.sum(tl.where(seen, scores * 0.0 + 1.0, 0.0), 1)
    kept = tl.where(seen, tl.maximum(scores, 0.0), 0.0)
    return count, read + product(kept * kept, value)


@triton.jit
def finish(state):
    count, read = state
    return read / tl.maximum(count, 1.0)[:, None]


solution("K.2.5")((begin, fold, finish))


@triton.jit
def fold_counting_tiles(state, scores, seen, value):
    count, read = state
    count += tl.sum(scores * 0.0 + 1.0, 1)
    kept = tl.where(seen, tl.maximum(scores, 0.0), 0.0)
    return count, read + product(kept * kept, value)


@triton.jit
def fold_counting_37(state, scores, seen, value):
    count, read = state
    kept = tl.where(seen, tl.maximum(scores, 0.0), 0.0)
    return count * 0.0 + 37.0, read + product(kept * kept, value)


@triton.jit
def fold_counting_positive_scores(state, scores, seen, value):
    count, read = state
    kept = tl.where(seen, tl.maximum(scores, 0.0), 0.0)
    count += tl.sum(tl.where(kept > 0.0, 1.0, 0.0), 1)
    return count, read + product(kept * kept, value)


@triton.jit
def fold_adding_up_the_weights(state, scores, seen, value):
    count, read = state
    kept = tl.where(seen, tl.maximum(scores, 0.0), 0.0)
    return count + tl.sum(kept * kept, 1), read + product(kept * kept, value)


@triton.jit
def fold_without_square(state, scores, seen, value):
    count, read = state
    count += tl.sum(tl.where(seen, scores * 0.0 + 1.0, 0.0), 1)
    return count, read + product(tl.where(seen, tl.maximum(scores, 0.0), 0.0), value)


@triton.jit
def fold_without_rectifier(state, scores, seen, value):
    count, read = state
    count += tl.sum(tl.where(seen, scores * 0.0 + 1.0, 0.0), 1)
    return count, read + product(tl.where(seen, scores * scores, 0.0), value)


@triton.jit
def fold_without_mask(state, scores, seen, value):
    count, read = state
    count += tl.sum(tl.where(seen, scores * 0.0 + 1.0, 0.0), 1)
    kept = tl.maximum(scores, 0.0)
    return count, read + product(kept * kept, value)


@triton.jit
def fold_dividing_its_tile(state, scores, seen, value):
    count, read = state
    here = tl.sum(tl.where(seen, scores * 0.0 + 1.0, 0.0), 1)
    kept = tl.where(seen, tl.maximum(scores, 0.0), 0.0)
    return count, read + product(kept * kept, value) / tl.maximum(here, 1.0)[:, None]


@triton.jit
def fold_dividing_what_has_passed(state, scores, seen, value):
    count, read = state
    count += tl.sum(tl.where(seen, scores * 0.0 + 1.0, 0.0), 1)
    kept = tl.where(seen, tl.maximum(scores, 0.0), 0.0)
    read += product(kept * kept, value)
    return count, read / tl.maximum(count, 1.0)[:, None]


@triton.jit
def finish_without_division(state):
    return state[1]


@triton.jit
def finish_with_nothing_over_nothing(state):
    count, read = state
    return read / count[:, None]


@triton.jit
def finish_where_weights_may_be_zero(state):
    total, read = state
    return read / tl.where(total == 0.0, 1.0, total)[:, None]


@triton.jit
def begin_of_the_wrong_width(B: tl.constexpr, E: tl.constexpr):
    return tl.zeros([B], tl.float64), tl.zeros([B, E], tl.float64)


@triton.jit
def fold_not_written(state, scores, seen, value):
    """To do."""
    pass


for _fold, _finish, _says in (
    (fold_counting_tiles, finish, "divided by all keys of the tiles"),
    (fold_counting_37, finish, "divided by M"),
    (fold_counting_positive_scores, finish, "only keys with positive scores"),
    (fold_adding_up_the_weights, finish_where_weights_may_be_zero, "made to sum to one"),
    (fold_without_square, finish, "no square"),
    (fold_without_rectifier, finish, "not rectified"),
    (fold_without_mask, finish, "keys that are not seen have weight"),
    (fold_dividing_its_tile, finish_without_division, "divided inside every tile"),
    (fold_dividing_what_has_passed, finish_without_division, "divided inside every tile"),
    (fold, finish_without_division, "not divided by the number of keys"),
    (fold, finish_with_nothing_over_nothing, "reads 0 / 0"),
    (fold_not_written, finish, "not written yet: fold"),
):
    _name = f"{_fold.fn.__name__}, {_finish.fn.__name__}"
    mutant("K.2.5", _says, _name)((begin, _fold, _finish))
mutant("K.2.5", "a tile has padded(E) columns", "wrong width")(
    (begin_of_the_wrong_width, fold, finish)
)
mutant("K.2.5", "expected 3 function(s)", "no begin")((fold, finish))
