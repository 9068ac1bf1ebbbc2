"""The exercises of chapter 3.1, choosing a feature map, that are answered with numbers."""

import math

import torch
from torch import Tensor

from attnlib.exercises.answers import close, numbers, require
from attnlib.exercises.registry import checker, mutant, solution

# ---- 3.1.1 where linear attention becomes cheaper, and what its state replaces

WIDTH = 64
MONOMIALS = 1 + WIDTH + WIDTH * (WIDTH + 1) // 2
PRODUCTS = 1 + WIDTH + WIDTH**2


def tokens_of_state(features: float) -> float:
    """How many cached tokens, 2 D numbers each, have as many numbers as a state R (E + 1)."""
    return features * (WIDTH + 1) / (2 * WIDTH)


@checker("3.1.1")
def what_a_state_replaces(answer) -> str:
    """Features of the expansion, two crossings of cost, two sizes of state in cached tokens."""
    features, plain, expanded, plain_tokens, expanded_tokens = numbers(answer, 5).tolist()
    _named(
        features,
        MONOMIALS,
        (
            (PRODUCTS, "features: all D^2 ordered pairs; x_1 x_2 and x_2 x_1 are the same product"),
            (MONOMIALS - 1, "features: the constant 1 is a feature too"),
            (MONOMIALS - WIDTH - 1, "features: these are the pairs alone; add degrees 0 and 1"),
            (MONOMIALS - WIDTH, "features: a channel may be taken twice; add the D squares"),
        ),
        "features: one of degree 0, D of degree 1, and the pairs i <= j of degree 2",
    )
    _named(
        plain,
        WIDTH,
        (
            (2 * WIDTH, "crossing with R = D: the sum over keys costs as much as the read; add it"),
            (WIDTH / 2, "crossing with R = D: the dense form makes scores and a read; count both"),
            (WIDTH**2, "crossing with R = D: that is R D; one factor of it is common to both"),
        ),
        "crossing with R = D: solve 4 N^2 D = 4 N R E for N",
    )
    require(
        not close(expanded, WIDTH),
        "crossing of the expansion: it has more features than channels, so it comes later",
    )
    require(close(expanded, features), "crossing of the expansion: the same equation, its own R")
    _named(
        plain_tokens,
        tokens_of_state(WIDTH),
        (
            (WIDTH / 2, "cached tokens, R = D: the normalizer needs one more column of the state"),
            (WIDTH + 1, "cached tokens, R = D: a cached token has a key and a value, 2 D numbers"),
        ),
        "cached tokens, R = D: R (E + 1) numbers over 2 D",
    )
    require(
        close(expanded_tokens, tokens_of_state(features)),
        "cached tokens of the expansion: R (E + 1) numbers over 2 D, with its own R",
    )
    return "A state with R features is worth about R / 2 cached tokens, and cheaper after R tokens."


def _named(given: float, right: float, likely: tuple, otherwise: str) -> None:
    """Refuse `given` unless it is `right`: with its own message if it is a likely mistake."""
    for wrong, message in likely:
        require(not close(given, wrong, 1e-4), message)
    require(close(given, right, 1e-4), otherwise)


def _answer(features=MONOMIALS, plain=WIDTH, expanded=None, tokens=None, expanded_tokens=None):
    """A right answer with what a mutant changes; what follows from it follows."""
    return (
        features,
        plain,
        features if expanded is None else expanded,
        tokens_of_state(WIDTH) if tokens is None else tokens,
        tokens_of_state(features) if expanded_tokens is None else expanded_tokens,
    )


solution("3.1.1")(_answer())
mutant("3.1.1", "ordered pairs", "all products")(_answer(features=PRODUCTS))
mutant("3.1.1", "the constant 1", "no constant")(_answer(features=MONOMIALS - 1))
mutant("3.1.1", "the pairs alone", "pairs only")(_answer(features=MONOMIALS - WIDTH - 1))
mutant("3.1.1", "taken twice", "no squares")(_answer(features=MONOMIALS - WIDTH))
mutant("3.1.1", "as much as the read", "read only")(_answer(plain=2 * WIDTH))
mutant("3.1.1", "count both", "scores only")(_answer(plain=WIDTH / 2))
mutant("3.1.1", "common to both", "R times D")(_answer(plain=WIDTH**2))
mutant("3.1.1", "comes later", "same crossing")(_answer(expanded=WIDTH))
mutant("3.1.1", "one more column", "no normalizer")(_answer(tokens=WIDTH / 2))
mutant("3.1.1", "a key and a value", "keys only")(_answer(tokens=WIDTH + 1))
mutant("3.1.1", "with its own R", "state of the plain map")(
    _answer(expanded_tokens=tokens_of_state(WIDTH))
)

# ---- 3.1.2 flows through two queries and three keys

CAPACITY = torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 2.0]], dtype=torch.float64)
INCOMING, OUTGOING = CAPACITY.sum(1), CAPACITY.sum(0)
CONSERVED_INCOMING = (CAPACITY / OUTGOING).sum(1)
CONSERVED_OUTGOING = (CAPACITY / INCOMING[:, None]).sum(0)


@checker("3.1.2")
def flows_by_hand(answer) -> str:
    """Incoming, outgoing, and both once the other side is conserved: two queries, three keys."""
    given = numbers(answer, 10)
    incoming, outgoing, through_sinks, through_sources = given.split((2, 3, 2, 3))
    require(
        not close(incoming, INCOMING / 3),
        "incoming: that is the mean over the keys; a flow is the sum",
    )
    require(close(incoming, INCOMING), "incoming: the sum of a row of the table, for each query")
    require(
        close(outgoing, OUTGOING), "outgoing: the sum of a column of the table, one for each key"
    )
    require(
        not close(through_sinks, torch.ones(2).double()),
        "conserved incoming: 1 each comes from dividing the rows; here the keys send 1 each",
    )
    require(
        not close(through_sources, torch.ones(3).double()),
        "conserved outgoing: 1 each comes from dividing the columns; here queries receive 1",
    )
    require(
        not close(through_sinks, INCOMING * (1 / OUTGOING).sum()),
        "conserved incoming: each entry is divided by the sum of its own column, before you add",
    )
    require(
        close(through_sinks, CONSERVED_INCOMING),
        "conserved incoming: divide every column by its sum, then add along the rows",
    )
    require(
        close(through_sources, CONSERVED_OUTGOING),
        "conserved outgoing: divide every row by its sum, then add along the columns",
    )
    return "Conserved, the flows sum to 3 at the queries and to 2 at the keys: nothing is lost."


def _flows(**changed: Tensor) -> list[float]:
    """The right flows, with those that a mutant changes."""
    parts = {
        "incoming": INCOMING,
        "outgoing": OUTGOING,
        "through_sinks": CONSERVED_INCOMING,
        "through_sources": CONSERVED_OUTGOING,
    }
    return torch.cat(list((parts | changed).values())).tolist()


solution("3.1.2")(_flows())
mutant("3.1.2", "the mean over the keys", "means")(_flows(incoming=INCOMING / 3))
mutant("3.1.2", "incoming: the sum of a row", "first column")(_flows(incoming=OUTGOING[:2]))
mutant("3.1.2", "outgoing: the sum of a column", "shares")(_flows(outgoing=OUTGOING / 10))
mutant("3.1.2", "the keys send 1 each", "own side, queries")(
    _flows(through_sinks=torch.ones(2).double())
)
mutant("3.1.2", "here queries receive 1", "own side, keys")(
    _flows(through_sources=torch.ones(3).double())
)
mutant("3.1.2", "before you add", "sum of reciprocals")(
    _flows(through_sinks=INCOMING * (1 / OUTGOING).sum())
)
mutant("3.1.2", "divide every column", "divided by the total")(_flows(through_sinks=INCOMING / 10))
mutant("3.1.2", "divide every row", "divided by the total, keys")(
    _flows(through_sources=OUTGOING / 10)
)

# ---- 3.1.7 how flat the weights of a map are

LENGTH, HEAD_WIDTH, SIZES = 64, 16, (1.0, 4.0)


def drawn(size: float) -> tuple[Tensor, Tensor]:
    """The queries and keys of exercise 3.1.7."""
    generator = torch.Generator().manual_seed(317)
    query = torch.randn(LENGTH, HEAD_WIDTH, generator=generator, dtype=torch.float64)
    key = torch.randn(LENGTH, HEAD_WIDTH, generator=generator, dtype=torch.float64)
    return size * query, size * key


def entropy(weights: Tensor) -> float:
    """The mean over the rows of their entropy, in nats."""
    return -(weights * weights.log()).sum(-1).mean().item()


def soft(query: Tensor, key: Tensor) -> Tensor:
    """Softmax weights."""
    return (query @ key.mT / HEAD_WIDTH**0.5).softmax(-1)


def linear(query: Tensor, key: Tensor) -> Tensor:
    """Weights of linear attention with elu + 1, not divided by their sum yet."""
    features = [torch.nn.functional.elu(x) + 1 for x in (query, key)]
    return features[0] @ features[1].mT


def linear_weights(query: Tensor, key: Tensor, dim: int = -1) -> Tensor:
    """The same, divided by their sum."""
    weights = linear(query, key)
    return weights / weights.sum(dim, keepdim=True)


SOFT = torch.tensor([entropy(soft(*drawn(size))) for size in SIZES], dtype=torch.float64)
LINEAR = torch.tensor(
    [entropy(linear_weights(*drawn(size))) for size in SIZES], dtype=torch.float64
)


@checker("3.1.7")
def flatness_of_weights(answer) -> str:
    """Mean row entropies in nats: softmax at sizes 1 and 4, then elu + 1 at sizes 1 and 4."""
    softmax, features = numbers(answer, 4).split((2, 2))
    both, right = torch.cat((softmax, features)), torch.cat((SOFT, LINEAR))
    require(not close(both, right / math.log(2), 1e-3), "in bits: take the natural logarithm")
    require(not close(both, -right, 1e-3), "the sign: entropy is minus the sum of w log w")
    require(not close(both, right * LENGTH, 1e-3), "that is the sum over the rows; take the mean")
    unscaled = [entropy((q @ k.mT).softmax(-1)) for q, k in map(drawn, SIZES)]
    require(
        not close(softmax, torch.tensor(unscaled), 1e-3), "softmax: the scale 1/sqrt(16) is missing"
    )
    once = [entropy(soft(drawn(size)[0], drawn(1.0)[1])) for size in SIZES]
    require(
        not close(softmax, torch.tensor(once), 1e-3),
        "softmax: queries and keys are both multiplied by 4, so a score grows sixteenfold",
    )
    require(
        close(softmax, SOFT, 1e-3),
        "softmax: weights are softmax(Q K^T / 4), then -sum w log w in each row, then the mean",
    )
    columns = [entropy(linear_weights(*drawn(size), dim=-2)) for size in SIZES]
    require(
        not close(features, torch.tensor(columns), 1e-3),
        "elu + 1: the weights are divided along the columns; a row belongs to a query",
    )
    require(
        close(features, LINEAR, 1e-3),
        "elu + 1: divide every row of phi(Q) phi(K)^T by its own sum before taking the entropy",
    )
    return "Sixteen times larger scores make softmax sharp and leave elu + 1 almost flat."


def _entropies(softmax: Tensor | list = SOFT, features: Tensor | list = LINEAR) -> list[float]:
    return [*map(float, softmax), *map(float, features)]


solution("3.1.7")(_entropies())
mutant("3.1.7", "in bits", "base two")(_entropies(SOFT / math.log(2), LINEAR / math.log(2)))
mutant("3.1.7", "the sign", "negative")(_entropies(-SOFT, -LINEAR))
mutant("3.1.7", "the sum over the rows", "sums")(_entropies(LENGTH * SOFT, LENGTH * LINEAR))
mutant("3.1.7", "the scale", "no scale")(
    _entropies([entropy((q @ k.mT).softmax(-1)) for q, k in map(drawn, SIZES)])
)
mutant("3.1.7", "sixteenfold", "queries alone")(
    _entropies([entropy(soft(drawn(size)[0], drawn(1.0)[1])) for size in SIZES])
)
mutant("3.1.7", "then the mean", "entropy of the mean row")(
    _entropies([entropy(soft(*drawn(size)).mean(0)) for size in SIZES])
)
mutant("3.1.7", "along the columns", "columns")(
    _entropies(features=[entropy(linear_weights(*drawn(size), dim=-2)) for size in SIZES])
)
mutant("3.1.7", "by its own sum", "not divided")(
    _entropies(features=[entropy(linear(*drawn(size))) for size in SIZES])
)
