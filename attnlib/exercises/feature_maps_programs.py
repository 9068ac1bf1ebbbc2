"""The programs of chapter 3.1: a causal read from a state, and two feature maps."""

import torch
from torch import Tensor

from attnlib.counting import largest_tensor
from attnlib.exercises.answers import call, close, require, tensor_of
from attnlib.exercises.exact_and_cached_programs import random
from attnlib.exercises.registry import checker, mutant, solution

# ---- 3.1.3 causal linear attention from a state


def dense(phi_q: Tensor, phi_k: Tensor, value: Tensor) -> Tensor:
    """Causal linear attention by its table of weights."""
    weights = (phi_q @ phi_k.mT).tril()
    return weights / weights.sum(-1, keepdim=True) @ value


@checker("3.1.3")
def causal_read_from_a_state(answer) -> str:
    """Row i is phi(q_i) S_i / phi(q_i) . z_i, with S and z summed over the keys up to i."""
    phi_q, phi_k, value = random(313, (2, 7, 4), (2, 7, 4), (2, 7, 3))
    phi_q, phi_k = phi_q.exp(), phi_k.exp()
    read = tensor_of(call(answer, phi_q, phi_k, value), (2, 7, 3))
    table = phi_q @ phi_k.mT
    lower, total = table.tril(), table.sum(-1, keepdim=True)
    require(not close(read, lower @ value), "not divided: phi(q_i) . z_i belongs below the read")
    require(
        not close(read, lower / total @ value),
        "the normalizer knows the future: z too grows with the row, it is not the sum of all keys",
    )
    require(not close(read, table / total @ value), "every row sees all keys: this is not causal")
    own = table.tril(-1)
    seen = own[:, 1:] / own[:, 1:].sum(-1, keepdim=True) @ value
    missing = read.isfinite()[:, 1:].all() and close(read[:, 1:], seen)
    require(not missing, "a row does not see its own key: write into the state first, then read")
    last = table * torch.eye(7, dtype=torch.float64)
    require(
        not close(read, last / last.sum(-1, keepdim=True) @ value),
        "a row sees its own key alone: the state is written anew for each token, not added to",
    )
    require(close(read, dense(phi_q, phi_k, value)), "not the causal read: compare with tril()")
    inputs = [x.abs() for x in random(314, (1, 256, 4), (1, 256, 4), (1, 256, 4))]
    largest = largest_tensor(lambda: call(answer, *inputs))
    require(
        largest < 256 * 4 * 4,
        f"an operation makes a tensor of {largest} numbers: neither the table of weights nor the "
        "states of all rows may be stored; keep one state",
    )
    return "Equal to the table of weights, from one state of R (E + 1) numbers."


@solution("3.1.3")
def causal_linear(phi_q, phi_k, value):
    return _rows(phi_q, phi_k, value)


def _rows(phi_q, phi_k, value, own=True, adds=True, divides=True, total=None):
    """Row by row, with what a mutant may change."""
    state = phi_k.new_zeros(*phi_k.shape[:-2], phi_k.shape[-1], value.shape[-1])
    seen = torch.zeros_like(phi_k[..., 0, :])
    reads = []
    for q, k, v in zip(phi_q.unbind(-2), phi_k.unbind(-2), value.unbind(-2), strict=True):
        before = state, seen
        written = k[..., :, None] * v[..., None, :]
        state, seen = (state + written, seen + k) if adds else (written, k)
        at = (state, seen) if own else before
        read = (q[..., None, :] @ at[0]).squeeze(-2)
        below = (q * (at[1] if total is None else total)).sum(-1, keepdim=True)
        reads.append(read / below if divides else read)
    return torch.stack(reads, dim=-2)


@mutant("3.1.3", "belongs below the read")
def not_divided(phi_q, phi_k, value):
    return _rows(phi_q, phi_k, value, divides=False)


@mutant("3.1.3", "knows the future")
def total_of_all_keys(phi_q, phi_k, value):
    return _rows(phi_q, phi_k, value, total=phi_k.sum(-2))


@mutant("3.1.3", "this is not causal")
def all_keys(phi_q, phi_k, value):
    return phi_q @ (phi_k.mT @ value) / (phi_q @ phi_k.sum(-2)[..., None])


@mutant("3.1.3", "write into the state first")
def read_before_writing(phi_q, phi_k, value):
    return _rows(phi_q, phi_k, value, own=False)


@mutant("3.1.3", "written anew")
def state_replaced(phi_q, phi_k, value):
    return _rows(phi_q, phi_k, value, adds=False)


@mutant("3.1.3", "compare with tril()")
def divided_by_the_count(phi_q, phi_k, value):
    count = torch.arange(1, phi_q.shape[-2] + 1).double()[:, None]
    return _rows(phi_q, phi_k, value, divides=False) / count


@mutant("3.1.3", "keep one state")
def table_of_weights(phi_q, phi_k, value):
    return dense(phi_q, phi_k, value)


@mutant("3.1.3", "keep one state")
def states_of_all_rows(phi_q, phi_k, value):
    states = (phi_k[..., :, None] * value[..., None, :]).cumsum(-3)
    read = (phi_q[..., None, :] @ states).squeeze(-2)
    return read / (phi_q * phi_k.cumsum(-2)).sum(-1, keepdim=True)


# ---- 3.1.4 the exponential to second order in the fewest features


def expansion(query: Tensor, key: Tensor) -> Tensor:
    """1 + s + s^2 / 2 for all pairs."""
    scores = query @ key.mT
    return 1 + scores + scores.square() / 2


@checker("3.1.4")
def features_of_the_expansion(answer) -> str:
    """phi(q) . phi(k) = 1 + q . k + (q . k)^2 / 2 with 1 + D + D (D + 1) / 2 features."""
    for width in (2, 5, 1):
        x, y = random(314 + width, (2, 3, width), (2, 4, width))
        mine, theirs = call(answer, x), call(answer, y)
        require(isinstance(mine, Tensor), f"return a tensor, got {type(mine).__name__}")
        count = 1 + width + width * (width + 1) // 2
        require(mine.shape[:-1] == x.shape[:-1], "one row of features for each row of x: (..., R)")
        product, scores = mine @ theirs.mT, x @ y.mT
        for wrong, message in (
            (1 + scores + scores.square(), "the square lacks its factor 1/2"),
            (scores + scores.square() / 2, "the constant feature 1 is missing"),
            (1 + scores.square() / 2, "the channels themselves, degree 1, are missing"),
            (1 + scores, "degree 2 is missing"),
        ):
            require(not close(product, wrong), f"width {width}: {message}")
        squares = x.square() @ y.square().mT
        mixed = scores.square() - squares
        if width > 1:
            once = 1 + scores + squares / 2 + mixed / 4
            require(
                not close(product, once),
                f"width {width}: x_i x_j with i < j stands for two products, so its weight is "
                "twice that of a square",
            )
            require(
                not close(product, 1 + scores + squares / 2),
                f"width {width}: of degree 2 only the squares; products of two are missing",
            )
            require(
                not close(product, 1 + scores + squares + mixed / 2),
                f"width {width}: a square stands for one product, so its factor is sqrt(1/2)",
            )
        require(close(product, expansion(x, y)), f"width {width}: not 1 + q.k + (q.k)^2 / 2")
        require(
            mine.shape[-1] == count,
            f"width {width}: right, but with {mine.shape[-1]} features; {count} are enough, "
            "because x_i x_j and x_j x_i are equal",
        )
    return "Exact, with 1 + D + D (D + 1) / 2 features."


@solution("3.1.4")
def second_order(x):
    return _second_order(x)


def _second_order(x, of_square=0.5, of_mixed=1.0, constant=True, first=True):
    """Degrees 0 to 2, with the weights of the products that a mutant chooses."""
    i, j = torch.triu_indices(x.shape[-1], x.shape[-1])
    weight = torch.where(i == j, of_square, of_mixed).to(x)
    pairs = x[..., i] * x[..., j] * weight.sqrt()
    parts = [torch.ones_like(x[..., :1])] * constant + [x] * first + [pairs]
    return torch.cat(parts, dim=-1)


@mutant("3.1.4", "lacks its factor 1/2")
def not_halved(x):
    return _second_order(x, of_square=1.0, of_mixed=2.0)


@mutant("3.1.4", "the constant feature 1")
def no_constant(x):
    return _second_order(x, constant=False)


@mutant("3.1.4", "degree 1, are missing")
def no_first_degree(x):
    return _second_order(x, first=False)


@mutant("3.1.4", "degree 2 is missing")
def first_order(x):
    return torch.cat((torch.ones_like(x[..., :1]), x), dim=-1)


@mutant("3.1.4", "twice that of a square")
def mixed_once(x):
    return _second_order(x, of_mixed=0.5)


@mutant("3.1.4", "of degree 2 only the squares")
def squares_alone(x):
    return _second_order(x, of_mixed=0.0)


@mutant("3.1.4", "its factor is sqrt(1/2)")
def squares_like_pairs(x):
    return _second_order(x, of_square=1.0)


@mutant("3.1.4", "are enough")
def all_products(x):
    pairs = (x[..., :, None] * x[..., None, :]).flatten(-2) * 0.5**0.5
    return torch.cat((torch.ones_like(x[..., :1]), x, pairs), dim=-1)


@mutant("3.1.4", "one row of features for each row")
def one_vector(x):
    return _second_order(x.flatten())


# ---- 3.1.5 positive random features


@checker("3.1.5")
def positive_random_features(answer) -> str:
    """phi_r(x) = exp(w_r . x - |x|^2 / 2) / sqrt(R)."""
    x, y, directions = random(315, (2, 3, 4), (2, 5, 4), (64, 4))
    x, y = x / 2, y / 2
    mine = tensor_of(call(answer, x, directions), (2, 3, 64), "phi(x)")
    require((mine >= 0).all(), "a feature is negative: use the exponential, not sine and cosine")
    projected, half = x @ directions.mT, x.square().sum(-1, keepdim=True) / 2
    right = (projected - half).exp() / 8
    for wrong, message in (
        (
            projected.exp() / 8,
            "e^(-|x|^2 / 2) is missing; without it the mean is e^(|q+k|^2 / 2)",
        ),
        ((projected - half).exp(), "divide by sqrt(R): the product of features must be a mean"),
        ((projected - half).exp() / 64, "divided by R; each of the two factors brings a sqrt(R)"),
        ((projected - 2 * half).exp() / 8, "|x|^2 is to be halved"),
        ((projected + half).exp() / 8, "the sign of |x|^2 / 2"),
    ):
        require(not close(mine, wrong), message)
    shifted = (projected - projected.amax(-1, keepdim=True)).exp()
    ratio = mine / shifted
    require(
        not close(ratio, ratio[..., :1].expand_as(ratio)) or close(mine, right),
        "a factor of its own for each row cancels in a query but not in a key: do not subtract the "
        "row's largest exponent",
    )
    require(close(mine, right), "phi_r(x) = exp(w_r . x - |x|^2 / 2) / sqrt(R)")
    many = random(316, (200_000, 4))[0]
    mean = (call(answer, x[0], many) @ call(answer, y[0], many).mT) / (x[0] @ y[0].mT).exp()
    require(close(mean, torch.ones_like(mean), 0.1), "the mean over many directions is not e^(q.k)")
    return "Unbiased: with 200 000 directions the products are e^(q.k) within a tenth."


@solution("3.1.5")
def random_features(x, directions):
    half = x.square().sum(-1, keepdim=True) / 2
    return (x @ directions.mT - half).exp() / directions.shape[0] ** 0.5


@mutant("3.1.5", "is missing; without it")
def no_norm(x, directions):
    return (x @ directions.mT).exp() / directions.shape[0] ** 0.5


@mutant("3.1.5", "divide by sqrt(R)")
def no_mean(x, directions):
    return (x @ directions.mT - x.square().sum(-1, keepdim=True) / 2).exp()


@mutant("3.1.5", "divided by R")
def divided_twice(x, directions):
    return random_features(x, directions) / directions.shape[0] ** 0.5


@mutant("3.1.5", "to be halved")
def whole_norm(x, directions):
    whole = x.square().sum(-1, keepdim=True)
    return (x @ directions.mT - whole).exp() / directions.shape[0] ** 0.5


@mutant("3.1.5", "the sign of")
def norm_added(x, directions):
    half = x.square().sum(-1, keepdim=True) / 2
    return (x @ directions.mT + half).exp() / directions.shape[0] ** 0.5


@mutant("3.1.5", "not sine and cosine")
def trigonometric(x, directions):
    half = x.square().sum(-1, keepdim=True) / 2
    return half.exp() * (x @ directions.mT).cos() / directions.shape[0] ** 0.5


@mutant("3.1.5", "row's largest exponent")
def largest_subtracted(x, directions):
    exponent = x @ directions.mT - x.square().sum(-1, keepdim=True) / 2
    return (exponent - exponent.amax(-1, keepdim=True)).exp() / directions.shape[0] ** 0.5
