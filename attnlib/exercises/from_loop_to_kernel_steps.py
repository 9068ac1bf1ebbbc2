"""The exercises of chapter K.2 on parts of its kernel: a begin, a support, a weight. Needs Triton.

The functions of the answer are run inside `attention_kernel` of the chapter.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from attnlib.exercises.answers import close, compared, require
from attnlib.exercises.from_loop_to_kernel_attention import (
    HEAD,
    NARROW,
    WIDE,
    Support,
    Weight,
    all_bounds,
    attention_kernel,
    causal_bounds,
    causal_sees,
    everything,
    head,
    narrow,
    reads,
    scores_of,
    softmax_finish,
    softmax_fold,
    strict,
)
from attnlib.exercises.kernel_trials import functions
from attnlib.exercises.registry import ExerciseError, checker, mutant, solution
from attnlib.kernels.launch import interpreted
from attnlib.kernels.tiles import padded

# ---- K.2.3 one key more, of score 0 and value 0


@checker("K.2.3")
def one_extra_key(answer) -> str:
    """w_ij = e^{s_ij} / (1 + sum_k e^{s_ik})."""
    (begin,) = functions(answer, ("begin",))
    weight = Weight(begin, softmax_fold, softmax_finish)
    for N, M, width, lift in ((20, 37, WIDE, 1.0), (20, 37, NARROW, 300.0), (37, 37, NARROW, 1.0)):
        support, inputs = strict if N == M else everything, head(N, M, width, lift)
        scores, value = scores_of(*inputs[:2]), inputs[2]
        if support is strict:
            scores = scores.masked_fill(~torch.ones(N, M).tril(-1).bool(), -torch.inf)

        def run(inputs=inputs, support=support):
            return reads("begin", inputs, 16, support, weight)

        result = run() if width == WIDE else narrow(run)
        right, plain = (_with_extra(scores, value, total=total) for total in (1.0, 0.0))
        if close(result, plain) and not close(result, right):
            _forgets_the_extra(weight)
        compared(result, right, _wrong_extras(scores, value), _EXTRA)
    return "Right for ragged lengths and large scores; a query that sees no key reads zero."


def _forgets_the_extra(weight: Weight) -> None:
    """Plain softmax has two causes. At very low scores a state of maximum 0 and total 0 reads 0."""
    low = torch.full((4, HEAD), -400.0, dtype=torch.float64)
    inputs = (torch.ones_like(low), low, torch.ones(4, WIDE, dtype=torch.float64))
    require(
        bool((reads("begin", inputs, 16, everything, weight) < 0.5).all()),
        "plain softmax: with a maximum of -inf the first tile shrinks the extra key to nothing; "
        "its score is 0",
    )
    raise ExerciseError("plain softmax: the total must begin at 1, the extra key weighs e^0")


_EXTRA = "wrong reads: the state of a part with one key, of score 0 and value 0, is (0, 1, 0)"


def _with_extra(scores: Tensor, value: Tensor, maximum=0.0, total=1.0, read=0.0) -> Tensor:
    """Softmax attention whose state begins as (maximum, total, read)."""
    new = scores.amax(-1, keepdim=True).clamp(min=maximum)
    new = new.masked_fill(new == -torch.inf, 0.0)
    powers, shrink = (scores - new).exp(), (maximum - new).exp()
    sums = powers.sum(-1, keepdim=True) + total * shrink
    return (powers @ value + read * shrink) / sums.masked_fill(sums == 0, 1.0)


def _wrong_extras(scores, value) -> list[tuple[Tensor, str]]:
    return [
        (
            _with_extra(scores, value, read=1.0),
            "the extra key has the value 0, so the read begins at 0",
        ),
        (_with_extra(scores, value, 1.0), "a maximum of 1: the score of the extra key is 0"),
        (_with_extra(scores, value, total=2.0), "the total counts one key, not two"),
    ]


@solution("K.2.3")
@triton.jit
def begin(B: tl.constexpr, E: tl.constexpr):
    one = tl.full([B], 1.0, tl.float64)
    read = tl.zeros([B, padded(E)], tl.float64)
    return tl.zeros([B], tl.float64), one, read


@mutant("K.2.3", "with a maximum of -inf")
@triton.jit
def begin_with_maximum_of_nothing(B: tl.constexpr, E: tl.constexpr):
    m = tl.full([B], -float("inf"), tl.float64)
    return m, tl.full([B], 1.0, tl.float64), tl.zeros([B, padded(E)], tl.float64)


@mutant("K.2.3", "total must begin at 1")
@triton.jit
def begin_with_total_0(B: tl.constexpr, E: tl.constexpr):
    nothing = tl.zeros([B], tl.float64)
    return nothing, nothing, tl.zeros([B, padded(E)], tl.float64)


@mutant("K.2.3", "the read begins at 0")
@triton.jit
def begin_with_read_1(B: tl.constexpr, E: tl.constexpr):
    one = tl.full([B], 1.0, tl.float64)
    return tl.zeros([B], tl.float64), one, tl.full([B, padded(E)], 1.0, tl.float64)


@mutant("K.2.3", "the score of the extra key is 0")
@triton.jit
def begin_with_maximum_1(B: tl.constexpr, E: tl.constexpr):
    one = tl.full([B], 1.0, tl.float64)
    return one, one, tl.zeros([B, padded(E)], tl.float64)


@mutant("K.2.3", "a tile has padded(E) columns")
@triton.jit
def begin_of_the_wrong_width(B: tl.constexpr, E: tl.constexpr):
    one = tl.full([B], 1.0, tl.float64)
    return tl.zeros([B], tl.float64), one, tl.zeros([B, E], tl.float64)


@mutant("K.2.3", "attention_kernel with your begin raised")
@triton.jit
def begin_without_read(B: tl.constexpr, E: tl.constexpr):
    return tl.zeros([B], tl.float64), tl.full([B], 1.0, tl.float64)


# ---- K.2.4 a prefix that sees itself in both directions

PREFIX = 40


@checker("K.2.4")
def prefix_support(answer) -> str:
    """Query i sees key j if j <= i or j < 40; no tile is visited in which nobody sees a key."""
    bounds, sees = functions(answer, ("bounds", "sees"))
    for length, block in ((60, 32), (33, 16), (41, 16)):
        inputs = head(length, length)
        result = reads("sees", inputs, block, Support(all_bounds, sees))
        compared(result, _reads_of(_prefix(length), inputs), _wrong_sees(inputs), _SEES)
    for length, block in ((100, 32), (100, 16), (41, 16), (17, 16), (64, 64)):
        _bounds_are_tight(bounds, length, block)
    for length, block in ((60, 16), (17, 16)):
        inputs = head(length, length)
        result = reads("bounds and sees", inputs, block, Support(bounds, sees))
        compared(result, _reads_of(_prefix(length), inputs), (), _SEES)
    return "Equal to the dense form at lengths 17 to 100, and no tile is visited in vain."


_SEES = "sees: right places, wrong reads: query i sees key j < M if j <= i or j < 40"


def _prefix(length: int) -> Tensor:
    i, j = torch.arange(length)[:, None], torch.arange(length)[None, :]
    return (j <= i) | (j < PREFIX)


def _reads_of(seen: Tensor, inputs) -> Tensor:
    query, key, value = inputs
    scores = scores_of(query, key).masked_fill(~seen, -torch.inf)
    return scores.softmax(-1).nan_to_num() @ value


def _wrong_sees(inputs) -> list[tuple[Tensor, str]]:
    length = len(inputs[0])
    i, j = torch.arange(length)[:, None], torch.arange(length)[None, :]
    query, key, value = inputs
    absent = max(0, PREFIX - length)  # keys that a missing j < M lets in: zeros
    more = [torch.cat([x, x.new_zeros(absent, x.shape[1])]) for x in (key, value)]
    every = torch.ones(length, length + absent, dtype=torch.bool)
    wrong = [
        (j <= i, "only causal: within the prefix later keys are seen too"),
        (
            ((i < PREFIX) & (j < PREFIX)) | ((j <= i) & (j >= PREFIX)),
            "the prefix sees only itself, and nobody else sees it: later queries need j < 40 too",
        ),
        ((j <= i) | (j <= PREFIX), "key 40 is the 41st: the prefix holds j < 40"),
        ((j < i) | (j < PREFIX), "a later query must see its own key: j <= i, not j < i"),
        ((j <= i) & (j < PREFIX), "both rules at once: `or` joins them, | and not &"),
        ((j <= i) | (i < PREFIX), "i < 40 lets the prefix see all keys: ask for j < 40"),
        (j + i >= 0, "everything is seen: after the prefix the causal rule holds"),
    ]
    return [
        *((_reads_of(seen.expand(length, length), inputs), f"sees: {why}") for seen, why in wrong),
        (
            _reads_of(every, (query, *more)),
            "sees: keys that do not exist have weight: j < M is missing, and M may be below 40",
        ),
    ]


@triton.jit
def bounds_kernel(bounds_ptr, M, B: tl.constexpr, bounds: tl.constexpr):
    first, stop = bounds(tl.program_id(0) * B, B, M)
    tl.store(bounds_ptr + 2 * tl.program_id(0), first)
    tl.store(bounds_ptr + 2 * tl.program_id(0) + 1, stop)


def _bounds_are_tight(bounds, length: int, block: int) -> None:
    """Refuse bounds that miss a key, and bounds that visit a tile in which nobody sees a key."""
    programs = -(-length // block)
    device = "cpu" if interpreted(attention_kernel) else "cuda"
    found = torch.zeros(programs, 2, dtype=torch.int64, device=device)
    try:
        bounds_kernel[(programs,)](found, length, block, bounds)
    except Exception as error:
        cause = error.__cause__ or error
        raise ExerciseError(f"your bounds raised {type(cause).__name__}: {cause}") from error
    seen = _prefix(length)
    for program, (first, stop) in enumerate(found.tolist()):
        start = program * block
        rows = slice(start, min(start + block, length))
        said = f"bounds: of {length} keys the queries {start} to {rows.stop - 1} visit "
        said += f"{first} to {stop - 1}"
        require(first >= 0, f"{said}: keys before the first do not exist")
        require(
            stop <= length + block + PREFIX, f"{said}: far beyond M, tiles without keys are visited"
        )
        tiles = [slice(at, min(at + block, length)) for at in range(first, stop, block)]
        missed = seen[rows].any(0)
        for tile in tiles:
            missed[tile] = False
        if missed.any():
            key = int(missed.nonzero()[0])
            why = "every query sees the whole prefix" if key < PREFIX else "its own keys count too"
            raise ExerciseError(f"{said} and miss key {key}, which is seen: {why}")
        for tile in tiles:
            require(tile.start < length, f"{said}: a tile beyond M is visited")
            require(
                seen[rows, tile].any(),
                f"{said}, but no query of the block sees a key of {tile.start} to {tile.stop - 1}: "
                "what is masked is paid for, so the bounds must end earlier",
            )


@triton.jit
def bounds(start, B: tl.constexpr, M):
    return 0, tl.minimum(tl.maximum(start + B, 40), M)


@triton.jit
def sees(i, j, M):
    return ((j <= i) | (j < 40)) & (j < M)


solution("K.2.4")((bounds, sees))


@triton.jit
def sees_the_prefix_apart(i, j, M):
    return (((i < 40) & (j < 40)) | ((j <= i) & (j >= 40))) & (j < M)


@triton.jit
def sees_keys_that_do_not_exist(i, j, M):
    return (j <= i) | (j < 40)


@triton.jit
def sees_one_key_more(i, j, M):
    return ((j <= i) | (j <= 40)) & (j < M)


@triton.jit
def sees_not_itself(i, j, M):
    return ((j < i) | (j < 40)) & (j < M)


@triton.jit
def sees_by_both_rules(i, j, M):
    return (j <= i) & (j < 40) & (j < M)


@triton.jit
def sees_from_the_prefix(i, j, M):
    return ((j <= i) | (i < 40)) & (j < M)


@triton.jit
def bounds_of_the_prefix(start, B: tl.constexpr, M):
    return 0, tl.minimum(40, M)


@triton.jit
def bounds_after_the_prefix(start, B: tl.constexpr, M):
    return start, tl.minimum(tl.maximum(start + B, 40), M)


@triton.jit
def bounds_beyond_the_keys(start, B: tl.constexpr, M):
    return 0, tl.maximum(start + B, 40)


@triton.jit
def bounds_of_one_block_more(start, B: tl.constexpr, M):
    return 0, tl.minimum(tl.maximum(start + 2 * B, 40), M)


for _name, _answer, _says in (
    ("only causal", (bounds, causal_sees), "only causal"),
    ("prefix apart", (bounds, sees_the_prefix_apart), "the prefix sees only itself"),
    ("no j < M", (bounds, sees_keys_that_do_not_exist), "j < M is missing"),
    ("j <= 40", (bounds, sees_one_key_more), "key 40 is the 41st"),
    ("j < i", (bounds, sees_not_itself), "must see its own key"),
    ("both rules", (bounds, sees_by_both_rules), "both rules at once"),
    ("i < 40", (bounds, sees_from_the_prefix), "ask for j < 40"),
    ("causal bounds", (causal_bounds, sees), "every query sees the whole prefix"),
    ("bounds of all", (all_bounds, sees), "what is masked is paid for"),
    ("one block more", (bounds_of_one_block_more, sees), "what is masked is paid for"),
    ("bounds of the prefix", (bounds_of_the_prefix, sees), "its own keys count too"),
    ("prefix skipped", (bounds_after_the_prefix, sees), "every query sees the whole prefix"),
    ("bounds beyond M", (bounds_beyond_the_keys, sees), "a tile beyond M"),
    ("sees not written", (bounds, None), "expected a Triton function for sees"),
):
    mutant("K.2.4", _says, _name)(_answer)
