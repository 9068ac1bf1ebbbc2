"""The checked questions of the preliminaries."""

import math

import torch

from attnlib.exercises.answers import call, close, numbers, require, tensor_of
from attnlib.exercises.registry import checker, mutant, solution

# ---- P.1 softmax by hand


@checker("P.1")
def softmax_by_hand(answer) -> str:
    """softmax(0, log 2, log 3) = (1, 2, 3) / 6."""
    given = numbers(answer, 3)
    scores = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).log()
    right = torch.softmax(scores, 0)
    likely = (
        (scores.exp(), "these are the powers of e; divide them by their sum"),
        (scores / scores.sum(), "take the powers of e before you divide by the sum"),
        (right.log(), "these are the logarithms of the weights"),
    )
    for wrong, message in likely:
        require(not close(given, wrong, 1e-3), message)
    require(close(given.sum(), 1.0, 1e-3), "the weights must sum to one")
    require(close(given, right, 1e-3), "the weights stand to each other as 1 to 2 to 3")
    return "The powers of e are 1, 2 and 3, and their sum is 6."


solution("P.1")((1 / 6, 1 / 3, 1 / 2))
mutant("P.1", "divide them by their sum", "powers")((1.0, 2.0, 3.0))
mutant("P.1", "before you divide", "no powers")((0.0, math.log(2) / math.log(6), 0.613147))
mutant("P.1", "logarithms of the weights", "log softmax")(
    (-math.log(6), -math.log(3), -math.log(2))
)
mutant("P.1", "sum to one", "not normalized")((0.5, 0.3, 0.1))
mutant("P.1", "as 1 to 2 to 3", "uniform")((1 / 3, 1 / 3, 1 / 3))

# ---- P.2 log-sum-exp that does not overflow


@checker("P.2")
def stable_log_sum_exp(answer) -> str:
    """log sum_j e^{s_j} over the last axis, finite for scores of any size."""
    generator = torch.Generator().manual_seed(2)
    scores = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    result = call(answer, scores)
    require(
        not (isinstance(result, torch.Tensor) and tuple(result.shape) == (4, 1)),
        "one number a row, please: the result has shape (4, 1), expected (4,)",
    )
    require(
        not (isinstance(result, torch.Tensor) and tuple(result.shape) in ((5,), ())),
        "the sum runs over the wrong axis: it is the last one",
    )
    given = tensor_of(result, (4,))
    right, highest = torch.logsumexp(scores, -1), scores.amax(-1)
    require(not close(given, right - highest), "add the maximum back after the logarithm")
    require(not close(given, right.exp()), "the logarithm is missing")
    require(close(given, right), "not log(sum(exp(scores)))")
    for shift in (1e4, -1e4):
        moved = tensor_of(call(answer, scores + shift), (4,))
        require(
            close(moved, right + shift),
            f"scores near {shift:.0f} are not finite: subtract the maximum of each row first",
        )
    far = torch.tensor([[1e4, 0.0], [-1e4, 0.0]], dtype=torch.float64)
    require(
        close(tensor_of(call(answer, far), (2,)), far.amax(-1)),
        "rows of different size fail: each row needs its own maximum",
    )
    return "Finite also for scores near 10000 and -10000."


@solution("P.2")
def log_sum_exp(scores):
    highest = scores.amax(-1, keepdim=True)
    return (scores - highest).exp().sum(-1).log() + highest.squeeze(-1)


@mutant("P.2", "subtract the maximum")
def overflowing(scores):
    return scores.exp().sum(-1).log()


@mutant("P.2", "add the maximum back")
def maximum_forgotten(scores):
    return (scores - scores.amax(-1, keepdim=True)).exp().sum(-1).log()


@mutant("P.2", "wrong axis")
def sum_over_rows(scores):
    return torch.logsumexp(scores, 0)


@mutant("P.2", "one number a row")
def axis_kept(scores):
    return torch.logsumexp(scores, -1, keepdim=True)


@mutant("P.2", "each row needs its own maximum")
def one_maximum_for_all(scores):
    return (scores - scores.max()).exp().sum(-1).log() + scores.max()


@mutant("P.2", "logarithm is missing")
def no_logarithm(scores):
    return scores.exp().sum(-1)


@mutant("P.2", "not log(sum(exp(scores)))")
def mean_instead_of_sum(scores):
    return scores.exp().mean(-1).log()


# ---- P.3 one entry of the Jacobian of softmax


@checker("P.3")
def entry_of_the_jacobian(answer) -> str:
    """dp_1 / ds_2 = -p_1 p_2 at p = (1/6, 1/3, 1/2)."""
    given = numbers(answer, 1)[0]
    require(not close(given, 1 / 18, 1e-3), "the sign: raising one score lowers the other weights")
    require(
        not close(given, 1 / 6 * 5 / 6, 1e-3) and not close(given, 1 / 3 * 2 / 3, 1e-3),
        "that is an entry of the diagonal, p(1 - p); here the two indices differ",
    )
    require(not close(given, -1 / 12, 1e-3), "that is -p_1 p_3; the second score is asked for")
    require(not close(given, 0.0, 1e-3), "the weights share one sum, so each depends on each score")
    require(close(given, -1 / 18, 1e-3), "off the diagonal the Jacobian is -p_i p_j")
    return "Raising the second score takes weight from the first: -p₁ p₂."


solution("P.3")(-1 / 18)
mutant("P.3", "the sign", "plus")(1 / 18)
mutant("P.3", "entry of the diagonal", "diagonal")(5 / 36)
mutant("P.3", "-p_1 p_3", "third score")(-1 / 12)
mutant("P.3", "share one sum", "zero")(0.0)
mutant("P.3", "off the diagonal", "guess")(-0.5)

# ---- P.5 the read of all heads as one einsum


@checker("P.5")
def read_as_einsum(answer) -> str:
    """o[b, h, n, e] = sum_m w[b, h, n, m] v[b, h, m, e]."""
    require(isinstance(answer, str), f"expected a string, got {type(answer).__name__}")
    require("->" in answer, 'name the axes of the result too, after "->"')
    generator = torch.Generator().manual_seed(5)
    weights = torch.rand(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    value = torch.rand(2, 3, 5, 6, generator=generator, dtype=torch.float64)
    try:
        result = torch.einsum(answer, weights, value)
    except RuntimeError as error:
        message = f"torch.einsum refuses it: {error}"
    else:
        message = ""
    require(not message, message)
    came = tuple(result.shape)
    require(came != (3, 4, 6), "the batch axis was summed away: b must stand in the result")
    require(came != (2, 4, 6), "the heads were added up: h must stand in the result")
    require(came == (2, 3, 4, 6), f"the result must have axes (b, h, n, e), got shape {came}")
    require(close(result, weights @ value), "right shape, but not the sum over the keys m")
    return "The key axis m is the only one that is summed."


solution("P.5")("b h n m, b h m e -> b h n e")
mutant("P.5", "after", "no result axes")("bhnm,bhme")
mutant("P.5", "batch axis was summed", "no batch")("bhnm,bhme->hne")
mutant("P.5", "heads were added", "no heads")("bhnm,bhme->bne")
mutant("P.5", "refuses", "value as (e, m)")("bhnm,bhem->bhne")
mutant("P.5", "must have axes", "keys as rows")("bhnm,bhme->bhme")
mutant("P.5", "not the sum over the keys", "separate sums")("bhnm,bhke->bhne")
mutant("P.5", "expected a string", "a tensor")(torch.zeros(1))

# ---- P.6 the gradient of a bilinear form


@checker("P.6")
def gradients_of_a_bilinear_form(answer) -> str:
    """For f = q^T W k: df/dq = W k, df/dW = q k^T, df/dk = W^T q."""
    generator = torch.Generator().manual_seed(6)
    shapes = ((3,), (3, 4), (4,))
    query, matrix, key = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    result = call(answer, query, matrix, key)
    require(
        isinstance(result, (tuple, list)) and len(result) == 3,
        "return three gradients: for query, matrix and key",
    )
    right = (matrix @ key, query[:, None] * key, matrix.T @ query)
    for name, given, gradient in zip(("query", "matrix", "key"), result, right, strict=True):
        require(
            not (name == "matrix" and getattr(given, "shape", None) == (4, 3)),
            "the gradient for the matrix is transposed: entry (i, j) is q_i k_j",
        )
        given = tensor_of(given, tuple(gradient.shape), f"the gradient for the {name}")
        require(not close(given, -gradient), f"the gradient for the {name} has the wrong sign")
        require(
            close(given, gradient),
            f"the gradient for the {name} is wrong: write f as a sum over i and j and take the "
            "derivative of one term",
        )
    return "Each gradient has the shape of its variable."


@solution("P.6")
def bilinear_gradients(query, matrix, key):
    return matrix @ key, torch.outer(query, key), matrix.T @ query


@mutant("P.6", "transposed")
def outer_the_other_way(query, matrix, key):
    return matrix @ key, torch.outer(key, query), matrix.T @ query


@mutant("P.6", "return three gradients")
def two_gradients(query, matrix, key):
    return matrix @ key, matrix.T @ query


@mutant("P.6", "gradient for the query must have shape (3,), got (4,)")
def exchanged(query, matrix, key):
    return matrix.T @ query, torch.outer(query, key), matrix @ key


@mutant("P.6", "gradient for the query is wrong")
def matrix_forgotten(query, matrix, key):
    return query, torch.outer(query, key), key


@mutant("P.6", "wrong sign")
def negative(query, matrix, key):
    return tuple(-gradient for gradient in bilinear_gradients(query, matrix, key))


# ---- P.8 the largest score whose power of e is finite


@checker("P.8")
def largest_score_in_half_precision(answer) -> str:
    """log(65504), the logarithm of the largest float16."""
    given = numbers(answer, 1)[0]
    largest = torch.finfo(torch.float16).max
    require(
        not close(given, largest, 1e-3), "that is the largest number; which score has it as power?"
    )
    require(not close(given, math.log2(largest), 1e-3), "the natural logarithm, not that of base 2")
    single = math.log(torch.finfo(torch.float32).max)
    require(not close(given, single, 1e-2), "that is the limit of float32, the question is float16")
    require(close(given, math.log(largest), 2e-3), "solve e^s = torch.finfo(torch.float16).max")
    return "A score just above 11 overflows in float16 unless the maximum is subtracted."


solution("P.8")(math.log(65504))
mutant("P.8", "largest number", "the largest float16")(65504)
mutant("P.8", "natural logarithm", "base 2")(16)
mutant("P.8", "limit of float32", "float32")(88.72)
mutant("P.8", "solve", "guess")(10)

# ---- P.10 the best guess of a hidden entry


@checker("P.10")
def posterior_mean(answer) -> str:
    """Prior 1/2 each, likelihoods 3 to 1, values 0 and 8: the posterior mean is 2."""
    given = numbers(answer, 1)[0]
    require(not close(given, 4.0, 1e-3), "that is the mean before the query was seen")
    require(not close(given, 0.0, 1e-3), "that is the likeliest value, not the mean")
    require(not close(given, 6.0, 1e-3), "the weights are exchanged: the first entry is likelier")
    require(
        not close(given, 8.0, 1e-3) and not close(given, 1.0, 1e-3),
        "the posterior must be normalized: divide prior times likelihood by its sum",
    )
    require(close(given, 2.0, 1e-3), "weights are prior times likelihood, divided by their sum")
    return "Three quarters of 0 and one quarter of 8."


solution("P.10")(2)
mutant("P.10", "before the query", "prior mean")(4)
mutant("P.10", "likeliest value", "mode")(0)
mutant("P.10", "exchanged", "weights exchanged")(6)
mutant("P.10", "normalized", "not normalized")(8)
mutant("P.10", "prior times likelihood", "guess")(5)
