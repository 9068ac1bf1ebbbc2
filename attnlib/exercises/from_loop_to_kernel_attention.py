"""The kernel of chapter K.2 once more, against which functions of a reader are run. Needs Triton.

Score, read and memory are fixed; support and weight are handed in. The text is the chapter's, so
what passes here also runs on its page.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from attnlib.exercises.kernel_trials import Case, numbers, result_of
from attnlib.exercises.registry import ExerciseError
from attnlib.kernels.tiles import finite, load_rows, padded, product, store_rows


@triton.jit
def softmax_begin(B: tl.constexpr, E: tl.constexpr):
    m = tl.full([B], -float("inf"), tl.float64)
    return m, tl.zeros([B], tl.float64), tl.zeros([B, padded(E)], tl.float64)


@triton.jit
def softmax_fold(state, scores, seen, value):
    m, l, r = state  # noqa: E741
    scores = tl.where(seen, scores, -float("inf"))
    new = tl.maximum(m, tl.max(scores, 1))
    weights = tl.exp(scores - finite(new)[:, None])
    shrink = tl.exp(m - finite(new))
    l = l * shrink + tl.sum(weights, 1)  # noqa: E741
    r = r * shrink[:, None] + product(weights, value)
    return new, l, r


@triton.jit
def softmax_finish(state):
    m, l, r = state  # noqa: E741, RUF059
    return r / tl.where(l == 0.0, 1.0, l)[:, None]


@triton.jit
def load_block(key_ptr, value_ptr, start, M, D: tl.constexpr, E: tl.constexpr, B: tl.constexpr):
    j = start + tl.arange(0, B)
    key = load_rows(key_ptr, start, D, j < M, D)
    return j, key, load_rows(value_ptr, start, E, j < M, E)


class Support(NamedTuple):
    """Between which keys a block of queries finds all it may see, and which pairs are allowed."""

    bounds: Any  # (start, B, M) -> first key, key after last
    sees: Any  # (i, j, M) -> which pairs are allowed


class Weight(NamedTuple):
    """What is known of the keys that have passed: how it begins, takes in a tile, and ends."""

    begin: Any  # (B, E) -> state
    fold: Any  # (state, scores, seen, value) -> state
    finish: Any  # (state) -> reads


softmax = Weight(softmax_begin, softmax_fold, softmax_finish)


@triton.jit
def attention_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    read_ptr,
    N,
    M,
    D: tl.constexpr,
    E: tl.constexpr,
    B: tl.constexpr,
    support: tl.constexpr,
    weight: tl.constexpr,
):
    start = tl.program_id(0) * B
    i = start + tl.arange(0, B)
    query = load_rows(query_ptr, start, D, i < N, D)
    state = weight.begin(B, E)
    first, stop = support.bounds(start, B, M)
    for key_start in range(first, stop, B):
        j, key, value = load_block(key_ptr, value_ptr, key_start, M, D, E, B)
        scores = product(query, tl.trans(key)) * D**-0.5
        seen = support.sees(i[:, None], j[None, :], M)
        state = weight.fold(state, scores, seen, value)
    store_rows(read_ptr, start, weight.finish(state), i < N, E)


@triton.jit
def all_bounds(start, B: tl.constexpr, M):
    return 0, M


@triton.jit
def row_sees(i, j, M):
    return j < M  # one row for all queries


@triton.jit
def causal_bounds(start, B: tl.constexpr, M):
    return 0, tl.minimum(start + B, M)


@triton.jit
def causal_sees(i, j, M):
    return (j <= i) & (j < M)


@triton.jit
def strict_sees(i, j, M):
    return (j < i) & (j < M)  # query 0 sees nothing


everything = Support(all_bounds, row_sees)
causal = Support(causal_bounds, causal_sees)
strict = Support(causal_bounds, strict_sees)
HEAD = 7  # width of queries and keys: neither a power of two nor that of the values
NARROW, WIDE = 5, 16  # widths of values: narrower than a tile, and as wide


def head(N: int, M: int, E: int = NARROW, lift: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (N, 7), keys (M, 7), values (M, E); keys are `lift` times as long as usual."""
    seed = 1000 * N + M
    return (
        numbers(seed, N, HEAD),
        lift * numbers(seed + 1, M, HEAD),
        numbers(seed + 2, M, E) + 0.5,
    )


def scores_of(query: Tensor, key: Tensor) -> Tensor:
    """What the kernel scores a pair with: the scaled product."""
    return query @ key.mT * query.shape[-1] ** -0.5


def reads(
    whose: str, inputs: tuple[Tensor, ...], B: int, support: Support, weight: Weight = softmax
) -> Tensor:
    """What `attention_kernel` writes with this support and weight, between guard zones."""
    (N, D), _, (M, E) = (x.shape for x in inputs)
    case = Case(
        inputs,
        (N, E),
        lambda given, out: (*given, out, N, M),
        (triton.cdiv(N, B),),
        {"D": D, "E": E, "B": B, "support": support, "weight": weight},
        whose=f"attention_kernel with your {whose}",
    )
    return result_of(attention_kernel, case)


def narrow(run: Callable[[], Tensor]) -> Tensor:
    """The result of a run on narrow values, after one on wide values was right."""
    try:
        return run()
    except ExerciseError as error:
        raise ExerciseError(
            f"right for values of width {WIDE}, but not for width {NARROW}: a tile has padded(E) "
            f"columns, so the read of the state too. ({error})"
        ) from error
