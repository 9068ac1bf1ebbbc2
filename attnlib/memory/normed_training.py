r"""TTT-linear as the paper's layer runs it: the model is k + norm(k W).

    f(k; W) = k + norm(k W)     W_t = W_t' - sum of rate_s k_s e_s^T     o_t = f(q_t; W_t)

e_s is the slope of 1/2 |f(k_s) - v_s|^2 at k_s W_t', t' the last token before the mini-batch. The
norm keeps answers at one size whatever W is, so that inner training diverges less easily.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import layer_norm

from attnlib.memory.memory_rates import Rate, check_finite
from attnlib.memory.test_time_training import ReadAndState, TTTState, checked

EPS = 1e-6


def normed_answer(
    memory: Float[Tensor, "*heads D D"],
    x: Float[Tensor, "*heads N D"],
    weight: Float[Tensor, "..."],
    bias: Float[Tensor, "..."],
) -> Float[Tensor, "*heads N D"]:
    """f(x; W) = x + weight norm(x W) + bias."""
    return x + weight * layer_norm(x @ memory, x.shape[-1:], eps=EPS) + bias


def slope_before_norm(
    before: Float[Tensor, "*heads N D"],
    target: Float[Tensor, "*heads N D"],
    weight: Float[Tensor, "..."],
    bias: Float[Tensor, "..."],
) -> Float[Tensor, "*heads N D"]:
    r"""The slope of 1/2 |weight norm(z) + bias - target|^2 in z, by hand.

    .. math:: e = \tfrac{1}{\sigma}\left(g - \overline{g} - n\, \overline{g n}\right), \qquad
              g = \mathrm{weight} \odot (\mathrm{weight} \odot n + \mathrm{bias} - \mathrm{target})

    with n = norm(z), sigma its standard deviation and bars for means over the width: what a norm
    lets back is at right angles to a constant and to n itself. Cost: N D.
    """
    spread = before.var(dim=-1, unbiased=False, keepdim=True)
    n = layer_norm(before, before.shape[-1:], eps=EPS)
    g = weight * (weight * n + bias - target)
    mean = g.mean(-1, keepdim=True) + n * (g * n).mean(-1, keepdim=True)
    return (g - mean) / (spread + EPS).sqrt()


def ttt_normed_recurrent(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N D"],
    *,
    weight: Float[Tensor, "..."],
    bias: Float[Tensor, "..."],
    rate: Rate = 0.1,
    mini_batch: int = 16,
    state: TTTState | None = None,
) -> ReadAndState:
    """(read, state) one token after the other: the definition at the head of this module.

    Shapes: query, key and value (..., heads, N, D), values as wide as keys; `weight` and `bias` of
    the norm broadcast to (..., heads, N, D). The rest, cost and errors as in
    `ttt_linear_recurrent`; the state is a TTTState of matrices (..., D, D).
    Source: Sun et al. (2024), section 2.7.
    """
    query, key, value, rate, state, _, dtype = checked(
        query, key, value, rate, mini_batch, state, None
    )
    check_widths(key, value)
    (memory, anchor, place), reads = state, []
    for t in range(key.shape[-2]):
        row = (..., slice(t, t + 1), slice(None))
        error = slope_before_norm(key[row] @ anchor, value[row] - key[row], weight, bias)
        memory = memory - rate[..., t, None, None] * key[row].mT @ error
        reads.append(normed_answer(memory, query[row], weight, bias))
        place = (place + 1) % mini_batch
        anchor = memory if place == 0 else anchor
    check_finite((memory,))
    read = torch.cat(reads, dim=-2) if reads else value * 0
    return read.to(dtype), TTTState(memory, anchor, place)


def ttt_normed_chunked(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N D"],
    *,
    weight: Float[Tensor, "..."],
    bias: Float[Tensor, "..."],
    rate: Rate = 0.1,
    mini_batch: int = 16,
    state: TTTState | None = None,
) -> ReadAndState:
    """The same with a mini-batch at a time; `ttt_linear_chunked` with the norm's slope for errors.

    Arguments, results and errors of `ttt_normed_recurrent`.
    """
    query, key, value, rate, state, _, dtype = checked(
        query, key, value, rate, mini_batch, state, None
    )
    check_widths(key, value)
    (memory, anchor, place), reads = state, [value[..., :0, :]]
    start, length = 0, key.shape[-2]
    while start < length:
        end = min(length, start + mini_batch - place)
        rows = (..., slice(start, end), slice(None))
        q, k = query[rows], key[rows]
        error = slope_before_norm(k @ anchor, value[rows] - k, weight, bias)
        steps = -rate[..., start:end, None] * error
        before = q @ memory + (q @ k.mT).tril() @ steps
        reads.append(q + weight * layer_norm(before, q.shape[-1:], eps=EPS) + bias)
        memory = memory + k.mT @ steps
        place = (place + end - start) % mini_batch
        anchor = memory if place == 0 else anchor
        start = end
    check_finite((memory,))
    return torch.cat(reads, dim=-2).to(dtype), TTTState(memory, anchor, place)


def check_widths(key: Tensor, value: Tensor) -> None:
    """Raise ValueError where the residual k + norm(k W) has no value to reach."""
    if value.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"value must have the width of key, {key.shape[-1]}, got {value.shape[-1]}"
        )
