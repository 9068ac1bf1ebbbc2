"""The exercise of chapter K.2 on a memory: retention, a state that fades, in chunks. Needs Triton.

There is one kernel; its mutants are the same kernel with `wrong` set.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from attnlib.exercises.answers import compared, require
from attnlib.exercises.from_loop_to_kernel_attention import load_block
from attnlib.exercises.kernel_trials import Case, Changed, functions, numbers, result_of
from attnlib.exercises.registry import checker, mutant, solution
from attnlib.kernels.tiles import load_rows, padded, product, store_rows

# ---- K.2.6 retention

CHUNK, WIDTH, VALUES = 16, 7, 5
ROUNDING = 1e-5  # a kernel gets `log_decay` in float32, and its powers are in float32


@checker("K.2.6")
def retention_in_chunks(answer) -> str:
    """S_i = a S_{i-1} + k_i v_i^T and o_i = S_i^T q_i."""
    functions(answer, ("retention",))
    for length, log_decay in ((32, -0.25), (37, -0.25), (1, -0.25), (37, 0.0), (37, -50.0)):
        query, key, value = (
            numbers(seed + length, length, width)
            for seed, width in ((260, WIDTH), (261, WIDTH), (262, VALUES))
        )
        case = Case(
            (query, key, value),
            (length, VALUES),
            lambda given, out, length=length, log_decay=log_decay: (*given, out, log_decay, length),
            (1,),
            {"D": WIDTH, "E": VALUES, "C": CHUNK},
        )
        result = result_of(answer, case)
        if log_decay < -1:
            require(
                result.isfinite().all(),
                f"right for weak decay, but not finite for log a = {log_decay:.0f}: somewhere a "
                "power of a has a negative exponent, which overflows",
            )
        right = one_by_one(query, key, value, log_decay)
        compared(result, right, _likely(query, key, value, log_decay), _FADE, tolerance=ROUNDING)
    return "Equal to the recurrence, also for ragged lengths, no decay, and log a = -50."


_FADE = (
    "right places, wrong reads: at place p the past comes with a^(p+1) from the state, a key at "
    "place r <= p with a^(p-r), and the state takes in the chunk as of its end"
)


def one_by_one(query: Tensor, key: Tensor, value: Tensor, log_decay: float) -> Tensor:
    """The recurrence, token by token."""
    state = query.new_zeros(query.shape[1], value.shape[1])
    decay, read = torch.tensor(log_decay, dtype=query.dtype).exp(), []
    for q, k, v in zip(query, key, value, strict=True):
        state = decay * state + k[:, None] * v
        read.append(q @ state)
    return torch.stack(read)


def in_chunks(query, key, value, log_decay, wrong: str = "") -> Tensor:
    """The chunk form with one mistake, or with none."""
    state = query.new_zeros(query.shape[1], value.shape[1])
    reads = []
    for q, k, v in zip(*(x.split(CHUNK) for x in (query, key, value)), strict=True):
        n = CHUNK if wrong != "length of the last" else len(q)
        p = torch.arange(len(q), dtype=query.dtype)
        apart = p[:, None] - p
        exponent = 0 * apart if wrong == "chunk" else apart.abs()
        if wrong == "distance":
            exponent = exponent + 1
        weights = (q @ k.mT) * (exponent * log_decay).exp()
        if wrong != "future":
            weights = weights * (apart >= 0)
        if wrong == "own key":
            weights = weights * (apart > 0)
        past = {"past": p, "no past": 0 * p, "past of the end": 0 * p + n}.get(wrong, p + 1)
        to_end = {"to end": n - p, "not to end": 0 * p, "from start": p}.get(wrong, n - 1 - p)
        added = (k * (to_end * log_decay).exp()[:, None]).mT @ v
        fade = {"state": 0.0, "state by one": log_decay}.get(wrong, n * log_decay)
        moved = state * torch.tensor(fade, dtype=query.dtype).exp() + added
        before = moved if wrong == "state first" else state
        reads.append((q * (past * log_decay).exp()[:, None]) @ before + weights @ v)
        state = moved
    return torch.cat(reads)


_LIKELY = {
    "chunk": "no decay inside a chunk: a key at place r reaches query p with a^(p-r)",
    "distance": "inside a chunk a key fades by a^(p-r): its own query reads it unfaded",
    "own key": "a query must read its own key: r <= p, not r < p",
    "future": "within a chunk the future is read: keys need r <= p",
    "state": "the state is not decayed from chunk to chunk: by a^C",
    "state by one": "the state is decayed once for a chunk: it has C tokens, so by a^C",
    "past": "the past is off by one: query p reads the state with a^(p+1), not a^p",
    "no past": "the past fades inside the chunk too: query p reads the state with a^(p+1)",
    "past of the end": "query p reads the state with a^(p+1), not with the decay of a whole chunk",
    "to end": "keys are off by one: to the end of the chunk a key fades by a^(C-1-r), not a^(C-r)",
    "not to end": "keys enter the state as of the end of the chunk: with a^(C-1-r)",
    "from start": "the decay of keys is turned around: with a^(C-1-r) the last one is unfaded",
    "state first": "the chunk is read twice: the state must take it in after the reads, not before",
}


def _likely(query, key, value, log_decay) -> list[tuple[Tensor, str]]:
    scaled = query * query.shape[1] ** -0.5
    return [
        (one_by_one(scaled, key, value, log_decay), "there is no scale in this exercise"),
        *((in_chunks(query, key, value, log_decay, w), said) for w, said in _LIKELY.items()),
        (
            in_chunks(query, key, value, 0.0),
            "no decay at all: that is linear attention without a scale",
        ),
    ]


@triton.jit
def inside(scores, place, log_decay):
    apart = place[:, None] - place[None, :]
    fade = tl.exp(tl.maximum(apart, 0) * log_decay)
    return tl.where(apart >= 0, scores * fade, 0.0)


@solution("K.2.6")
@triton.jit
def retention(
    query_ptr,
    key_ptr,
    value_ptr,
    read_ptr,
    log_decay,
    N,
    D: tl.constexpr,
    E: tl.constexpr,
    C: tl.constexpr,
):
    state, p = tl.zeros([padded(D), padded(E)], tl.float64), tl.arange(0, C)
    past = tl.exp((p + 1) * log_decay)[:, None]
    to_end = tl.exp((C - 1 - p) * log_decay)[:, None]
    for start in range(0, N, C):
        i, key, value = load_block(key_ptr, value_ptr, start, N, D, E, C)
        query = load_rows(query_ptr, start, D, i < N, D)
        weights = inside(product(query, tl.trans(key)), p, log_decay)
        read = product(query * past, state) + product(weights, value)
        state = state * tl.exp(C * log_decay)
        state += product(tl.trans(key * to_end), value)
        store_rows(read_ptr, start, read, i < N, E)


@triton.jit
def changed_retention(
    query_ptr,
    key_ptr,
    value_ptr,
    read_ptr,
    log_decay,
    N,
    D: tl.constexpr,
    E: tl.constexpr,
    C: tl.constexpr,
    wrong: tl.constexpr,
):
    state, p = tl.zeros([padded(D), padded(E)], tl.float64), tl.arange(0, C)
    past, to_end = p + 1, C - 1 - p
    if wrong == "past":
        past = p
    if wrong == "to end":
        to_end = C - p
    if wrong == "not to end":
        to_end = p * 0
    if wrong == "from start":
        to_end = p
    past = tl.exp(past * log_decay)[:, None]
    to_end = tl.exp(to_end * log_decay)[:, None]
    stop = N
    if wrong == "last chunk dropped":
        stop = N // C * C
    for start in range(0, stop, C):
        count = N
        if wrong == "no mask":
            count = N + C
        i, key, value = load_block(key_ptr, value_ptr, start, count, D, E, C)
        query = load_rows(query_ptr, start, D, i < count, D)
        if wrong == "scale":
            query = query * D**-0.5
        scores = product(query, tl.trans(key))
        weights = inside(scores, p, log_decay)
        if wrong == "negative exponents":
            there = tl.exp(p * log_decay)[:, None]
            back = tl.exp(-p * log_decay)[:, None]
            weights = product(query * there, tl.trans(key * back))
            weights = tl.where(p[:, None] >= p[None, :], weights, 0.0)
        if wrong == "chunk":
            weights = inside(scores, p, 0.0)
        if wrong == "future":
            weights = scores * tl.exp(tl.abs(p[:, None] - p[None, :]) * log_decay)
        if wrong == "own key":
            weights = tl.where(p[:, None] > p[None, :], weights, 0.0)
        moved = state * tl.exp(C * log_decay)
        if wrong == "state":
            moved = state
        moved += product(tl.trans(key * to_end), value)
        if wrong == "state first":
            state = moved
        read = product(query * past, state) + product(weights, value)
        state = moved
        if wrong == "state left out":
            state = state * 0.0
        store_rows(read_ptr, start, read, i < count, E)


for _wrong in ("chunk", "state", "past", "to end", "not to end", "from start", "future", "own key"):
    mutant("K.2.6", _LIKELY[_wrong], _wrong)(Changed(changed_retention, wrong=_wrong))
for _wrong, _says in (
    ("state first", "the chunk is read twice"),
    ("scale", "no scale in this exercise"),
    ("negative exponents", "has a negative exponent"),
    ("last chunk dropped", "was never written"),
    ("no mask", "writes past the end"),
    ("state left out", "right places, wrong reads"),
):
    mutant("K.2.6", _says, _wrong)(Changed(changed_retention, wrong=_wrong))
