"""The exercises of chapter 1.4 on tiles: the gradient of one, and which of them are visited."""

import torch
from torch import Tensor

from attnlib.attend import attend
from attnlib.counting import largest_tensor
from attnlib.exercises.answers import call, close, compared, require, tensor_of
from attnlib.exercises.exact_and_cached_programs import random
from attnlib.exercises.registry import ExerciseError, checker, mutant, solution

# ---- 1.4.5 the backward pass by recomputation


@checker("1.4.5")
def backward_by_recomputation(answer) -> str:
    """dV = P^T dO; dS = P (dO V^T - delta); dQ = c dS K; dK = c dS^T Q; P = exp(c Q K^T - lse)."""
    shapes = (2, 4, 3), (2, 7, 3), (2, 7, 5), (2, 4, 5)
    query, key, value, grad_read = random(151, *shapes)
    gradients = _gradients(query, key, value, grad_read)
    scores = query @ key.mT / 3**0.5
    lse, read = torch.logsumexp(scores, -1, keepdim=True), attend(query, key, value)
    result = _three(answer, query, key, value, read, lse, grad_read)
    weights = torch.softmax(scores, -1)
    wrong = (
        (scores.exp().mT @ grad_read, "grad_value: log_sum_exp is not subtracted"),
        (
            torch.exp(query @ key.mT - lse).mT @ grad_read,
            "grad_value: the scores must be scaled before log_sum_exp is subtracted",
        ),
        (weights.mT @ read, "grad_value: the weights meet grad_read, not read"),
    )
    compared(result[2], gradients[2], wrong, "grad_value: it is P^T grad_read")
    _gradient_of_scores(result, gradients, query, key, value, weights, grad_read)
    _on_a_part_of_the_keys(answer, query, key, value, read, lse, grad_read, gradients)
    return "Equal to autograd on all keys, and on a part of the keys too: a tile is enough."


def _gradients(query, key, value, grad_read) -> tuple[Tensor, ...]:
    inputs = [x.clone().requires_grad_() for x in (query, key, value)]
    return torch.autograd.grad(attend(*inputs), inputs, grad_read)


def _three(answer, query, key, value, *rest) -> list[Tensor]:
    result = call(answer, query, key, value, *rest)
    require(
        isinstance(result, (tuple, list)) and len(result) == 3,
        "return three gradients: of query, key and value",
    )
    names = zip(("query", "key", "value"), result, (query, key, value), strict=True)
    return [tensor_of(came, tuple(x.shape), f"grad_{name}") for name, came, x in names]


def _gradient_of_scores(result, gradients, query, key, value, weights, grad_read) -> None:
    """Refuse wrong gradients of query and key, by what is wrong with that of the scores."""
    of_weights, scale = grad_read @ value.mT, query.shape[-1] ** -0.5
    along_keys = (weights * of_weights).sum(-1, keepdim=True)
    along_queries = (weights * of_weights).sum(-2, keepdim=True)
    right = weights * (of_weights - along_keys)
    wrong = (
        (weights * of_weights, "delta is missing: the weights of a row share one sum"),
        (weights * (of_weights - along_queries), "delta has the wrong axis: one number a query"),
        (weights * (of_weights + along_keys), "the sign of delta: it is subtracted"),
        (of_weights - along_keys, "the weights are missing: dS = P (dP - delta)"),
        (right / scale, "the scale is missing: the scores are c q.k, so a factor c comes out"),
        (right * scale, "the scale comes in twice"),
    )
    for given, gradient, other, turned, name in (
        (result[0], gradients[0], key, lambda x: x, "grad_query"),
        (result[1], gradients[1], query, lambda x: x.mT, "grad_key"),
    ):
        likely = tuple(
            (scale * turned(of_scores) @ other, f"{name}: {m}") for of_scores, m in wrong
        )
        compared(given, gradient, likely, f"{name}: right shape, wrong numbers")


def _on_a_part_of_the_keys(answer, query, key, value, read, lse, grad_read, gradients) -> None:
    """A kernel sees one tile of keys at a time, with `read` and `lse` of all keys."""
    of_query = torch.zeros_like(query)
    for tile in (slice(0, 3), slice(3, 7)):
        part = _three(answer, query, key[:, tile], value[:, tile], read, lse, grad_read)
        of_query = of_query + part[0]
        require(
            close(part[2], gradients[2][:, tile]),
            "right for all keys, wrong for a part of them: the weights must come from the stored "
            "log_sum_exp, which knows all keys; do not normalize again",
        )
        require(
            close(part[1], gradients[1][:, tile]),
            "right for all keys, wrong for a part of them: take delta from grad_read and read, "
            "which know all keys, not from a sum over the keys at hand",
        )
    require(close(of_query, gradients[0]), "grad_query of the parts must add up to that of all")


@solution("1.4.5")
def flash_backward(query, key, value, read, log_sum_exp, grad_read):
    return _backward(query, key, value, read, log_sum_exp, grad_read)


def _backward(query, key, value, read, log_sum_exp, grad_read, of_scores=None, factor=None):
    """The three gradients, with what a mutant may change: that of the scores, and the scale."""
    scale = query.shape[-1] ** -0.5
    weights = torch.exp(scale * query @ key.mT - log_sum_exp)
    of_weights = grad_read @ value.mT
    delta = (grad_read * read).sum(-1, keepdim=True)
    if of_scores is None:
        grad_scores = weights * (of_weights - delta)
    else:
        grad_scores = of_scores(weights, of_weights, delta)
    factor = scale if factor is None else factor(scale)
    return factor * grad_scores @ key, factor * grad_scores.mT @ query, weights.mT @ grad_read


@mutant("1.4.5", "delta is missing")
def delta_missing(*inputs):
    return _backward(*inputs, of_scores=lambda p, dp, delta: p * dp)


@mutant("1.4.5", "delta has the wrong axis")
def delta_of_the_keys(*inputs):
    return _backward(
        *inputs, of_scores=lambda p, dp, delta: p * (dp - (p * dp).sum(-2, keepdim=True))
    )


@mutant("1.4.5", "sign of delta")
def delta_added(*inputs):
    return _backward(*inputs, of_scores=lambda p, dp, delta: p * (dp + delta))


@mutant("1.4.5", "the weights are missing")
def weights_missing(*inputs):
    return _backward(*inputs, of_scores=lambda p, dp, delta: dp - delta)


@mutant("1.4.5", "not from a sum over the keys at hand")
def delta_of_the_part(*inputs):
    return _backward(
        *inputs, of_scores=lambda p, dp, delta: p * (dp - (p * dp).sum(-1, keepdim=True))
    )


@mutant("1.4.5", "grad_query: the scale is missing")
def scale_missing(*inputs):
    return _backward(*inputs, factor=lambda scale: 1.0)


@mutant("1.4.5", "the scale comes in twice")
def scale_squared(*inputs):
    return _backward(*inputs, factor=lambda scale: scale * scale)


@mutant("1.4.5", "grad_key: the scale is missing")
def scale_missing_in_the_key(query, *inputs):
    of_query, of_key, of_value = _backward(query, *inputs)
    return of_query, of_key * query.shape[-1] ** 0.5, of_value


@mutant("1.4.5", "log_sum_exp is not subtracted")
def weights_not_normalized(query, key, value, read, log_sum_exp, grad_read):
    return _backward(query, key, value, read, 0 * log_sum_exp, grad_read)


@mutant("1.4.5", "do not normalize again")
def softmax_of_the_part(query, key, value, read, log_sum_exp, grad_read):
    scores = query @ key.mT / query.shape[-1] ** 0.5
    again = torch.logsumexp(scores, -1, keepdim=True)
    return _backward(query, key, value, read, again, grad_read)


@mutant("1.4.5", "grad_key must have shape")
def key_and_value_exchanged(*inputs):
    of_query, of_key, of_value = _backward(*inputs)
    return of_query, of_value, of_key


@mutant("1.4.5", "raised RuntimeError")
def gradient_not_transposed(query, key, value, read, log_sum_exp, grad_read):
    scale = query.shape[-1] ** -0.5
    weights = torch.exp(scale * query @ key.mT - log_sum_exp)
    return scale * weights @ key, scale * weights @ query, weights.mT @ grad_read


# ---- 1.4.6 which tiles of the scores are skipped, masked in part, or full

SKIP, PARTIAL, FULL = 0, 1, 2
WORDS = ("skip (0)", "partial (1)", "full (2)")


def table_of_tiles(allowed: Tensor, query_block: int, key_block: int) -> Tensor:
    """SKIP, PARTIAL or FULL for each tile of a mask; only entries that exist count."""
    rows = allowed.split(query_block, 0)
    bands = [[tile for tile in row.split(key_block, 1)] for row in rows]
    return torch.tensor([[int(tile.any()) + int(tile.all()) for tile in band] for band in bands])


def _allowed(queries, keys, is_causal=False, query_offset=0, window=None) -> Tensor:
    distance = torch.arange(queries)[:, None] + query_offset - torch.arange(keys)
    allowed = distance >= 0 if is_causal else torch.ones_like(distance, dtype=torch.bool)
    return allowed if window is None else allowed & (distance < window)


@checker("1.4.6")
def tiles_of_the_scores(answer) -> str:
    """For each tile: is no entry, a part of the entries, or every entry allowed?"""
    _tiles_of(answer, "no mask: every tile that exists is full", 10, 7, 4, 4)
    causal = "causal, square"
    _tiles_of(answer, causal, 12, 12, 4, 4, is_causal=True)
    _tiles_of(answer, "causal, blocks of unequal size", 12, 12, 6, 2, is_causal=True)
    _tiles_of(answer, "causal, fewer queries than keys (top-left)", 4, 12, 2, 2, is_causal=True)
    offset = "causal, with query_offset"
    _tiles_of(answer, offset, 4, 12, 2, 3, is_causal=True, query_offset=8)
    _tiles_of(answer, "causal, last tiles ragged", 9, 10, 4, 4, is_causal=True, query_offset=1)
    for window in (1, 3, 4, 5):
        case = f"causal, window={window} (the last {window} keys, the own one included)"
        _tiles_of(answer, case, 12, 12, 4, 4, is_causal=True, window=window)
        options = {"is_causal": True, "query_offset": 5, "window": window}
        _tiles_of(answer, f"{case}, query_offset=5", 7, 13, 3, 2, **options)
    options = {"is_causal": True, "query_offset": 0, "window": 64}
    largest = largest_tensor(lambda: call(answer, 512, 512, 64, 64, **options))
    require(
        largest < 512 * 512,
        "right, but it makes the whole mask: the corners of a tile decide, without its entries",
    )
    return "Right for ragged tiles, offsets and windows, from the corners of each tile alone."


def _tiles_of(answer, case: str, queries, keys, query_block, key_block, **options) -> None:
    allowed = _allowed(queries, keys, **options)
    right = table_of_tiles(allowed, query_block, key_block)
    options = {"is_causal": False, "query_offset": 0, "window": None} | options
    given = call(answer, queries, keys, query_block, key_block, **options)
    case = f"{case}: {queries} queries and {keys} keys in tiles of {query_block} by {key_block}, "
    try:
        given = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ExerciseError(f"expected a table of numbers, got {given!r}") from error
    floor = tuple(given.shape) == (queries // query_block, keys // key_block) != tuple(right.shape)
    require(not floor, f"{case}the last, ragged tiles are left out: round up")
    given = tensor_of(given, tuple(right.shape), f"{case}the table")
    for row, column in (given != right).nonzero().tolist():
        came, expected = given[row, column].item(), right[row, column].item()
        require(came in (SKIP, PARTIAL, FULL), f"{case}{came} is no code; they are 0, 1 and 2")
        ragged = (
            came == PARTIAL
            and expected == FULL
            and ((row + 1) * query_block > queries or (column + 1) * key_block > keys)
        )
        hint = _hint(came, expected) if not ragged else "entries that do not exist do not count"
        require(
            False,
            f"{case}tile ({row}, {column}) should be {WORDS[expected]}, got {WORDS[came]}: {hint}",
        )


def _hint(came: int, expected: int) -> str:
    if came == FULL:
        return "full needs every entry, so look at its least and at its greatest distance i - j"
    if came == SKIP:
        return "skip needs that no entry is allowed, so look at both opposite corners"
    if expected == SKIP:
        return "no entry of it is allowed, so it need not be visited"
    return "every entry of it is allowed, so it needs no mask"


def _from_corners(queries, keys, query_block, key_block, lowest, highest, offset):
    """Codes of all tiles for allowed distances i + offset - j from `lowest` to `highest`."""
    rows = torch.arange(0, queries, query_block)[:, None] + offset
    columns = torch.arange(0, keys, key_block)
    last_row = (rows + query_block - 1).clamp(max=queries - 1 + offset)
    last_column = (columns + key_block - 1).clamp(max=keys - 1)
    near, far = rows - last_column, last_row - columns
    some = (far >= lowest) & (near <= highest)
    every = (near >= lowest) & (far <= highest)
    return some.long() + every.long()


ANY = 10**9


@solution("1.4.6")
def tiles(queries, keys, query_block, key_block, is_causal=False, query_offset=0, window=None):
    lowest = 0 if is_causal else -ANY
    highest = ANY if window is None else window - 1
    return _from_corners(queries, keys, query_block, key_block, lowest, highest, query_offset)


@mutant("1.4.6", "the corners of a tile decide")
def from_the_mask(queries, keys, query_block, key_block, **options):
    return table_of_tiles(_allowed(queries, keys, **options), query_block, key_block)


@mutant("1.4.6", "full needs every entry")
def diagonal_called_full(*sizes, **options):
    table = tiles(*sizes, **options)
    return torch.where(table == PARTIAL, FULL, table)


@mutant("1.4.6", "causal, blocks of unequal size")
def compared_by_index(*sizes, is_causal=False, **options):
    table = tiles(*sizes)
    row, column = torch.arange(table.shape[0])[:, None], torch.arange(table.shape[1])
    causal = (column < row) * FULL + (column == row) * PARTIAL
    return causal if is_causal else table


@mutant("1.4.6", "skip needs that no entry is allowed")
def first_query_decides(queries, keys, query_block, key_block, is_causal=False, **options):
    table = tiles(queries, keys, query_block, key_block, is_causal, **options)
    rows = torch.arange(0, queries, query_block)[:, None] + options["query_offset"]
    return table * (rows > torch.arange(0, keys, key_block)) if is_causal else table


@mutant("1.4.6", "fewer queries than keys (top-left)")
def aligned_bottom_right(queries, keys, *blocks, query_offset=0, **options):
    return tiles(queries, keys, *blocks, query_offset=keys - queries, **options)


@mutant("1.4.6", "causal, with query_offset")
def offset_ignored(*sizes, query_offset=0, **options):
    return tiles(*sizes, **options)


@mutant("1.4.6", "entries that do not exist do not count")
def ragged_tiles_partial(queries, keys, query_block, key_block, **options):
    table = tiles(queries, keys, query_block, key_block, **options)
    ragged = queries % query_block > 0
    table[-1] = torch.where(table[-1] == FULL, FULL - ragged, table[-1])
    return table


@mutant("1.4.6", "round up")
def ragged_tiles_left_out(queries, keys, query_block, key_block, **options):
    table = tiles(queries, keys, query_block, key_block, **options)
    return table[: queries // query_block, : keys // key_block]


@mutant("1.4.6", "causal, window=")
def window_one_too_wide(*sizes, window=None, **options):
    return tiles(*sizes, window=None if window is None else window + 1, **options)


@mutant("1.4.6", "it need not be visited")
def window_only_masks(*sizes, window=None, **options):
    table, causal = tiles(*sizes, window=window, **options), tiles(*sizes, **options)
    return torch.where(table == SKIP, causal.clamp(max=PARTIAL), table)


@mutant("1.4.6", "is no code")
def codes_of_its_own(*sizes, **options):
    return 1 + tiles(*sizes, **options)


@mutant("1.4.6", "last two are swapped")
def rows_are_keys(*sizes, **options):
    return tiles(*sizes, **options).mT
