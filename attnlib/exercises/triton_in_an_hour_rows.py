"""The puzzles of chapter K.1 on rows: a masked softmax, and a read in one walk over a long row.

Each has one kernel; its mutants are the same kernel with `wrong` set. Needs Triton.
"""

import torch
import triton
import triton.language as tl

from attnlib.exercises.answers import close, compared, require
from attnlib.exercises.kernel_trials import Case, Changed, numbers, result_of
from attnlib.exercises.registry import checker, mutant, solution

# ---- K.1.5 causal softmax, a row for each program


@checker("K.1.5")
def causal_weights(answer) -> str:
    """w_ij = softmax of the scores of row i over the keys j <= i, and 0 for later keys."""
    for count, block_size, lift in ((11, 16, 0.0), (16, 16, 0.0), (11, 16, 2000.0), (1, 2, 0.0)):
        scores = numbers(count, count, count) + lift
        case = Case(
            (scores,),
            (count, count),
            lambda given, out: (given[0], out, len(out), given[0].stride(0), out.stride(0)),
            (count,),
            {"block_size": block_size},
            gapped=(0,),
            out_gap=True,
        )
        result = result_of(answer, case)
        seen = torch.ones(count, count, dtype=torch.bool).tril()
        right = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        if lift:
            require(
                close(result, right),
                "right for small scores, wrong for scores near 2000: the max is not subtracted "
                "before the exponential",
            )
        _weights_of_the_past(result, right, scores, seen)
    return "Each row sums to one over its past, also for scores near 2000."


def _weights_of_the_past(result, right, scores, seen) -> None:
    earlier = torch.tril(torch.ones_like(seen), -1)
    powers = (scores - scores.amax(-1, keepdim=True)).exp()
    compared(
        result,
        right,
        (
            (scores.softmax(-1), "keys of the future have weight: the causal mask is missing"),
            (
                scores.masked_fill(~seen, 0.0).softmax(-1),
                "keys of the future have weight: a score of 0 is not minus infinity",
            ),
            (
                scores.softmax(-1).masked_fill(~seen, 0.0),
                "rows do not sum to one: the normalizer counts keys of the future",
            ),
            (powers.masked_fill(~seen, 0.0), "the powers are not divided by their sum"),
            (
                scores.masked_fill(seen.mT.logical_not(), -torch.inf).softmax(-1),
                "row i sees the keys j >= i: the comparison is turned around",
            ),
            (
                scores.masked_fill(~earlier, -torch.inf).softmax(-1).nan_to_num(),
                "a row must see its own key: j <= i, not j < i",
            ),
        ),
        "right places, wrong weights: exp(s - m) over the sum of the same, over the keys j <= i",
    )


@solution("K.1.5")
@triton.jit
def causal_softmax(
    scores_ptr,
    weights_ptr,
    count,
    scores_step,
    weights_step,
    block_size: tl.constexpr,
    wrong: tl.constexpr = "",
):
    row = tl.program_id(0)
    keys = tl.arange(0, block_size)
    inside = keys < count
    seen = inside & (keys <= row)
    if wrong == "not causal":
        seen = inside
    if wrong == "turned around":
        seen = inside & (keys >= row)
    if wrong == "own key hidden":
        seen = inside & (keys < row)
    hidden = -float("inf")
    scores = tl.load(scores_ptr + row * scores_step + keys, mask=seen, other=hidden)
    if wrong == "score 0":
        scores = tl.load(scores_ptr + row * scores_step + keys, mask=seen, other=0.0)
        scores = tl.where(inside, scores, hidden)
    if wrong == "normalizer of all":
        scores = tl.load(scores_ptr + row * scores_step + keys, mask=inside, other=hidden)
    highest = tl.max(scores, 0)
    if wrong == "no max":
        highest = 0.0
    if wrong == "own key hidden":
        highest = tl.where(row == 0, 0.0, highest)
    powers = tl.exp(scores - highest)
    total = tl.sum(powers, 0)
    if wrong == "own key hidden":
        total = tl.where(row == 0, 1.0, total)
    weights = powers / total
    if wrong == "normalizer of all":
        weights = tl.where(seen, weights, 0.0)
    if wrong == "not divided":
        weights = powers
    if wrong == "future not written":
        inside = seen
    if wrong == "no mask":
        inside = keys >= 0
    tl.store(weights_ptr + row * weights_step + keys, weights, mask=inside)


for _wrong, _says in (
    ("not causal", "the causal mask is missing"),
    ("turned around", "the comparison is turned around"),
    ("own key hidden", "a row must see its own key"),
    ("score 0", "a score of 0 is not minus infinity"),
    ("normalizer of all", "the normalizer counts keys of the future"),
    ("no max", "the max is not subtracted"),
    ("not divided", "right places, wrong weights"),
    ("future not written", "was never written"),
    ("no mask", "writes into the gap behind a row"),
):
    mutant("K.1.5", _says, _wrong)(Changed(causal_softmax, wrong=_wrong))

# ---- K.1.6 one walk: running max, total and read


@checker("K.1.6")
def read_in_one_walk(answer) -> str:
    """o_i = sum_j e^{s_ij} v_j / sum_j e^{s_ij} over a row of many blocks."""
    for count, lift in ((37, 0.0), (16, 0.0), (5, 0.0), (37, 2000.0), (37, -2000.0)):
        scores, values = numbers(count, 3, count) + lift, numbers(count + 1, count)
        scores[0, 0] += 4.0  # the maximum comes first, and in the next row last
        scores[1, -1] += 4.0
        case = Case(
            (scores, values),
            (3,),
            lambda given, out: (*given, out, *given[0].shape[1:], given[0].stride(0)),
            (3,),
            {"block_size": 8},
            gapped=(0,),
        )
        result = result_of(answer, case)
        right = scores.softmax(-1) @ values
        if lift:
            require(
                close(result, right),
                f"right for small scores, wrong for scores near {lift:.0f}: the max is not "
                "subtracted before every exponential",
            )
        compared(result, right, _wrong_reads(scores, values), _WALK)
    return "Right for 37 keys in blocks of 8, also for scores near 2000 and -2000."


_WALK = (
    "right places, wrong reads: when the max rises from m to m', total and read both shrink by "
    "exp(m - m'), and they are divided once, at the end"
)


def _wrong_reads(scores, values) -> list[tuple[torch.Tensor, str]]:
    """What comes out of the usual mistakes, computed block by block."""
    made = {}
    for kind in ("total", "read", "direction", "max", "divided", "padding"):
        m = torch.full((3,), -torch.inf, dtype=torch.float64)
        total, read = torch.zeros_like(m), torch.zeros_like(m)
        for start in range(0, scores.shape[1], 8):
            s, v = scores[:, start : start + 8], values[start : start + 8]
            new = s.amax(1) if kind == "max" else torch.maximum(m, s.amax(1))
            shrink = (new - m if kind == "direction" else m - new).exp().nan_to_num(posinf=0.0)
            powers = (s - new[:, None]).exp()
            total = total * (1.0 if kind == "total" else shrink) + powers.sum(1)
            if kind == "padding":
                total = total + (8 - s.shape[1]) * (-new).exp()
            read = read * (1.0 if kind == "read" else shrink) + powers @ v
            m = new
        made[kind] = read if kind == "divided" else read / total
    return [
        (made["total"], "the total is not rescaled when the maximum rises"),
        (made["read"], "the read is not rescaled when the maximum rises"),
        (made["direction"], "rescaled in the wrong direction: the past shrinks by exp(old - new)"),
        (made["divided"], "the read is not divided by the total"),
        (made["padding"], "the padding counts as keys of score 0: load scores with other=-inf"),
        (scores.softmax(-1).mean(-1) * values.sum(), "the values do not meet their weights"),
    ]


@solution("K.1.6")
@triton.jit
def walk(
    scores_ptr,
    values_ptr,
    out_ptr,
    count,
    row_step,
    block_size: tl.constexpr,
    wrong: tl.constexpr = "",
):
    scores_ptr += tl.program_id(0) * row_step
    highest, total, read = -float("inf"), 0.0, 0.0
    if wrong == "no max":
        highest = 0.0
    for start in range(0, count, block_size):
        keys = start + tl.arange(0, block_size)
        inside = keys < count
        if wrong == "last block not masked":
            inside = keys >= 0
        padding = -float("inf")
        if wrong == "padding 0":
            padding = 0.0
        scores = tl.load(scores_ptr + keys, mask=inside, other=padding)
        values = tl.load(values_ptr + keys, mask=inside, other=0.0)
        new = tl.maximum(highest, tl.max(scores, 0))
        if wrong == "padding 0":
            new = tl.maximum(highest, tl.max(tl.where(inside, scores, -float("inf")), 0))
        if wrong == "no max":
            new = 0.0
        shrink = tl.exp(highest - new)
        if wrong == "direction":
            shrink = tl.where(start == 0, 0.0, tl.exp(new - highest))
        powers = tl.exp(scores - new)
        if wrong == "total":
            total = total + tl.sum(powers, 0)
        else:
            total = total * shrink + tl.sum(powers, 0)
        if wrong == "read":
            read = read + tl.sum(powers * values, 0)
        else:
            read = read * shrink + tl.sum(powers * values, 0)
        highest = new
    if wrong == "not divided":
        total = 1.0
    tl.store(out_ptr + tl.program_id(0), read / total)


for _wrong, _says in (
    ("total", "the total is not rescaled"),
    ("read", "the read is not rescaled"),
    ("direction", "in the wrong direction"),
    ("no max", "the max is not subtracted"),
    ("not divided", "not divided by the total"),
    ("padding 0", "the padding counts as keys"),
    ("last block not masked", "numbers that lie beside"),
):
    mutant("K.1.6", _says, _wrong)(Changed(walk, wrong=_wrong))
