"""The exercises of chapter 3.2 on the delta rule: one step, and all writes of a chunk at once."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from attnlib.exercises.answers import call, close, require, tensor_of
from attnlib.exercises.recurrent_and_chunked_programs import random
from attnlib.exercises.registry import checker, mutant, solution
from attnlib.memory.delta_rule import delta_rule_recurrent

# ---- 3.2.4 one step of the delta rule


def step_inputs(seed: int = 324) -> list[Tensor]:
    """state, query, key, value, beta for two heads; as many key channels as value channels."""
    state, query, key, value, beta = random(seed, (2, 3, 3), (2, 3), (2, 3), (2, 3), (2,))
    return [state, query, normalize(key, dim=-1), value, beta.sigmoid()]


@checker("3.2.4")
def one_delta_step(answer) -> str:
    """(read, new state) of one token: ask, correct, read."""
    state, query, key, value, beta = inputs = step_inputs()
    error = value - (key[:, None] @ state)[:, 0]
    write = beta[:, None, None] * key[..., None] * error[:, None]
    result = call(answer, *inputs)
    require(
        isinstance(result, (tuple, list)) and len(result) == 2, "return two tensors: read, state"
    )
    read = tensor_of(result[0], (2, 3), "the read")
    new = tensor_of(result[1], (2, 3, 3), "the new state")
    outer = key[..., None] * value[:, None]
    mistakes = {
        "the state is as it was: add the write": state,
        "that is linear attention: write what is wrong in the answer, not the value itself": (
            state + beta[:, None, None] * outer
        ),
        "beta is missing": state + write / beta[:, None, None],
        "beta counts twice": state + write * beta[:, None, None],
        "the state is turned: its rows are key channels, k e^T and not e k^T": state + write.mT,
        "the memory is asked for the query; ask it for the key": (
            state
            + beta[:, None, None]
            * key[..., None]
            * (value - (query[:, None] @ state)[:, 0])[:, None]
        ),
        "the sign: the error is the value minus the answer": state - write,
        "the answer is S k; it is S^T k, a row for each value channel": (
            state
            + beta[:, None, None]
            * key[..., None]
            * (value - (state @ key[..., None])[..., 0])[:, None]
        ),
    }
    for name, wrong in mistakes.items():
        require(not close(new, wrong), f"new state: {name}")
    require(close(new, state + write), "new state: S + beta k (v - S^T k)^T")
    before = (query[:, None] @ state)[:, 0]
    require(not close(read, before), "read: from the state before the write; read the new one")
    require(not close(read, (new @ query[..., None])[..., 0]), "read: S q is turned; it is S^T q")
    require(close(read, (query[:, None] @ new)[:, 0]), "read: S'^T q, without a scale")
    return "Ask, correct, read: one gradient step of size beta on the pair that has come."


def _step(state, query, key, value, beta):
    error = value - torch.einsum("hde,hd->he", state, key)
    state = state + beta[:, None, None] * torch.einsum("hd,he->hde", key, error)
    return torch.einsum("hde,hd->he", state, query), state


solution("3.2.4")(_step)


@mutant("3.2.4", "that is linear attention")
def adds_the_value(state, query, key, value, beta):
    state = state + beta[:, None, None] * key[..., None] * value[:, None]
    return (query[:, None] @ state)[:, 0], state


@mutant("3.2.4", "before the write")
def reads_before_it_writes(state, query, key, value, beta):
    return (query[:, None] @ state)[:, 0], _step(state, query, key, value, beta)[1]


@mutant("3.2.4", "beta is missing")
def step_of_one(state, query, key, value, beta):
    return _step(state, query, key, value, torch.ones_like(beta))


@mutant("3.2.4", "beta counts twice")
def beta_twice(state, query, key, value, beta):
    return _step(state, query, key, value, beta**2)


@mutant("3.2.4", "ask it for the key")
def asks_for_the_query(state, query, key, value, beta):
    error = value - (query[:, None] @ state)[:, 0]
    state = state + beta[:, None, None] * key[..., None] * error[:, None]
    return (query[:, None] @ state)[:, 0], state


@mutant("3.2.4", "not e k^T")
def state_turned(state, query, key, value, beta):
    new = _step(state, query, key, value, beta)[1]
    new = state + (new - state).mT
    return (query[:, None] @ new)[:, 0], new


@mutant("3.2.4", "it is S^T k")
def answer_turned(state, query, key, value, beta):
    error = value - (state @ key[..., None])[..., 0]
    state = state + beta[:, None, None] * key[..., None] * error[:, None]
    return (query[:, None] @ state)[:, 0], state


@mutant("3.2.4", "it is S^T q")
def read_turned(state, query, key, value, beta):
    new = _step(state, query, key, value, beta)[1]
    return (new @ query[..., None])[..., 0], new


@mutant("3.2.4", "the sign")
def descends_upwards(state, query, key, value, beta):
    return _step(state, query, key, value, -beta)


@mutant("3.2.4", "changes its input")
def in_place(state, query, key, value, beta):
    read, new = _step(state, query, key, value, beta)
    state.copy_(new)
    return read, state


@mutant("3.2.4", "two tensors")
def only_the_read(state, query, key, value, beta):
    return _step(state, query, key, value, beta)[0]


# ---- 3.2.5 all writes of a chunk at once


def write_inputs(seed: int = 325) -> list[Tensor]:
    """key, value, beta of seven tokens of two heads."""
    key, value, beta = random(seed, (2, 7, 4), (2, 7, 3), (2, 7))
    return [normalize(key, dim=-1), value, beta.sigmoid()]


def writes_one_by_one(key: Tensor, value: Tensor, beta: Tensor) -> Tensor:
    """u_t = beta_t (v_t - S_(t-1)^T k_t), token after token."""
    written = []
    state = 0.0 * key[..., :1, :].mT @ value[..., :1, :]
    for t in range(key.shape[-2]):
        row = slice(t, t + 1)
        write = beta[..., row, None] * (value[..., row, :] - key[..., row, :] @ state)
        state = state + key[..., row, :].mT @ write
        written.append(write)
    return torch.cat(written, dim=-2)


@checker("3.2.5")
def all_writes_at_once(answer) -> str:
    """U of (I + tril(diag(beta) K K^T, -1)) U = diag(beta) V."""
    inputs = key, value, beta = write_inputs()
    right = writes_one_by_one(*inputs)
    writes = tensor_of(call(answer, *inputs), (2, 7, 3), "the writes")
    table = key @ key.mT
    rows, unit = beta[..., None], torch.eye(7, dtype=key.dtype)
    mistakes = {
        "beta is missing on the right side: diag(beta) V": _solved(rows * table, value),
        "beta scales columns: it belongs to the row, to the token that writes": _solved(
            beta[..., None, :] * table, rows * value
        ),
        "beta is missing in the triangle": _solved(table, rows * value),
        "the diagonal counts too: a token does not see its own write, take tril(-1)": (
            torch.linalg.solve(unit + (rows * table).tril(), rows * value)
        ),
        "the triangle looks ahead: take the part below the diagonal": torch.linalg.solve(
            unit + (rows * table).triu(1), rows * value
        ),
        "the sign: I plus the triangle": _solved(-rows * table, rows * value),
        "one step of the series only: the writes before correct each other too": (
            rows * value - (rows * table).tril(-1) @ (rows * value)
        ),
        "nothing is corrected: that is what linear attention writes": rows * value,
    }
    for name, wrong in mistakes.items():
        require(not close(writes, wrong), name)
    require(
        close(writes, right), "wrong: row t is beta_t (v_t - sum over s < t of (k_t . k_s) u_s)"
    )
    long = [x.repeat_interleave(40, 1) for x in inputs]
    read, _ = delta_rule_recurrent(long[0], *long[:2], beta=long[2], scale=1.0)
    scores = (long[0] @ long[0].mT).tril()
    writes = tensor_of(call(answer, *long), (2, 280, 3), "the writes")
    require(
        close(scores @ writes, read),
        "right for 7 tokens, wrong for 280 with keys that come again: solve the triangular system "
        "itself, a series or a general inverse loses its digits",
    )
    return "With these writes for values, the delta rule is linear attention."


def _solved(table: Tensor, right_side: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(
        table.tril(-1), right_side, upper=False, unitriangular=True
    )


@solution("3.2.5")
def writes_at_once(key, value, beta):
    return _solved(beta[..., None] * (key @ key.mT), beta[..., None] * value)


@mutant("3.2.5", "on the right side")
def value_without_beta(key, value, beta):
    return _solved(beta[..., None] * (key @ key.mT), value)


@mutant("3.2.5", "scales columns")
def beta_of_the_column(key, value, beta):
    return _solved(beta[..., None, :] * (key @ key.mT), beta[..., None] * value)


@mutant("3.2.5", "beta is missing in the triangle")
def triangle_without_beta(key, value, beta):
    return _solved(key @ key.mT, beta[..., None] * value)


@mutant("3.2.5", "the diagonal counts too")
def with_the_diagonal(key, value, beta):
    table = (beta[..., None] * (key @ key.mT)).tril()
    return torch.linalg.solve(torch.eye(key.shape[-2]).to(key) + table, beta[..., None] * value)


@mutant("3.2.5", "looks ahead")
def upper_triangle(key, value, beta):
    table = (beta[..., None] * (key @ key.mT)).triu(1)
    return torch.linalg.solve(torch.eye(key.shape[-2]).to(key) + table, beta[..., None] * value)


@mutant("3.2.5", "the sign")
def minus(key, value, beta):
    return _solved(-beta[..., None] * (key @ key.mT), beta[..., None] * value)


@mutant("3.2.5", "one step of the series")
def first_order(key, value, beta):
    value = beta[..., None] * value
    return value - (beta[..., None] * (key @ key.mT)).tril(-1) @ value


@mutant("3.2.5", "nothing is corrected")
def linear_attention(key, value, beta):
    return beta[..., None] * value


@mutant("3.2.5", "right for 7 tokens")
def seven_terms(key, value, beta):
    total = term = beta[..., None] * value
    below = (beta[..., None] * (key @ key.mT)).tril(-1)
    for _ in range(6):
        term = -below @ term
        total = total + term
    return total
