"""The four choices of Miras but the loop itself: what is wrong, what is kept, what the memory is.

A memory that learns while it reads takes one gradient step a token. Miras asks what the loss is
(the attentional bias), how what was learnt is kept (retention), what is learnt (the architecture)
and how (the rule of learning: here gradient descent, with or without momentum, in
`attnlib.memory.miras`).

An attentional bias is given by its slope with respect to the answer of the memory. A retention is
the map from the accumulated gradients A to the memory W, per matrix. An architecture answers a key
and says what the slope means for its parameters.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import gelu

SMOOTHED = 1e-6
"""Squares are enlarged by this where a power of them would have no slope at zero."""

Parameters = tuple[Tensor, ...]
Bias = Callable[[Tensor, Tensor], Tensor]
Retention = Callable[[Tensor], Tensor]


# --- attentional bias: the slope of the loss, answer and value -> the same shape ---


def dot_product_bias(
    answer: Float[Tensor, "*heads C E"], value: Float[Tensor, "*heads C E"]
) -> Float[Tensor, "*heads C E"]:
    """Loss -answer . value: the slope is -value, whatever the memory answers (Hebb)."""
    return -value


def squared_bias(
    answer: Float[Tensor, "*heads C E"], value: Float[Tensor, "*heads C E"]
) -> Float[Tensor, "*heads C E"]:
    """Loss 1/2 |answer - value|^2: the slope is the error (Widrow and Hoff, the delta rule)."""
    return answer - value


def power_bias(p: float) -> Bias:
    r"""Loss 1/p sum_j |e_j|^p of the error e: the slope is sign(e) |e|^{p-1}.

    p = 2 is `squared_bias` exactly; p > 2 hears large errors louder, p < 2 less loud, and p = 1 no
    louder than small ones. |e| is smoothed as (e^2 + 1e-6)^{1/2}, as in the paper. The paper's loss
    has no 1/p: its rate is ours divided by p.
    Raises ValueError unless p is at least 1.
    Source: Behrouz et al. (2025), Miras, section 5.1, equations 10 and 11.
    """
    check_at_least("p", p, 1.0)

    def slope(answer: Tensor, value: Tensor) -> Tensor:
        error = answer - value
        return error * (error.square() + SMOOTHED) ** ((p - 2) / 2)

    return slope


def huber_bias(delta: float) -> Bias:
    r"""Loss 1/2 |e|^2 up to the length delta, then delta (|e| - delta/2): a slope cut to delta.

    .. math:: \mathrm{slope} = e \, \min(1, \delta / |e|)

    |e| is the length of the whole error, so an outlier keeps its direction and loses its size. With
    delta = infinity it is `squared_bias`. Raises ValueError unless delta is positive.
    Source: Behrouz et al. (2025), Miras, section 5.1, equation 15.
    """
    if not delta > 0:
        raise ValueError(f"delta must be positive, got {delta}")

    def slope(answer: Tensor, value: Tensor) -> Tensor:
        error = answer - value
        length = error.square().sum(-1, keepdim=True).clamp(min=delta**2).sqrt()
        return error * (delta / length) if math.isfinite(delta) else error

    return slope


# --- retention: the memory that belongs to the accumulated gradients, per matrix ---


def euclidean_retention(
    accumulated: Float[Tensor, "*heads D E"],
) -> Float[Tensor, "*heads D E"]:
    """W = A: keep near the old memory in the plain distance. This is gradient descent."""
    return accumulated


def norm_retention(q: float) -> Retention:
    r"""W = A / ||A||_q^{q-2}, as the paper prints it; the norm is that of a whole matrix.

    q = 2 is `euclidean_retention`. For q = 4 the memory is as long as 1 / A: what accumulates makes
    it quieter, never louder, so no rate lets it grow. Where all entries of A lie under 1e-3 it is
    linear in A, so that an empty memory is zero. Raises ValueError unless q is at least 2.
    Source: Behrouz et al. (2025), Miras, section 5.3, equation 24.
    """
    check_at_least("q", q, 2.0)
    return lambda accumulated: accumulated / norm_power(accumulated, q)


def mirror_norm_retention(q: float) -> Retention:
    r"""W = sign(A) |A|^{q-1} / ||A||_q^{q-2}: the slope of 1/2 ||A||_q^2.

    This is what the paper's own problem (keep the norm of W small whose exponent is dual to q)
    leads to; equation 24 lacks the power of the entries. It answers twice as loud when A doubles,
    and for q > 2 the large entries of A count more. Raises ValueError unless q is at least 2.
    Source: derived from Behrouz et al. (2025), Miras, section 5.2, the fourth variant.
    """
    check_at_least("q", q, 2.0)
    return lambda accumulated: (
        accumulated
        * (accumulated.square() + SMOOTHED**2) ** ((q - 2) / 2)
        / norm_power(accumulated, q)
    )


def norm_power(matrix: Float[Tensor, "*heads D E"], q: float) -> Float[Tensor, "*heads 1 1"]:
    """||A||_q^{q-2}, with no power that overflows; constant for entries that all lie under 1e-3."""
    largest = matrix.detach().abs().amax((-2, -1), keepdim=True).clamp(min=1e-3)
    ratio = matrix / largest  # one of them is 1, unless all are tiny
    power = (ratio.square() ** (q / 2)).sum((-2, -1), keepdim=True).clamp(min=1.0)
    return largest ** (q - 2) * power ** ((q - 2) / q)


def softmax_retention(mass: float = 1.0) -> Retention:
    r"""W = mass softmax(A) over the rows: each column stays positive and sums to `mass`.

    It keeps near the old memory in the Kullback-Leibler divergence: a step multiplies entries
    instead of adding to them (the exponentiated gradient). The empty memory is the uniform one.
    Raises ValueError unless mass is positive.
    Source: Behrouz et al. (2025), Miras, section 5.2, equation 21; a column is their slice.
    """
    if not mass > 0:
        raise ValueError(f"mass must be positive, got {mass}")
    return lambda accumulated: mass * accumulated.softmax(dim=-2)


# --- architecture: what the parameters are, what they answer, what a slope means for them ---


@runtime_checkable
class Architecture(Protocol):
    """A memory: parameters -> answer, and the gradient of its parameters from a slope."""

    def start(self, key: Tensor, value: Tensor) -> Parameters:
        """The accumulated gradients before the first token."""

    def answer(self, memory: Parameters, key: Tensor) -> Tensor:
        """What the memory answers to the keys."""

    def gradient(self, memory: Parameters, key: Tensor, slope: Tensor) -> Parameters:
        """The gradient of the parameters for each of C keys, from the slopes at the answers."""


@dataclass(frozen=True)
class LinearMemory:
    """A matrix W (D, E) that answers W^T k."""

    def start(
        self, key: Float[Tensor, "*heads N D"], value: Float[Tensor, "*heads N E"]
    ) -> Parameters:
        """Nothing: a matrix of zeros."""
        return (key.new_zeros(*key.shape[:-2], key.shape[-1], value.shape[-1]),)

    def answer(
        self, memory: Parameters, key: Float[Tensor, "*heads C D"]
    ) -> Float[Tensor, "*heads C E"]:
        """W^T k."""
        return key @ memory[0]

    def gradient(
        self,
        memory: Parameters,
        key: Float[Tensor, "*heads C D"],
        slope: Float[Tensor, "*heads C E"],
    ) -> Parameters:
        """The outer product of each key and its slope, (..., C, D, E)."""
        return (key[..., :, None] * slope[..., None, :],)


@dataclass(frozen=True)
class TwoLayerMemory:
    r"""A perceptron that answers W_2^T gelu(W_1^T k), with `hidden` units.

    The paper adds the key and normalizes the answer (Behrouz et al., 2025, section 5.3); this is
    the bare perceptron. Its parameters start at random numbers of their own, drawn from `seed`,
    with an output of zero: what the accumulated gradients are before the first token.
    """

    hidden: int
    seed: int = 0

    def start(
        self, key: Float[Tensor, "*heads N D"], value: Float[Tensor, "*heads N E"]
    ) -> Parameters:
        """W_1 random with columns of unit length in the mean, W_2 zero."""
        *heads, _, width = key.shape
        generator = torch.Generator().manual_seed(self.seed)
        first = torch.randn(width, self.hidden, generator=generator, dtype=torch.float64)
        first = first.to(key).expand(*heads, width, self.hidden)
        return first, key.new_zeros(*heads, self.hidden, value.shape[-1])

    def answer(
        self, memory: Parameters, key: Float[Tensor, "*heads C D"]
    ) -> Float[Tensor, "*heads C E"]:
        """W_2^T gelu(W_1^T k)."""
        return gelu(key @ memory[0]) @ memory[1]

    def gradient(
        self,
        memory: Parameters,
        key: Float[Tensor, "*heads C D"],
        slope: Float[Tensor, "*heads C E"],
    ) -> Parameters:
        """Backpropagation through the two layers, by hand."""
        before = key @ memory[0]
        bend = torch.special.ndtr(before) + before * normal_density(before)
        at_first = (slope @ memory[1].mT) * bend
        return (
            key[..., :, None] * at_first[..., None, :],
            gelu(before)[..., :, None] * slope[..., None, :],
        )


def normal_density(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The density of the standard normal distribution."""
    return torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)


def check_at_least(name: str, number: float, least: float) -> None:
    """Check that an exponent is a finite number of at least `least`."""
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise TypeError(f"{name} must be a number, got {type(number).__name__}")
    if not (math.isfinite(number) and number >= least):
        raise ValueError(f"{name} must be at least {least:g}, got {number}")
