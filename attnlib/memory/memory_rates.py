"""Momentum and forgetting: how a gradient lives on in the memory, and which rates are stable."""

import torch
from jaxtyping import Float
from torch import Tensor

from attnlib.checks import check_count
from attnlib.memory.delta_rule import one_a_token

Rate = Float[Tensor, "*#heads #N"] | float
ROUNDING = 1e-5
"""A unit vector in float32 may be longer than one by this."""


def products_between(factors: Float[Tensor, "*heads C"]) -> Float[Tensor, "*heads C C"]:
    """Row t, column s: the product of the factors of s < r <= t, one for s = t, zero above."""
    size = factors.shape[-1]
    behind = torch.ones(size, size, dtype=torch.bool, device=factors.device).tril(-1)
    column = factors[..., :, None].expand(*factors.shape, size)
    return column.where(behind, torch.ones_like(column)).cumprod(dim=-2).tril()


def influence(
    eta: Float[Tensor, "*heads C"], alpha: Float[Tensor, "*heads C"]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    r"""What C tokens make of the memory and the momentum before them, and of each other's steps.

    .. math:: M_t = b_t M_0 + p_t S_0 + \sum_{s \le t} A_{ts}\, u_s, \qquad
              S_t = h_t S_0 + \sum_{s \le t} H_{ts}\, u_s

    for u_s = -theta_s gradient_s. H_ts is the product of eta over s < r <= t, and
    A_ts = sum_(s <= r <= t) prod_(r < j <= t) (1 - alpha_j) H_rs: a step enters at s, goes on as
    momentum until r and fades from there. Returns (b, p, A, h, H). Cost: C^3.
    Source: Behrouz et al. (2025), section 3.2, eqs. 16 to 18, written out.
    """
    keep = 1 - alpha
    moved, faded = products_between(eta), products_between(keep)
    written = faded @ moved
    from_start = moved[..., 0] * eta[..., :1]
    kept = faded[..., 0] * keep[..., :1]
    pushed = (faded @ from_start[..., None])[..., 0]
    return kept, pushed, written, from_start, moved


def chunk_weights(
    theta: Float[Tensor, "*heads C"],
    eta: Float[Tensor, "*heads C"],
    alpha: Float[Tensor, "*heads C"],
) -> Float[Tensor, "*heads C C"]:
    r"""Row t, column i: how much of the gradient of token i has been subtracted from memory M_t.

    .. math:: \theta_i \sum_{r=i}^{t} \prod_{j=r+1}^{t} (1 - \alpha_j) \prod_{j=i+1}^{r} \eta_j
    """
    return influence(eta, alpha)[2] * theta[..., None, :]


def largest_stable_rate(eta: float = 0.0, alpha: float = 0.0, *, mini_batch: int = 1) -> float:
    r"""The largest theta at which a linear memory that sees one unit key for ever stays bounded.

    .. math:: \theta |k|^2 \le (2 - \alpha)(1 + \eta) \qquad \text{for mini-batches of one token}

    Along k the memory and its momentum follow a 2 x 2 matrix with determinant eta (1 - alpha) and
    trace 1 - alpha + eta - theta |k|^2; its eigenvalues lie in the unit circle while
    -trace <= 1 + determinant (Jury). The gradients of a larger mini-batch are all taken at one
    memory and add up: the bound falls at least as 1 / `mini_batch`, and with momentum faster.
    Without momentum the bound is enough for any sequence of keys; with momentum and changing keys
    it is necessary, not sufficient.
    Raises ValueError for eta or alpha outside 0 ... 1 and for a mini-batch below one.
    """
    check_count("mini_batch", mini_batch, least=1)
    for name, number in (("eta", eta), ("alpha", alpha)):
        if not 0 <= number <= 1:
            raise ValueError(f"{name} must lie in 0 ... 1, got {number}")
    rates = (torch.full((mini_batch,), float(x), dtype=torch.float64) for x in (eta, alpha))
    by_trace, by_determinant = (weights.sum().item() for weights in limits(*rates))
    return 1 / max(by_trace, by_determinant)


def stability_ratio(
    key: Float[Tensor, "*heads N D"],
    *,
    theta: Rate,
    eta: Rate = 0.0,
    alpha: Rate = 0.0,
    mini_batch: int = 1,
) -> Float[Tensor, "*heads n"]:
    """For each mini-batch: its rates over the largest that are stable if it came for ever.

    Above 1 the memory would grow without bound. Cost: N for mini-batches of one token, else
    N D^2 + N D^3 / `mini_batch`. A shorter mini-batch at the end is judged as it is.
    """
    check_count("mini_batch", mini_batch, least=1)
    theta, eta, alpha = rates_of(theta, eta, alpha, key)
    if mini_batch == 1:
        return theta * key.square().sum(-1) / ((2 - alpha) * (1 + eta))
    parts = (x.split(mini_batch, dim=-1) for x in (theta, eta, alpha))
    ratios = []
    for rows, rate, moved, faded in zip(key.split(mini_batch, dim=-2), *parts, strict=True):
        curvatures = [
            torch.linalg.eigvalsh(rows.mT @ (weights * rate)[..., None].mul(rows))
            for weights in limits(moved, faded)
        ]
        ratios.append(torch.stack(curvatures).amax((0, -1)))
    return torch.stack(ratios, dim=-1) if ratios else theta


def limits(eta: Float[Tensor, "*heads C"], alpha: Float[Tensor, "*heads C"]) -> tuple:
    """Weights w_i of the tokens of a mini-batch: theta is stable while sum_i w_i theta |k|^2 <= 1.

    One for the trace and one for the determinant of the matrix of the whole mini-batch.
    """
    kept, pushed, written, from_start, moved = influence(eta, alpha)
    kept, pushed, from_start = (part[..., -1:] for part in (kept, pushed, from_start))
    written, moved = written[..., -1, :], moved[..., -1, :]
    by_trace = (1 + from_start) * written - pushed * moved
    by_determinant = pushed * moved - from_start * written
    return (
        by_trace / ((1 + kept) * (1 + from_start)),
        by_determinant / (1 - kept * from_start).clamp(min=torch.finfo(eta.dtype).tiny),
    )


def rates_of(
    theta: Rate, eta: Rate, alpha: Rate, key: Tensor, *, name: str = "theta"
) -> tuple[Tensor, Tensor, Tensor]:
    """The three rates as (..., N), each inside its range; `name` is what the first is called."""
    return (
        one_a_token(name, theta, key, 0.0, torch.inf),
        one_a_token("eta", eta, key, 0.0, 1.0),
        one_a_token("alpha", alpha, key, 0.0, 1.0),
    )


def check_stable(
    key: Tensor, theta: Tensor, eta: Tensor, alpha: Tensor, *, name: str = "theta"
) -> None:
    """Raise ValueError where one token alone is unstable (CPU tensors only).

    Tokens that share a mini-batch may be unstable together all the same: `stability_ratio` tells.
    """
    if key.device.type != "cpu" or key.numel() == 0:
        return
    given = {"theta": theta.detach(), "eta": eta.detach(), "alpha": alpha.detach()}
    ratio = stability_ratio(key.detach(), **given).max()
    if ratio > 1 + ROUNDING:
        raise ValueError(
            f"{name} must keep the memory stable, {name} |k|^2 <= (2 - alpha) (1 + eta): "
            f"got rates {ratio.item():.3g} times as large as that"
        )


def check_finite(memory: tuple[Tensor, ...]) -> None:
    """Raise ValueError where a memory has diverged (CPU tensors only)."""
    for matrix in memory:
        if matrix.device.type == "cpu" and not matrix.isfinite().all():
            raise ValueError(
                "the rate (theta) is too large for these keys: the memory has diverged and holds "
                "NaN or infinity. With momentum it must stay well below (2 - alpha) (1 + eta)"
            )
