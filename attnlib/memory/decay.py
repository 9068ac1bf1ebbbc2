"""What is left of token s when token t reads: products of decays, summed in log space."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from attnlib.checks import check_tensor, fits

Decay = Float[Tensor, "..."] | float | None
"""log a: None (a = 1), a number, (*heads, N) one a token, (*heads, N, D) one a key channel."""


def expanded_decay(
    log_decay: Decay, query: Float[Tensor, "*heads N D"]
) -> Float[Tensor, "*heads N _"] | None:
    """log a as (..., N, 1) or (..., N, D), or None; raise where a decay is outside (0, 1].

    A tensor with as many dimensions as the query has one decay a channel, one with fewer one decay
    a token. Sizes of 1 are repeated, so (heads, 1) is one decay a head.
    """
    if log_decay is None:
        return None
    if isinstance(log_decay, int | float) and not isinstance(log_decay, bool):
        log_decay = torch.tensor(float(log_decay), dtype=torch.float64)
    check_tensor("log_decay", log_decay)
    by_token, by_channel = query.shape[:-1], query.shape
    wanted = by_channel if log_decay.dim() == query.dim() else by_token
    if not fits(log_decay.shape, wanted):
        raise ValueError(
            f"log_decay must broadcast to {tuple(by_token)}, one decay a token, or to "
            f"{tuple(by_channel)}, one a key channel, got {tuple(log_decay.shape)}"
        )
    inside = (log_decay <= 0) & (log_decay > -math.inf)
    if not inside.all():
        wrong = log_decay[~inside].flatten()[0].item()
        raise ValueError(
            "log_decay must lie in (-inf, 0], so that a decay is in (0, 1] and the state cannot "
            f"grow: got {wrong}"
        )
    log_decay = log_decay.to(query.device)
    if wanted is by_token:
        return log_decay.expand(by_token).unsqueeze(-1)
    return log_decay.expand(by_channel)


def until(log_decay: Float[Tensor, "*heads C W"]) -> Float[Tensor, "*heads C W"]:
    """Sum of log a from the first token to token t, both included."""
    return log_decay.cumsum(-2)


def behind(log_decay: Float[Tensor, "*heads C W"]) -> Float[Tensor, "*heads C W"]:
    """Sum of log a over the tokens behind s, up to the last one."""
    later = torch.cat((log_decay[..., 1:, :], torch.zeros_like(log_decay[..., :1, :])), dim=-2)
    return later.flip(-2).cumsum(-2).flip(-2)


def decay_between(log_decay: Float[Tensor, "*heads C 1"]) -> Float[Tensor, "*heads C C"]:
    """Row t, column s: the product of a over s < r <= t, and zero where s > t.

    Each column is a running sum of its own terms. A difference of two long sums would lose them:
    with decays of e^-1e4 nothing of the last digits of a weak one would be left.
    """
    size = log_decay.shape[-2]
    ones = torch.ones(size, size, dtype=torch.bool, device=log_decay.device)
    terms = log_decay.expand(*log_decay.shape[:-1], size).masked_fill(~ones.tril(-1), 0.0)
    return terms.cumsum(-2).exp().masked_fill(~ones.tril(), 0.0)


def scores_by_channel(
    query: Float[Tensor, "*heads C D"],
    key: Float[Tensor, "*heads C D"],
    log_decay: Float[Tensor, "*heads C D"],
) -> Float[Tensor, "*heads C C"]:
    r"""Row t, column s <= t: sum over d of q_td k_sd (product of a_rd over s < r <= t); else zero.

    The halves of the chunk are two smaller problems of the same kind. Between them the middle of
    the chunk splits every product into two factors, each at most one:

    .. math:: \prod_{s < r \le t} a_r = \prod_{s < r < m} a_r \; \prod_{m \le r \le t} a_r

    so one matrix product does it, and no exponent can overflow. That is log2(C) levels.
    """
    size = query.shape[-2]
    if size <= 1:
        return query @ key.mT
    if size % 2:
        padded = (torch.nn.functional.pad(x, (0, 0, 0, 1)) for x in (query, key, log_decay))
        return scores_by_channel(*padded)[..., :size, :size]
    halves = [x.unflatten(-2, (2, size // 2)) for x in (query, key, log_decay)]
    within = scores_by_channel(*halves)
    (_, late_query), (early_key, _), (early, late) = (x.unbind(-3) for x in halves)
    across = (late_query * until(late).exp()) @ (early_key * behind(early).exp()).mT
    top = torch.cat((within[..., 0, :, :], torch.zeros_like(across)), dim=-1)
    return torch.cat((top, torch.cat((across, within[..., 1, :, :]), dim=-1)), dim=-2)
