r"""TTT-linear: the state is a linear model, and reading is training it on the tokens that come.

    W_t = W_t' - sum of rate_s k_s (k_s^T W_t' - v_s^T) over s in the mini-batch of t, s <= t

Every token is a training example (input k_t, target v_t), a mini-batch one step of gradient
descent, and the read o_t = W_t^T q_t a prediction. Mini-batches of one token are the delta rule;
one mini-batch as long as the sequence is linear attention.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from attnlib.atlas import Promises, mechanism
from attnlib.checks import check_attention, check_count, check_dtype, check_scale, check_tensor
from attnlib.memory.linear_memory import linear_memory_parallel
from attnlib.memory.matrix_state import arithmetic_of, empty_state
from attnlib.memory.memory_rates import Rate, check_finite, check_stable, rates_of
from attnlib.memory.neural_memory import MemoryState
from attnlib.memory.neural_memory_attention import (
    SHARED,
    TAXONOMY,
    of_unit_length,
    read_in_order,
)


class TTTState(NamedTuple):
    """The model now, the model with which the open mini-batch began, and its tokens so far."""

    memory: Float[Tensor, "*heads D E"]
    anchor: Float[Tensor, "*heads D E"]
    place: int


ReadAndState = tuple[Float[Tensor, "*heads N E"], TTTState]


def ttt_linear_recurrent(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    rate: Rate = 0.1,
    mini_batch: int = 16,
    state: TTTState | None = None,
    scale: float | None = None,
) -> ReadAndState:
    r"""(read, state) of a linear model that is trained on the tokens: the definition.

    .. math:: W_t = W_{t-1} - \mathrm{rate}_t\, k_t (k_t^\top W_{t'} - v_t^\top), \qquad
              o_t = \mathrm{scale}\, W_t^\top q_t

    with t' the last token before the mini-batch of t. The bracket is the gradient of
    1/2 |W^T k - v|^2, so the rate is twice that of the paper's |f(k) - v|^2.
    Shapes: query and key (..., heads, N, D), value (..., heads, N, E); `rate` a number or a tensor
    that broadcasts to (..., heads, N). The state is a TTTState of matrices (..., D, E), zero to
    begin. `scale` is D ** -0.5 unless given. Half precision is computed in float32.
    Cost: time 6 N D E in N steps; state 2 D E.
    Raises ValueError or TypeError naming the argument: shapes, a negative rate, a rate with which
    one token alone is unstable, rate |k|^2 > 2, and a model that has diverged (both looked at for
    CPU tensors). Training is stable where the largest eigenvalue of sum_s rate_s k_s k_s^T over a
    mini-batch is at most 2 (`stability_ratio`): always, for b unit keys, with rate <= 2 / b.
    Source: Sun et al. (2024), section 2, eqs. 1, 3 and 4; mini-batches, section 2.4.
    """
    query, key, value, rate, state, scale, dtype = checked(
        query, key, value, rate, mini_batch, state, scale
    )
    (memory, anchor, place), reads = state, []
    for t in range(key.shape[-2]):
        row = (..., slice(t, t + 1), slice(None))
        gradient = key[row].mT @ (key[row] @ anchor - value[row])
        memory = memory - rate[..., t, None, None] * gradient
        reads.append(scale * query[row] @ memory)
        place = (place + 1) % mini_batch
        anchor = memory if place == 0 else anchor
    check_finite((memory,))
    read = torch.cat(reads, dim=-2) if reads else value * 0
    return read.to(dtype), TTTState(memory, anchor, place)


def ttt_linear_parallel(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    rate: Rate = 0.1,
    mini_batch: int = 16,
    state: TTTState | None = None,
    scale: float | None = None,
) -> ReadAndState:
    """The same in one piece: `linear_memory_parallel` without momentum and forgetting.

    Arguments, results and errors of `ttt_linear_recurrent`. Cost: time N^2 (2 D + 2 E) + N^3 / 3,
    memory N^2.
    """
    query, key, value, rate, state, scale, dtype = checked(
        query, key, value, rate, mini_batch, state, scale
    )
    memory, anchor, place = state
    state = MemoryState(memory, torch.zeros_like(memory), anchor, place)
    read, state = linear_memory_parallel(
        query, key, value, theta=rate, mini_batch=mini_batch, state=state, scale=scale
    )
    return read.to(dtype), TTTState(state.memory, state.anchor, state.place)


def ttt_linear_chunked(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    rate: Rate = 0.1,
    mini_batch: int = 16,
    state: TTTState | None = None,
    scale: float | None = None,
) -> ReadAndState:
    r"""The same with a mini-batch at a time: the dual form.

    .. math:: E = K W_{t'} - V, \qquad
              O = \mathrm{scale}\,(Q W_{t} - \mathrm{tril}(Q K^\top)\,\mathrm{diag}(r)\,E)

    All errors of a mini-batch are known at its start. Inside it the reads are linear attention
    over (k, -rate e), and no W but the one at its end is made.
    Arguments, results and errors of `ttt_linear_recurrent`. Cost: time N (6 D E + 2 b (D + E)) for
    b = `mini_batch`, in N / b steps; memory N b.
    Source: Sun et al. (2024), section 2.5.
    """
    query, key, value, rate, state, scale, dtype = checked(
        query, key, value, rate, mini_batch, state, scale
    )
    (memory, anchor, place), reads = state, [value[..., :0, :]]
    start, length = 0, key.shape[-2]
    while start < length:
        end = min(length, start + mini_batch - place)
        rows = (..., slice(start, end), slice(None))
        q, k = query[rows], key[rows]
        steps = -rate[..., start:end, None] * (k @ anchor - value[rows])
        reads.append(scale * (q @ memory + (q @ k.mT).tril() @ steps))
        memory = memory + k.mT @ steps
        place = (place + end - start) % mini_batch
        anchor = memory if place == 0 else anchor
        start = end
    check_finite((memory,))
    return torch.cat(reads, dim=-2).to(dtype), TTTState(memory, anchor, place)


def ttt_linear_step(
    state: TTTState | None,
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    rate: Rate = 0.1,
    mini_batch: int = 16,
    scale: float | None = None,
) -> ReadAndState:
    """(read, new state) for the next token, or the next few; pass None to begin.

    In pieces of any length it gives the rows of the other forms. The state that came is left as it
    is. Cost: time 6 D E a token, whatever came before.
    """
    return ttt_linear_chunked(
        query, key, value, rate=rate, mini_batch=mini_batch, state=state, scale=scale
    )


def ttt_linear_read(
    state: TTTState, query: Float[Tensor, "*heads N D"]
) -> Float[Tensor, "*heads N E"]:
    """What the model predicts, without a scale and without training: q W.

    Raises ValueError for None, a memory that is read before it is written.
    """
    if state is None:
        raise ValueError("state must hold a memory: it is read before it is written, got None")
    check_tensor("query", query)
    return (query.to(state.memory.dtype) @ state.memory).to(query.dtype)


# ---- the operator of attention


def some_rate(query: Tensor, key: Tensor, value: Tensor) -> dict[str, Tensor | int]:
    """For a trial: one rate, and mini-batches of three tokens."""
    return {"rate": torch.tensor([0.4], dtype=key.dtype), "mini_batch": 3}


def ttt_linear_oracle(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    value: Float[Tensor, "*heads M E"],
    *,
    rate: Rate = 0.1,
    mini_batch: int = 16,
    is_causal: bool = False,
    query_offset: int = 0,
) -> Float[Tensor, "*heads N E"]:
    """The definition: one token after the other."""
    query, key, value, rate, *_ = of_unit_length(query, key, value, rate, name="rate")

    def run(query: Tensor) -> ReadAndState:
        return ttt_linear_recurrent(query, key, value, rate=rate, mini_batch=mini_batch, scale=1.0)

    return read_in_order(run, ttt_linear_read, query, key, is_causal, query_offset)


def ttt_linear_attention_step(
    state: TTTState | None,
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads N D"],
    value: Float[Tensor, "*heads N E"],
    *,
    rate: Rate = 0.1,
    mini_batch: int = 16,
) -> ReadAndState:
    """(read, new state) of the operator for the next token or tokens; pass None to begin."""
    dtype = query.dtype
    query, key, value, rate, *_ = of_unit_length(query, key, value, rate, name="rate")
    read, state = ttt_linear_step(
        state, query, key, value, rate=rate, mini_batch=mini_batch, scale=1.0
    )
    return read.to(dtype), state


@mechanism(
    key="ttt-linear",
    paper="sun-2024-ttt",
    chapter="7-memory/test-time-memory",
    section="one-gradient-step",
    step="memory",
    idea="a linear model that takes one gradient step on every mini-batch of tokens",
    equation=(
        r"W_t = W_{t'} - \sum_{s = t'+1}^{t} \eta_s k_s (k_s^\top W_{t'} - v_s^\top), "
        r"\quad o_t = W_t^\top q_t"
    ),
    cost="time N (6 D E + 2 b (D + E)), memory N b, state 2 D E",
    oracle=ttt_linear_oracle,
    recurrent=ttt_linear_attention_step,
    promises=Promises(**SHARED, arguments=some_rate),
    taxonomy=TAXONOMY,
)
def ttt_linear_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    value: Float[Tensor, "*heads M E"],
    *,
    rate: Rate = 0.1,
    mini_batch: int = 16,
    is_causal: bool = False,
    query_offset: int = 0,
) -> Float[Tensor, "*heads N E"]:
    r"""Attention over a linear model that is trained on the keys and values as they come.

    Queries and keys are made unit vectors first, so that a rate of at most 2 / `mini_batch` is
    always stable. `rate` is a number or broadcasts to (..., heads, M). With `is_causal` query i
    reads the model after key i + `query_offset`, else the one after all keys. There is no scale.
    The layer of the paper adds a layer norm and a residual to the model, and learns its start and
    its rate. Shapes, errors and stability as in `ttt_linear_recurrent`.
    Cost: time M (6 D E + 2 b (D + E)) for b = `mini_batch`, memory M b; state 2 D E for each head.
    Source: Sun et al. (2024), sections 2.1 to 2.5. Chapter 7.2.
    """
    dtype = query.dtype if isinstance(query, Tensor) else None
    query, key, value, rate, *_ = of_unit_length(query, key, value, rate, name="rate")
    check_count("query_offset", query_offset)

    def run(query: Tensor) -> ReadAndState:
        return ttt_linear_chunked(query, key, value, rate=rate, mini_batch=mini_batch, scale=1.0)

    return read_in_order(run, ttt_linear_read, query, key, is_causal, query_offset).to(dtype)


def checked(query, key, value, rate, mini_batch, state, scale):
    """Everything checked and in the dtype of the sums; what is missing is filled in."""
    check_attention(query, key, value)
    if query.shape != key.shape:
        raise ValueError(
            f"query must have the shape of key, {tuple(key.shape)}, got {tuple(query.shape)}"
        )
    check_scale(scale)
    check_count("mini_batch", mini_batch, least=1)
    scale = max(query.shape[-1], 1) ** -0.5 if scale is None else scale
    sums = arithmetic_of(query.dtype)
    rate, none, _ = (x.to(sums) for x in rates_of(rate, 0.0, 0.0, key, name="rate"))
    dtype, (query, key, value) = query.dtype, (x.to(sums) for x in (query, key, value))
    check_stable(key, rate, none, none, name="rate")
    empty = empty_state(key, value)
    if state is None:
        return query, key, value, rate, TTTState(empty, empty, 0), scale, dtype
    if not isinstance(state, TTTState):
        raise TypeError(f"state must be a TTTState or None, got {type(state).__name__}")
    for name, matrix in zip(state._fields[:2], state[:2], strict=True):
        check_dtype(f"state.{name}", matrix, key)
        if matrix.shape != empty.shape:
            raise ValueError(
                f"state.{name} must have shape {tuple(empty.shape)}, got {tuple(matrix.shape)}"
            )
    if state.place >= mini_batch:
        raise ValueError(
            f"state must lie within a mini-batch of {mini_batch} tokens, got place {state.place}"
        )
    return query, key, value, rate, state, scale, dtype
