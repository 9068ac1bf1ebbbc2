"""The exercises of chapter 1.1, the soft lookup, that are answered with a mechanism."""

import math

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from attnlib.attend import attend
from attnlib.exercises.answers import call, close, require, tensor_of
from attnlib.exercises.registry import ExerciseError, checker, mutant, solution
from attnlib.exercises.seen_keys import require_support

# ---- 1.1.3 softmax over a support


@checker("1.1.3")
def softmax_over_a_support(answer) -> str:
    """w_j = e^{s_j} / sum_{l in S} e^{s_l} in S, zero elsewhere; an empty row is zero."""
    generator = torch.Generator().manual_seed(113)
    scores = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64)
    support = torch.rand(2, 4, 5, generator=generator) < 0.6
    support[..., 1] = True
    weights = tensor_of(call(answer, scores, support), (2, 4, 5))
    require(weights.isfinite().all(), "weights are not finite although every row has a key")
    columns = (weights.sum(-2) - 1).abs().max() < 1e-6
    require(not columns, "the columns sum to one: normalize over the last axis, the keys")
    leak = (weights * ~support).abs().max() < 1e-12
    require(leak, "a key outside the support has a weight: its power must not enter at all")
    rows = (weights.sum(-1) - 1).abs().max() < 1e-6
    require(rows, "the rows do not sum to one: was the mask applied after the softmax?")
    right = scores.masked_fill(~support, -torch.inf).softmax(-1)
    require(close(weights, right), "rows sum to one, but the weights are not powers of e")
    _empty_rows(answer)
    _large_scores(answer)
    return "The weights fit, also in an empty row and for scores up to 1e4, and the gradient does."


def _empty_rows(answer) -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.0, -1.0]], requires_grad=True)
    support = torch.tensor([[False, False, False], [True, True, False]])
    weights = tensor_of(call(answer, scores, support), (2, 3))
    empty = weights[0]
    require(not empty.isnan().any(), "the row with an empty support is NaN: zero divided by zero")
    uniform = close(empty, torch.full((3,), 1 / 3))
    require(not uniform, "the row with an empty support is uniform; it must be zero")
    require((empty == 0).all(), "the row with an empty support has weights; it must be zero")
    (gradient,) = torch.autograd.grad(weights.square().sum(), scores)
    require(
        gradient.isfinite().all(),
        "the gradient is NaN: an empty row was NaN inside and was repaired afterwards",
    )


def _large_scores(answer) -> None:
    scores = torch.tensor([[1e4, 1e4 - 1, 0.0]])
    weights = tensor_of(call(answer, scores, torch.ones(1, 3, dtype=torch.bool)), (1, 3))
    stable = weights.isfinite().all() and close(weights, torch.softmax(scores, -1))
    require(stable, "scores of 1e4 overflow: subtract the maximum of the row first")
    scores, support = torch.tensor([[1e4, 0.0, 1.0]]), torch.tensor([[False, True, True]])
    weights = tensor_of(call(answer, scores, support), (1, 3))
    alive = weights.isfinite().all() and close(weights.sum(), 1.0)
    require(alive, "a large score outside the support spoils the row: take the maximum inside it")
    scores = torch.tensor([[-1e4, -1e4, -1e4]])
    weights = tensor_of(call(answer, scores, support), (1, 3))
    sealed = close(weights, [[0.0, 0.5, 0.5]])
    require(sealed, "low scores let a masked key in: the number that you fill in is not low enough")


@solution("1.1.3")
def masked_softmax(scores, support):
    lowest = torch.finfo(scores.dtype).min
    inside = scores.masked_fill(~support, lowest)
    powers = torch.exp(inside - inside.amax(-1, keepdim=True)) * support
    total = powers.sum(-1, keepdim=True)
    return powers / (total + (total == 0))


@mutant("1.1.3", "applied after the softmax")
def mask_after_softmax(scores, support):
    return torch.softmax(scores, -1) * support


@mutant("1.1.3", "normalize over the last axis")
def wrong_axis(scores, support):
    return torch.softmax(scores.masked_fill(~support, -1e30), -2)


@mutant("1.1.3", "subtract the maximum")
def missing_maximum(scores, support):
    powers = torch.exp(scores) * support
    total = powers.sum(-1, keepdim=True)
    return powers / (total + (total == 0))


@mutant("1.1.3", "empty support is uniform")
def uniform_on_an_empty_row(scores, support):
    return torch.softmax(scores.masked_fill(~support, -1e30), -1)


@mutant("1.1.3", "empty support is NaN")
def nan_on_an_empty_row(scores, support):
    return torch.softmax(scores.masked_fill(~support, -torch.inf), -1)


@mutant("1.1.3", "repaired afterwards")
def nan_repaired_afterwards(scores, support):
    bias = torch.zeros_like(scores).masked_fill(~support, -torch.inf)
    return torch.softmax(scores + bias, -1).nan_to_num()


@mutant("1.1.3", "maximum inside it")
def maximum_over_all_keys(scores, support):
    powers = torch.exp(scores - scores.amax(-1, keepdim=True)) * support
    total = powers.sum(-1, keepdim=True)
    return powers / (total + (total == 0))


@mutant("1.1.3", "must not enter at all")
def scores_times_mask(scores, support):
    return torch.softmax(scores * support, -1)


@mutant("1.1.3", "not low enough")
def filled_with_minus_ten_thousand(scores, support):
    filled = scores.masked_fill(~support, -1e4)
    return torch.softmax(filled, -1) * support.any(-1, keepdim=True)


@mutant("1.1.3", "changes its input")
def in_place(scores, support):
    with torch.no_grad():
        scores.masked_fill_(~support, torch.finfo(scores.dtype).min)
    return torch.softmax(scores, -1) * support


@mutant("1.1.3", "lack a return")
def no_return(scores, support):
    masked_softmax(scores, support)


@mutant("1.1.3", "not powers of e")
def powers_of_two(scores, support):
    return masked_softmax(scores * math.log(2), support)


@mutant("1.1.3", "an empty support has weights")
def softmax_of_an_empty_row(scores, support):
    return torch.softmax(scores - 1e30 * ~support * support.any(-1, keepdim=True), -1)


# ---- 1.1.4 causal attention with an offset, aligned at the top left


@checker("1.1.4")
def causal_attention_with_an_offset(answer) -> str:
    """softmax(q_i.k_j / sqrt(D)) over j <= i + query_offset."""
    for queries, keys, offset in ((4, 4, 0), (3, 5, 0), (3, 7, 2), (6, 3, 0), (1, 6, 5)):
        generator = torch.Generator().manual_seed(114)
        shapes = ((2, queries, 5), (2, keys, 5))
        query, key = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
        eye = torch.eye(keys, dtype=torch.float64).expand(2, keys, keys)
        # With the identity as values, what is read are the weights themselves.
        result = call(answer, query, key, eye, query_offset=offset)
        weights = tensor_of(result, (2, queries, keys))
        case = f"with {queries} queries, {keys} keys and query_offset={offset}, "
        require(weights.isfinite().all(), f"{case}the read is not finite")
        _support_of(weights, queries, keys, offset, case)
        rows = (weights.sum(-1) - 1).abs().max() < 1e-6
        require(rows, f"{case}the weights of a row do not sum to one: mask before the softmax")
        right = attend(query, key, eye, is_causal=True, query_offset=offset)
        require(
            close(weights, right),
            f"{case}the support is right but the weights are not: is the score q.k / sqrt(D)?",
        )
    return "Same support and weights as attend for fewer, as many and more queries than keys."


def _support_of(weights: Tensor, queries: int, keys: int, offset: int, case: str) -> None:
    """Refuse weights whose support is not j <= i + offset, and say how it is shifted."""
    distance = torch.arange(keys) - torch.arange(queries)[:, None]
    seen = (weights > 1e-12).any(0)
    ignored = offset and torch.equal(seen, distance <= 0)
    require(not ignored, f"{case}row 0 sees only key 0: the offset is ignored")
    require_support(seen, distance <= offset, case)


@solution("1.1.4")
def causal_attention(query, key, value, query_offset=0):
    return _masked_read(query, key, value, lambda i, j: j <= i + query_offset)


def _masked_read(query, key, value, sees):
    i = torch.arange(query.shape[-2])[:, None]
    j = torch.arange(key.shape[-2])[None, :]
    scores = query @ key.mT / query.shape[-1] ** 0.5
    return torch.softmax(scores.masked_fill(~sees(i, j), -1e30), -1) @ value


@mutant("1.1.4", "does not see key 0, which it may: the mask is shifted by one")
def blind_to_itself(query, key, value, query_offset=0):
    sees = _masked_read(query, key, value, lambda i, j: j < i + query_offset)
    return torch.cat([torch.zeros_like(sees[..., :1, :]), sees[..., 1:, :]], -2)


@mutant("1.1.4", "sees key 1, which it may not see: the mask is shifted by one")
def one_step_ahead(query, key, value, query_offset=0):
    return _masked_read(query, key, value, lambda i, j: j <= i + 1 + query_offset)


@mutant("1.1.4", "the mask is aligned at its last row and key")
def aligned_bottom_right(query, key, value, query_offset=0):
    shift = key.shape[-2] - query.shape[-2]
    return _masked_read(query, key, value, lambda i, j: j <= i + shift)


@mutant("1.1.4", "offset is ignored")
def offset_ignored(query, key, value, query_offset=0):
    return _masked_read(query, key, value, lambda i, j: j <= i)


@mutant("1.1.4", "does not see key")
def offset_subtracted(query, key, value, query_offset=0):
    return _masked_read(query, key, value, lambda i, j: j <= (i - query_offset).clamp(min=0))


@mutant("1.1.4", "no mask is applied")
def no_mask(query, key, value, query_offset=0):
    return _masked_read(query, key, value, lambda i, j: i + j >= 0)


@mutant("1.1.4", "is the score q.k / sqrt(D)")
def no_scale(query, key, value, query_offset=0):
    return causal_attention(query * query.shape[-1] ** 0.5, key, value, query_offset)


@mutant("1.1.4", "mask before the softmax")
def masked_after(query, key, value, query_offset=0):
    weights = _masked_read(query, key, torch.eye(key.shape[-2]).to(key), lambda i, j: i + j >= 0)
    return weights.tril(query_offset) @ value


@mutant("1.1.4", "raised TypeError")
def no_offset_argument(query, key, value):
    return causal_attention(query, key, value)


# ---- 1.1.5 the additive score for all pairs at once


class _Operations(TorchFunctionMode):
    """Counts the torch functions that are called inside it."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, arguments=(), options=None):
        self.count += 1
        return function(*arguments, **(options or {}))


def _additive_case(queries: int, keys: int, batch: tuple[int, ...] = ()) -> list[Tensor]:
    generator = torch.Generator().manual_seed(115)
    shapes = ((*batch, queries, 4), (*batch, keys, 6), (7, 4), (7, 6), (7,))
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


@checker("1.1.5")
def additive_score_of_all_pairs(answer) -> str:
    """s_ij = v . tanh(W q_i + U k_j) for all pairs, with as many operations for any lengths."""
    inputs = _additive_case(3, 5)
    query, key, query_matrix, key_matrix, vector = inputs
    given = tensor_of(call(answer, *inputs), (3, 5))
    of_query = (query @ query_matrix.mT)[:, None]
    of_key = (key @ key_matrix.mT)[None]
    right = torch.tanh(of_query + of_key) @ vector
    likely = (
        ((of_query + of_key) @ vector, "the hyperbolic tangent is missing"),
        (
            (torch.tanh(of_query) + torch.tanh(of_key)) @ vector,
            "the tanh is taken of each part; it is taken of the sum W q + U k",
        ),
        (right * 7**-0.5, "the additive score has no 1/sqrt scale: tanh bounds it already"),
        (torch.tanh(right), "the tanh comes before the product with v, not after it"),
    )
    for wrong, message in likely:
        require(not close(given, wrong), message)
    require(close(given, right), "not the score v . tanh(W q_i + U k_j)")
    counts = []
    for length in (3, 9):
        with _Operations() as operations:
            call(answer, *_additive_case(length, length + 2))
        counts.append(operations.count)
    require(
        counts[0] == counts[1],
        f"a loop: {counts[0]} operations for 3 queries, {counts[1]} for 9; let broadcasting do it",
    )
    _batched_scores(answer)
    return "All pairs at once, the number of operations does not depend on the lengths."


def _batched_scores(answer) -> None:
    message = (
        "right for (N, D), but not with a batch in front: count axes from the end, "
        "unsqueeze(-2) and unsqueeze(-3)"
    )
    query, key, *weights = _additive_case(3, 5, batch=(2,))
    single = [call(answer, q, k, *weights) for q, k in zip(query, key, strict=True)]
    try:
        batched = call(answer, query, key, *weights)
    except ExerciseError as error:
        raise ExerciseError(message) from error
    require(isinstance(batched, Tensor) and close(batched, torch.stack(single)), message)


@solution("1.1.5")
def additive_score(query, key, query_matrix, key_matrix, vector):
    of_query = (query @ query_matrix.mT).unsqueeze(-2)
    of_key = (key @ key_matrix.mT).unsqueeze(-3)
    return torch.tanh(of_query + of_key) @ vector


@mutant("1.1.5", "last two are swapped")
def keys_as_rows(query, key, query_matrix, key_matrix, vector):
    return additive_score(query, key, query_matrix, key_matrix, vector).mT


@mutant("1.1.5", "tangent is missing")
def no_tanh(query, key, query_matrix, key_matrix, vector):
    return ((query @ query_matrix.mT)[:, None] + key @ key_matrix.mT) @ vector


@mutant("1.1.5", "tanh is taken of each part")
def tanh_of_each_part(query, key, query_matrix, key_matrix, vector):
    of_query, of_key = torch.tanh(query @ query_matrix.mT), torch.tanh(key @ key_matrix.mT)
    return (of_query[:, None] + of_key) @ vector


@mutant("1.1.5", "tanh bounds it already")
def scaled(query, key, query_matrix, key_matrix, vector):
    score = additive_score(query, key, query_matrix, key_matrix, vector)
    return score / len(vector) ** 0.5


@mutant("1.1.5", "comes before the product with v")
def tanh_of_the_score(query, key, query_matrix, key_matrix, vector):
    return torch.tanh(additive_score(query, key, query_matrix, key_matrix, vector))


@mutant("1.1.5", "a loop")
def with_a_loop(query, key, query_matrix, key_matrix, vector):
    rows = [torch.tanh(query_matrix @ q + key @ key_matrix.mT) @ vector for q in query]
    return torch.stack(rows)


@mutant("1.1.5", "with a batch in front")
def axes_counted_from_the_front(query, key, query_matrix, key_matrix, vector):
    of_query, of_key = query @ query_matrix.mT, key @ key_matrix.mT
    return torch.tanh(of_query[:, None] + of_key[None, :]) @ vector


@mutant("1.1.5", "raised RuntimeError")
def matrix_not_transposed(query, key, query_matrix, key_matrix, vector):
    return additive_score(query, key, query_matrix.mT, key_matrix.mT, vector)
