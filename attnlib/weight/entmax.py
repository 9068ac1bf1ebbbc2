r"""Weights that bend from softmax to the projection onto the simplex, with exact zeros on the way.

.. math:: w = \arg\max_{p \in \Delta} \; p \cdot s + H_\alpha(p), \qquad
          H_\alpha(p) = \frac{1}{\alpha(\alpha-1)} \sum_j (p_j - p_j^\alpha)

With e = alpha - 1 the solution is w_j = [1 + e (s_j - theta)]_+^{1/e}, where theta makes the row
sum to one. As e goes to 0 this is exp(s_j - theta), softmax; at e = 1 it is [s_j - tau]_+,
sparsemax. A key far below the best one gets exactly nothing.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def sparsemax(
    scores: Float[Tensor, "*batch N M"], support: Bool[Tensor, "*batch N M"]
) -> Float[Tensor, "*batch N M"]:
    r"""The nearest point of the simplex: w_j = [s_j - tau]_+, with tau found by sorting.

    Sorted from the largest on, the k largest scores are the ones with weight for the last k with
    1 + k s_(k) > s_(1) + ... + s_(k), and tau = (s_(1) + ... + s_(k) - 1) / k.
    Cost: time M log M a row. Outside the support, and in a row whose support is empty, the weight
    is zero. Finite for scores up to 1e4 in every dtype.
    Source: Martins and Astudillo (2016), algorithm 1.
    """
    if scores.shape[-1] == 0:
        return scores.clone()
    centered = _centered(scores.detach(), support)
    ranked = centered.sort(dim=-1, descending=True).values
    k = torch.arange(1, ranked.shape[-1] + 1, device=ranked.device)
    sums = ranked.cumsum(-1)
    # At least one key has weight; a row with NaN, where nothing compares, stays NaN by itself.
    last = (1 + k * ranked > sums).sum(-1, keepdim=True).clamp(min=1)
    tau = (sums.gather(-1, last - 1) - 1) / last
    return _with_gradient((centered - tau).clamp(min=0), scores, support, 2.0)


def entmax15(
    scores: Float[Tensor, "*batch N M"], support: Bool[Tensor, "*batch N M"]
) -> Float[Tensor, "*batch N M"]:
    r"""Half way between softmax and sparsemax: w_j = [s_j / 2 - tau]_+^2, tau found by sorting.

    If the k largest have weight, with mean m and sum of squared deviations d of their s / 2, then
    tau = m - sqrt((1 - d) / k); k is the last one whose own s_(k) / 2 lies above its tau.
    Cost, zeros and range as for `sparsemax`.
    Source: Peters et al. (2019), algorithm for alpha = 1.5.
    """
    if scores.shape[-1] == 0:
        return scores.clone()
    halved = _centered(scores.detach() / 2, support)
    ranked = halved.sort(dim=-1, descending=True).values
    k = torch.arange(1, ranked.shape[-1] + 1, device=ranked.device)
    mean = ranked.cumsum(-1) / k
    deviation = ranked.square().cumsum(-1) - k * mean.square()
    taus = mean - ((1 - deviation) / k).clamp(min=0).sqrt()
    last = (taus <= ranked).sum(-1, keepdim=True).clamp(min=1)
    tau = taus.gather(-1, last - 1)
    return _with_gradient((halved - tau).clamp(min=0).square(), scores, support, 1.5)


def entmax(
    scores: Float[Tensor, "*batch N M"],
    support: Bool[Tensor, "*batch N M"],
    *,
    alpha: float | Float[Tensor, "..."] = 1.5,
) -> Float[Tensor, "*batch N M"]:
    r"""The weights for any alpha from 1 (softmax) to 2 (sparsemax), theta found by bisection.

    w_j = [1 + e (s_j - theta)]_+^{1/e} with e = alpha - 1. The largest weight of n lies between
    1/n and 1, so theta lies between the largest score and log n above it, whatever alpha is.
    `alpha` is a number, or a tensor that broadcasts to the scores with one alpha a row: (heads, 1,
    1) gives every head its own. The gradients, also that of alpha, come from the weights alone.

    Cost: about 30 passes over the row in float32 and 60 in float64. Outside the support, and in a
    row whose support is empty, the weight is zero. Finite for scores up to 1e4 in every dtype.
    Raises TypeError or ValueError for an alpha of another kind, shape or range.
    Source: Peters et al. (2019), bisection; Correia et al. (2019) for alpha and its gradient. Their
    tau is e theta - 1: theta keeps its meaning, log-sum-exp, at alpha = 1.
    """
    _check_alpha(alpha, scores.shape)
    if scores.shape[-1] == 0:
        return scores.clone()
    centered = _centered(scores.detach(), support, least=-math.inf)
    alpha = torch.as_tensor(alpha, dtype=centered.dtype, device=centered.device)
    bend = alpha.detach() - 1
    low = torch.zeros_like(centered[..., :1])
    step = support.sum(-1, keepdim=True).clamp(min=1).to(centered.dtype).log()
    for _ in range(-math.floor(math.log2(torch.finfo(centered.dtype).eps)) + 6):
        step = step / 2
        enough = bent_exp(centered - low - step, bend).sum(-1, keepdim=True) >= 1
        low = torch.where(enough, low + step, low)
    weights = bent_exp(centered - low, bend)
    total = weights.sum(-1, keepdim=True)
    return _with_gradient(weights / total.where(total > 0, 1.0), scores, support, alpha)


def bent_exp(x: Tensor, bend: Tensor) -> Tensor:
    r"""[1 + e x]_+^{1/e} with e = `bend`: exp(x) at e = 0, the ramp [1 + x]_+ at e = 1.

    Through log(1 + e x) / e, which keeps all its digits where e is small.
    """
    bent = torch.log1p((bend * x).clamp(min=-1)) / bend
    return torch.where(bend == 0, x, bent).exp()


def _centered(scores: Tensor, support: Tensor, least: float = -2.0) -> Tensor:
    """Scores below the best of their row, at least in float32; `least` outside the support.

    In the sorting algorithms nothing at or below -1 has weight, so -2 stands for all that is lower.
    """
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    inside = scores.masked_fill(~support, torch.finfo(scores.dtype).min)
    centered = inside - inside.amax(-1, keepdim=True)
    return centered.clamp(min=least).masked_fill(~support, least)


def _with_gradient(
    weights: Tensor, scores: Tensor, support: Tensor, alpha: float | Tensor
) -> Tensor:
    """The finished weights, with the gradient that their equation has."""
    weights = weights.detach().masked_fill(~support, 0.0)
    alpha = torch.as_tensor(alpha, dtype=weights.dtype, device=weights.device)
    return _EntmaxGradient.apply(scores.to(weights.dtype), alpha, weights).to(scores.dtype)


class _EntmaxGradient(torch.autograd.Function):
    """Weights found by any algorithm; their derivatives by the implicit function theorem.

    Source: Peters et al. (2019) for the scores, Correia et al. (2019), proposition 1, for alpha.
    """

    @staticmethod
    def forward(ctx, scores: Tensor, alpha: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(weights, alpha)
        return weights.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, slope: Tensor) -> tuple[Tensor, Tensor | None, None]:
        weights, alpha = ctx.saved_tensors
        bend = alpha - 1
        skewed = torch.where(weights > 0, weights ** (1 - bend), 0.0)
        total = skewed.sum(-1, keepdim=True).clamp(min=1)
        mean = (skewed * slope).sum(-1, keepdim=True) / total
        of_scores = skewed * (slope - mean)
        of_alpha = None
        if ctx.needs_input_grad[1]:
            of_alpha = (slope * _slope_of_alpha(weights, skewed, bend)).sum_to_size(alpha.shape)
        return of_scores, of_alpha, None


def _slope_of_alpha(weights: Tensor, skewed: Tensor, bend: Tensor) -> Tensor:
    r"""dw/dalpha, ((w + e h) A - a (1 + e H)) / sum w^{1-e}, with e = alpha - 1.

    h = -w log w and H is their sum, the entropy; a = (w^{1-e} - w - e h) / e^2 and A is their sum.
    This is the formula of Correia et al. (2019) with its differences of nearly equal numbers taken
    out: a is a Taylor remainder, which tends to w (log w)^2 / 2 as e goes to 0.
    """
    depth = -torch.where(weights > 0, weights, 1.0).log()
    entropies = weights * depth
    rest = weights * depth**2 * _remainder(bend * depth)
    far = (skewed - weights - bend * entropies) / bend**2
    rest = torch.where(bend * depth < 1, rest, far)
    total = skewed.sum(-1, keepdim=True).clamp(min=1)
    sum_of_rests = rest.sum(-1, keepdim=True)
    entropy = entropies.sum(-1, keepdim=True)
    return ((weights + bend * entropies) * sum_of_rests - rest * (1 + bend * entropy)) / total


def _remainder(x: Tensor) -> Tensor:
    """(e^x - 1 - x) / x^2 for x in [0, 1], by its series 1/2! + x/3! + x^2/4! + ..."""
    x = x.clamp(max=1)
    total = torch.zeros_like(x)
    for n in range(18, 1, -1):
        total = total * x + 1 / math.factorial(n)
    return total


def _check_alpha(alpha: float | Tensor, shape: torch.Size) -> None:
    """Check that alpha is a number or a tensor from 1 to 2, and one for all keys of a row."""
    if isinstance(alpha, bool) or not isinstance(alpha, int | float | Tensor):
        raise TypeError(f"alpha must be a number or a tensor, got {type(alpha).__name__}")
    if isinstance(alpha, Tensor):
        if not alpha.is_floating_point():
            raise TypeError(f"alpha must be a floating-point tensor, got {alpha.dtype}")
        row = torch.Size((*shape[:-1], 1))
        try:
            fits = torch.broadcast_shapes(alpha.shape, row) == row
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"alpha must broadcast to {tuple(row)}, one for a row (for example (heads, 1, 1)), "
                f"got shape {tuple(alpha.shape)}"
            )
        if alpha.numel() and not bool(((alpha >= 1) & (alpha <= 2)).all()):
            raise ValueError(
                "alpha must lie from 1 (softmax) to 2 (sparsemax), got "
                f"{alpha.min().item():.4g} ... {alpha.max().item():.4g}"
            )
    elif not 1 <= alpha <= 2:
        raise ValueError(f"alpha must lie from 1 (softmax) to 2 (sparsemax), got {alpha}")
