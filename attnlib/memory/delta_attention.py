"""Attention over a memory that corrects itself: the delta rule, and the delta rule that forgets."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize, pad

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.backend import runs_kernel, width_obstacle
from attnlib.checks import check_attention, check_count, check_scale
from attnlib.memory.delta_rule import (
    LARGEST_BETA,
    ReadAndState,
    decays,
    delta_rule_chunked,
    delta_rule_step,
    one_a_token,
    solved,
)

Gate = Float[Tensor, "..."] | float
"""A number, or a tensor that broadcasts to one number a key."""

TAXONOMY = Taxonomy(
    sequences="self", levels="single", positions="soft", representations="multi-head"
)
SHARED = {
    "key_invariant": False,
    "normalized": False,
    "positive": False,
    "grouped_query": False,
    "padding": False,
    "constant_state": True,
}


def delta_rule_oracle(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    value: Float[Tensor, "*heads M E"],
    *,
    beta: Gate = 1.0,
    log_decay: Gate = 0.0,
    is_causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
) -> Float[Tensor, "*heads N E"]:
    """Both operators with an M x M and an N x M matrix, written down as they are."""
    query, key = normalize(query, dim=-1), normalize(key, dim=-1)
    keys = key.shape[-2]
    if keys == 0:
        return query.new_zeros(*query.shape[:-1], value.shape[-1])
    beta = one_a_token("beta", beta, key, 0.0, LARGEST_BETA)
    log_decay = one_a_token("log_decay", log_decay, key, -torch.inf, 0.0)
    _, between, _ = decays(log_decay)
    writes = solved(key, beta, between, beta[..., None] * value)
    last = torch.full((query.shape[-2],), keys - 1)
    if is_causal:
        last = (torch.arange(query.shape[-2]) + query_offset).clamp(max=keys - 1)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return scale * (between[..., last, :] * (query @ key.mT)) @ writes


def delta_rule_attention_step(
    state: Float[Tensor, "*heads D E"] | None,
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    beta: Gate = 1.0,
    log_decay: Gate = 0.0,
    scale: float | None = None,
) -> ReadAndState:
    """(read, new state) of both operators for the next token or tokens; pass None to begin."""
    check_attention(query, key, value)
    dtype, sums = query.dtype, sums_of(query)
    beta = one_a_token("beta", beta, key, 0.0, LARGEST_BETA).to(sums)
    log_decay = one_a_token("log_decay", log_decay, key, -torch.inf, 0.0).to(sums)
    query, key, value = (x.to(sums) for x in (query, key, value))
    query, key = normalize(query, dim=-1), normalize(key, dim=-1)
    read, state = delta_rule_step(
        state, query, key, value, beta=beta, log_decay=log_decay, scale=scale
    )
    return read.to(dtype), state


def some_beta(query: Tensor, key: Tensor, value: Tensor) -> dict[str, Tensor]:
    """For a trial: one step size for all heads and tokens."""
    return {"beta": torch.tensor([0.7], dtype=key.dtype)}


def some_beta_and_decay(query: Tensor, key: Tensor, value: Tensor) -> dict[str, Tensor]:
    """For a trial: a step size and a decay."""
    return {**some_beta(query, key, value), "log_decay": torch.tensor([-0.2], dtype=key.dtype)}


@mechanism(
    key="delta-rule",
    paper="yang-2024-deltanet",
    chapter="3-linear/recurrent-and-chunked",
    section="the-delta-rule",
    step="memory",
    idea="a matrix memory that writes what was wrong in its own answer",
    equation=r"S_t = S_{t-1} + \beta_t k_t (v_t - S_{t-1}^\top k_t)^\top, \quad o_t = S_t^\top q_t",
    cost="time N (6 D E + 4 C (D + E)), memory N (D + E), state D E",
    oracle=delta_rule_oracle,
    recurrent=delta_rule_attention_step,
    promises=Promises(**SHARED, arguments=some_beta),
    taxonomy=TAXONOMY,
)
def delta_rule_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    value: Float[Tensor, "*heads M E"],
    *,
    beta: Gate = 1.0,
    is_causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
    chunk: int = 64,
    backend: str = "auto",
) -> Float[Tensor, "*heads N E"]:
    r"""Attention over a state that every key corrects: S = S + beta k (v - S^T k)^T, o = S^T q.

    Queries and keys are made unit vectors first (eps 1e-12), so with beta = 1 the memory answers
    k with exactly v afterwards: a key that comes again replaces its value, where linear attention
    would add a second one. With `is_causal` query i reads the state after key i + `query_offset`,
    else the state after all keys. Order counts: the keys are written one after the other.

    Shapes: query (..., heads, N, D), key (..., heads, M, D), value (..., heads, M, E); beta is a
    number or broadcasts to (..., heads, M) and lies in 0 ... 1, or in 0 ... 2 where states may flip
    their sign (eigenvalues down to -1; Grazzi et al., 2024). `scale` is D ** -0.5 unless given.
    Cost: time M (6 D E + 4 C (D + E)) with chunks of C = `chunk`, memory M (D + E); the state for
    decoding is D E numbers for each head and never grows.
    `backend` as in `attnlib.backend`; the kernel chooses its own chunk.
    Source: Schlag et al. (2021), section 4.2; Yang et al. (2024), section 3. Chapter 3.2.
    """
    return _read(query, key, value, beta, 0.0, is_causal, query_offset, scale, chunk, backend)


@mechanism(
    key="gated-delta-rule",
    paper="yang-2025",
    chapter="3-linear/recurrent-and-chunked",
    section="the-delta-rule",
    step="memory",
    idea="the delta rule on a state that fades before each write",
    equation=(
        r"S_t = \alpha_t S_{t-1} + \beta_t k_t (v_t - \alpha_t S_{t-1}^\top k_t)^\top,"
        r" \quad o_t = S_t^\top q_t"
    ),
    cost="time N (6 D E + 4 C (D + E)), memory N (D + E), state D E",
    oracle=delta_rule_oracle,
    recurrent=delta_rule_attention_step,
    promises=Promises(**SHARED, arguments=some_beta_and_decay),
    taxonomy=TAXONOMY,
)
def gated_delta_rule_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    value: Float[Tensor, "*heads M E"],
    *,
    beta: Gate = 1.0,
    log_decay: Gate = 0.0,
    is_causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
    chunk: int = 64,
    backend: str = "auto",
) -> Float[Tensor, "*heads N E"]:
    r"""`delta_rule_attention` on a state that fades by alpha = exp(`log_decay`) before each write.

    `log_decay` <= 0 is a number or broadcasts to (..., heads, M); 0 gives the plain delta rule, and
    a very negative one empties the memory at once. beta removes one pair, alpha fades all of them.
    All else as in `delta_rule_attention`. Source: Yang et al. (2025), section 3. Chapter 3.2.
    """
    return _read(query, key, value, beta, log_decay, is_causal, query_offset, scale, chunk, backend)


def _read(query, key, value, beta, log_decay, is_causal, query_offset, scale, chunk, backend):
    check_attention(query, key, value)
    check_scale(scale)
    check_count("query_offset", query_offset)
    check_count("chunk", chunk, least=1)
    _check_widths(query, key)
    dtype, sums = query.dtype, sums_of(query)
    query, key, value = (x.to(sums) for x in (query, key, value))
    query, key = normalize(query, dim=-1), normalize(key, dim=-1)
    beta = one_a_token("beta", beta, key.to(dtype), 0.0, LARGEST_BETA).to(sums)
    log_decay = one_a_token("log_decay", log_decay, key.to(dtype), -torch.inf, 0.0).to(sums)
    scale = max(query.shape[-1], 1) ** -0.5 if scale is None else scale

    form = _form(backend, query, value, chunk)
    if not is_causal:
        _, state = form(key, key, value, beta, log_decay)
        return (scale * query @ state).to(dtype)
    query_offset = min(query_offset, key.shape[-2])  # behind the last key the state stays
    # Tokens of zeros write nothing and fade nothing: they bring queries and keys to one length.
    queries, keys = query.shape[-2], key.shape[-2]
    more = max(queries + query_offset - keys, 0)
    length = keys + more
    query = pad(query, (0, 0, query_offset, length - query_offset - queries))
    key, value = (pad(x, (0, 0, 0, more)) for x in (key, value))
    beta, log_decay = (pad(x, (0, more)) for x in (beta, log_decay))
    read, _ = form(query, key, value, beta, log_decay)
    return (scale * read[..., query_offset : query_offset + queries, :]).to(dtype)


def _form(backend: str, query: Tensor, value: Tensor, chunk: int):
    """The form that runs: the kernel, or the chunks in PyTorch; both with scale 1."""
    if runs_kernel(backend, query.device, lambda: width_obstacle(query, value)):
        from attnlib.kernels import delta_rule as kernel

        def in_kernel(query, key, value, beta, log_decay):
            tensors = (x.contiguous() for x in (query, key, value, beta, log_decay))
            return kernel(*tensors, scale=1.0)

        return in_kernel

    def in_chunks(query, key, value, beta, log_decay):
        return delta_rule_chunked(
            query, key, value, beta=beta, log_decay=log_decay, scale=1.0, chunk=chunk
        )

    return in_chunks


def sums_of(query: Tensor) -> torch.dtype:
    """The dtype of lengths and states: float32 for half precision, where 1e-12 would be zero."""
    return torch.float32 if query.element_size() < 4 else query.dtype


def _check_widths(query: Tensor, key: Tensor) -> None:
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"key must have the width of query, {query.shape[-1]}, got {key.shape[-1]}"
        )
