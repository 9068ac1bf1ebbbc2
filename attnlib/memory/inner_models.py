"""What a memory that learns is: a perceptron, its answers, and its gradients by hand.

A memory is a tuple of matrices W_1 ... W_L. One matrix is a linear memory, more are a deep one.
"""

import itertools
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import silu

from attnlib.checks import check_count

Weights = tuple[Float[Tensor, "..."], ...]
"""The matrices of a perceptron (..., rows, columns), from D rows to E columns."""


def start_weights(
    width: int,
    hidden: int | tuple[int, ...],
    value_width: int,
    *,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float64,
) -> Weights:
    """Matrices for a memory with nothing in it: random, and the last one zero.

    The last matrix being zero, it answers zero to everything, like a linear memory of zeros. The
    first is drawn with variance 1, so that a unit key excites every hidden unit by about 1, the
    ones between with variance 1 / rows. A hidden layer of R units then has |h|^2 of about 0.36 R:
    that is the curvature of the last matrix, and theta must stay below 2 / |h|^2.
    `hidden` is the hidden width, or several; an empty tuple gives a linear memory.
    """
    hidden = (hidden,) if isinstance(hidden, int) else tuple(hidden)
    for name, size in (("width", width), ("value_width", value_width)):
        check_count(name, size)
    for size in hidden:
        check_count("hidden", size, least=1)
    widths = (width, *hidden, value_width)
    drawn = [
        torch.randn(rows, columns, generator=generator, dtype=torch.float64)
        for rows, columns in itertools.pairwise(widths)
    ]
    between = [matrix / matrix.shape[0] ** 0.5 for matrix in drawn[1:-1]]
    matrices = (*drawn[:1], *between, torch.zeros_like(drawn[-1])) if hidden else (drawn[0] * 0,)
    return tuple(matrix.to(dtype) for matrix in matrices)


def perceptron(
    layers: int,
    apply: Callable[[int, Tensor], Tensor],
    x: Float[Tensor, "*heads N D"],
) -> Float[Tensor, "*heads N E"]:
    r"""M(x) = silu(silu(x W_1) W_2) ... W_L, where `apply(l, x)` multiplies by matrix l.

    With one layer it is x W. No residual: a memory whose last matrix is zero answers zero.
    """
    for layer in range(layers - 1):
        x = silu(apply(layer, x))
    return apply(layers - 1, x)


def answer(weights: Weights, x: Float[Tensor, "*heads N D"]) -> Float[Tensor, "*heads N E"]:
    """What the memory answers to each row of x."""
    return perceptron(len(weights), lambda layer, y: y @ weights[layer], x)


def silu_slope(x: Tensor) -> Tensor:
    """The derivative of silu(x) = x sigmoid(x)."""
    gate = x.sigmoid()
    return gate * (1 + x * (1 - gate))


def gradient_factors(
    weights: Weights, key: Float[Tensor, "*heads N D"], value: Float[Tensor, "*heads N E"]
) -> list[tuple[Tensor, Tensor]]:
    r"""For each matrix a pair (x, e): the gradient of token t's loss in it is x_t e_t^T.

    .. math:: \ell_t = \tfrac12 |M(k_t) - v_t|^2, \qquad e^L = M(k) - v, \qquad
              e^{l} = (e^{l+1} W_{l+1}^\top) \odot \mathrm{silu}'(z^l)

    x is what goes into the matrix and e what comes back to its output: back-propagation, written
    down. Cost: time 4 N times the numbers of the memory.
    """
    inputs, slopes = [key], []
    for matrix in weights[:-1]:
        before = inputs[-1] @ matrix
        inputs.append(silu(before))
        slopes.append(silu_slope(before))
    error = inputs[-1] @ weights[-1] - value
    factors = [(inputs[-1], error)]
    for layer in range(len(weights) - 2, -1, -1):
        error = (error @ weights[layer + 1].mT) * slopes[layer]
        factors.insert(0, (inputs[layer], error))
    return factors


def mlp_gradient(
    weights: Weights, key: Float[Tensor, "*heads N D"], value: Float[Tensor, "*heads N E"]
) -> Weights:
    """The gradient of 1/2 sum_t |M(k_t) - v_t|^2 in each matrix; see `gradient_factors`."""
    return tuple(x.mT @ error for x, error in gradient_factors(weights, key, value))
