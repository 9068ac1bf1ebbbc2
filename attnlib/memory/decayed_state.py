"""Linear attention whose state fades, in three forms: a matrix, chunks, one token at a time."""

import torch
from jaxtyping import Float
from torch import Tensor

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.backend import runs_kernel, width_obstacle
from attnlib.checks import check_count, check_scale
from attnlib.memory.decay import (
    Decay,
    behind,
    decay_between,
    expanded_decay,
    scores_by_channel,
    until,
)
from attnlib.memory.matrix_state import (
    arithmetic_of,
    check_recurrent,
    check_state,
    empty_state,
)

RECURRENT = {
    "cross": False,
    "query_equivariant": False,
    "key_invariant": False,
    "normalized": False,
    "positive": False,
    "grouped_query": False,
    "padding": False,
    "constant_state": True,
    "score_range": 1e3,
}
"""The promises of a mechanism that reads an unnormalized sum from a matrix state."""

SELF = Taxonomy(sequences="self", levels="single", positions="soft", representations="multi-head")


def decayed_attention_dense(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    log_decay: Decay = None,
    initial_state: Float[Tensor, "*heads D E"] | None = None,
    is_causal: bool = True,
    scale: float | None = None,
) -> Float[Tensor, "*heads N E"]:
    r"""The state written out as attention without a softmax: the oracle of the other two forms.

    .. math:: o_t = \mathrm{scale} \Big( \sum_{s \le t} \sum_d q_{td} k_{sd}
              \prod_{s < r \le t} a_{rd} \; v_s + \sum_d q_{td} \prod_{r \le t} a_{rd} \; S_{0d}
              \Big)

    Shapes, decay and errors as in `decayed_attention`.
    Cost: time N^2 (D + E), memory N^2 for each head; with a decay by channel N^2 D.
    Source: Sun et al. (2023), equation 5; Yang et al. (2024), section 4.1. Derived in chapter 3.2.
    """
    check_recurrent(query, key, value, is_causal)
    check_scale(scale)
    decay = expanded_decay(log_decay, query)
    dtype, scale = query.dtype, scale_of(scale, query)
    query, key, value, decay = summed(query, key, value, decay)
    products = query.unsqueeze(-2) * key.unsqueeze(-3)  # (..., N, N, D)
    if decay is None:
        scores = products.sum(-1).tril()
    else:
        left = decay_between(decay.mT.unsqueeze(-1)).movedim(-3, -1)  # (..., N, N, 1 or D)
        scores = (products * left).sum(-1)
    read = scores @ value
    if initial_state is not None:
        check_state("initial_state", initial_state, query, value)
        faded = query if decay is None else query * until(decay).exp()
        read = read + faded @ initial_state.to(query.dtype)
    return (scale * read).to(dtype)


def read_block(
    state: Float[Tensor, "*heads D E"],
    query: Float[Tensor, "*heads C D"],
    key: Float[Tensor, "*heads C D"],
    value: Float[Tensor, "*heads C E"],
    decay: Float[Tensor, "*heads C _"] | None,
) -> tuple[Float[Tensor, "*heads C E"], Float[Tensor, "*heads D E"]]:
    """(read, new state) of C tokens at once: quadratic among themselves, the state for the past.

    One token is the recurrence, all tokens are the matrix.
    """
    if decay is None:
        read = (query @ key.mT).tril_() @ value
        read += query @ state  # in place: nothing is copied, and no gradient needs what was there
        return read, state + key.mT @ value
    if decay.shape[-1] == 1:
        scores = (query @ key.mT) * decay_between(decay)
    else:
        scores = scores_by_channel(query, key, decay)
    read = scores @ value + (query * until(decay).exp()) @ state
    left = decay.sum(-2).exp().unsqueeze(-1)
    return read, left * state + (key * behind(decay).exp()).mT @ value


def decayed_attention_step(
    state: Float[Tensor, "*heads D E"] | None,
    query: Float[Tensor, "*heads C D"],
    key: Float[Tensor, "*heads C D"],
    value: Float[Tensor, "*heads C E"],
    *,
    log_decay: Decay = None,
    scale: float | None = None,
) -> tuple[Float[Tensor, "*heads C E"], Float[Tensor, "*heads D E"]]:
    r"""The recurrence for the next token (or tokens): (read, new state).

    .. math:: S_t = \mathrm{diag}(a_t) S_{t-1} + k_t v_t^\top \qquad
              o_t = \mathrm{scale} \; S_t^\top q_t

    Pass None to begin. Token by token it gives the rows of `decayed_attention`. The state is
    float32 for half precision. Cost: time and memory D E a token, whatever came before.
    Source: Katharopoulos et al. (2020), equations 16 to 20; Sun et al. (2023), equation 6.
    """
    check_recurrent(query, key, value)
    check_scale(scale)
    decay = expanded_decay(log_decay, query)
    if state is None:
        state = empty_state(query, value)
    check_state("state", state, query, value)
    dtype, scale = query.dtype, scale_of(scale, query)
    query, key, value, decay = summed(query, key, value, decay)
    read, state = read_block(state.to(query.dtype), scale * query, key, value, decay)
    return read.to(dtype), state


def one_decay(query: Tensor, key: Tensor, value: Tensor) -> dict[str, float]:
    """The same decay for every head, for a trial call."""
    return {"log_decay": -0.1}


@mechanism(
    key="decayed-attention",
    chapter="3-linear/recurrent-and-chunked",
    section="forgetting",
    step="memory",
    idea="a state of D x E numbers instead of a cache; it may fade",
    equation=r"S_t = \mathrm{diag}(a_t) S_{t-1} + k_t v_t^\top, \; o_t = S_t^\top q_t",
    cost="time N (D E + C (D + E)), state D E",
    oracle=decayed_attention_dense,
    recurrent=decayed_attention_step,
    promises=Promises(arguments=one_decay, **RECURRENT),
    taxonomy=SELF,
)
def decayed_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    log_decay: Decay = None,
    initial_state: Float[Tensor, "*heads D E"] | None = None,
    return_state: bool = False,
    is_causal: bool = True,
    scale: float | None = None,
    chunk: int = 128,
    backend: str = "auto",
) -> Float[Tensor, "*heads N E"] | tuple[Tensor, Tensor]:
    r"""Causal linear attention with decay, chunk by chunk: quadratic inside, a state between.

    .. math:: S_t = \mathrm{diag}(a_t) S_{t-1} + k_t v_t^\top \qquad
              o_t = \mathrm{scale} \; S_t^\top q_t

    Shapes: query and key (..., N, D), value (..., N, E), states (..., D, E). `log_decay` is log a:
    None (a = 1), a number, (..., N) one a token, or (..., N, D) one a token and key channel; sizes
    of 1 are repeated, so (heads, 1) is one a head. With `return_state` the result is the pair
    (read, final state), and the state goes into the next call as `initial_state`: two calls on two
    halves give what one call gives.

    The read is a sum, not a mean: nothing divides it. Decays are multiplied as sums of logarithms,
    and no exponent is positive, so any decay in (0, 1] is safe; in float16 the reads themselves
    must stay below 65504. Half precision is summed in float32.

    Cost: time N (D E + C (D + E)) for each head with C = `chunk`. A chunk of at least N tokens is
    the quadratic form; larger ones change nothing. `backend` as in `attnlib.backend`; the kernel
    has a chunk of its own.
    Raises ValueError for a decay outside (0, 1], a state of another shape, a chunk below 1, and
    is_causal=False.
    Source: Katharopoulos et al. (2020); Sun et al. (2023), equation 7; Yang et al. (2024), section
    4. Derived in chapter 3.2.
    """
    check_recurrent(query, key, value, is_causal)
    check_scale(scale)
    check_count("chunk", chunk, least=1)
    decay = expanded_decay(log_decay, query)
    state = empty_state(query, value) if initial_state is None else initial_state
    check_state("initial_state", state, query, value)
    scale = scale_of(scale, query)

    if runs_kernel(backend, query.device, lambda: why_not_kernel(query, value)):
        read, state = read_by_kernel(query, key, value, decay, initial_state, scale)
    else:
        read, state = read_by_chunks(state, query, key, value, decay, scale, chunk)
    return (read, state) if return_state else read


def read_by_chunks(
    state: Float[Tensor, "*heads D E"],
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    decay: Float[Tensor, "*heads N _"] | None,
    scale: float,
    chunk: int,
) -> tuple[Float[Tensor, "*heads N E"], Float[Tensor, "*heads D E"]]:
    """(read, final state): the blocks one after the other, each reading the state before it."""
    dtype = query.dtype
    query, key, value, decay = summed(query, key, value, decay)
    state = state.to(query.dtype)
    reads = [value[..., :0, :]]
    for start in range(0, query.shape[-2], chunk):
        rows = slice(start, start + chunk)
        keys, values, faded = (None if x is None else x[..., rows, :] for x in (key, value, decay))
        read, state = read_block(state, scale * query[..., rows, :], keys, values, faded)
        reads.append(read)
    return torch.cat(reads, dim=-2).to(dtype), state


def read_by_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    decay: Tensor | None,
    initial_state: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The same by `attnlib.kernels.linear_attention`."""
    from attnlib.kernels import linear_attention

    if decay is not None:
        decay = decay.to(arithmetic_of(query.dtype))
        decay = decay.squeeze(-1) if decay.shape[-1] == 1 else decay.contiguous()
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    if initial_state is not None:
        initial_state = initial_state.to(arithmetic_of(query.dtype))
    return linear_attention(query, key, value, decay, initial_state, scale=scale)


def why_not_kernel(query: Tensor, value: Tensor) -> str | None:
    """What of this call the kernel cannot do, or None."""
    if query.shape[-2] == 0:
        return "there is no token to read"
    return width_obstacle(query, value)


def scale_of(scale: float | None, query: Tensor) -> float:
    """The scale, D ** -0.5 unless given."""
    return max(query.shape[-1], 1) ** -0.5 if scale is None else scale


def summed(query: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    """All tensors in the dtype in which a state of this query is summed."""
    dtype = arithmetic_of(query.dtype)
    return tuple(None if x is None else x.to(dtype) for x in (query, *others))
