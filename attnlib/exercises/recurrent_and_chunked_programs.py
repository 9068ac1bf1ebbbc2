"""The exercises of chapter 3.2 that are programs: chunks with decay, a delta step, all writes."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from attnlib.counting import largest_tensor
from attnlib.exercises.answers import call, close, require, tensor_of
from attnlib.exercises.registry import checker, mutant, solution
from attnlib.memory.decayed_state import decayed_attention_dense
from attnlib.memory.delta_rule import delta_rule_recurrent


def random(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Normal numbers in float64, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


# ---- 3.2.3 linear attention with decay, in chunks


def fading_inputs(length: int, strength: float = 0.3) -> list[Tensor]:
    """query, key, value and one log decay a token, for two heads."""
    *tensors, decay = random(323, (2, length, 4), (2, length, 4), (2, length, 3), (2, length))
    return [*tensors, -strength * decay.abs()]


@checker("3.2.3")
def chunks_with_decay(answer) -> str:
    """o_t = S_t^T q_t with S_t = a_t S_(t-1) + k_t v_t^T, one chunk after the other."""
    one = fading_inputs(6)
    read = tensor_of(call(answer, *one, 6), (2, 6, 3), "the read")
    right = decayed_attention_dense(*one[:3], log_decay=one[3], scale=1.0)
    _name_one_chunk(read, one, right)
    for length, chunk in ((6, 3), (6, 1), (7, 3), (40, 8)):
        inputs = fading_inputs(length)
        right = decayed_attention_dense(*inputs[:3], log_decay=inputs[3], scale=1.0)
        read = tensor_of(call(answer, *inputs, chunk), (2, length, 3), "the read")
        _name_chunks(read, right, inputs, length, chunk)
    strong = fading_inputs(40, strength=60.0)
    read = tensor_of(call(answer, *strong, 20), (2, 40, 3), "the read")
    require(
        read.isfinite().all(),
        "strong decays give NaN or infinity: e^(-c) of a long sum overflows; take e of the "
        "difference c_t - c_s, which is never positive",
    )
    right = decayed_attention_dense(*strong[:3], log_decay=strong[3], scale=1.0)
    require(close(read, right), "right for weak decays, wrong for strong ones")
    inputs = fading_inputs(256)
    most = largest_tensor(lambda: answer(*inputs, 8))
    require(
        most < 256 * 256,
        f"a tensor of {most} numbers is made: with chunks of 8 no table may be N x N",
    )
    return "Right for chunks that divide the length and chunks that do not, weak decays and strong."


def _name_one_chunk(read: Tensor, inputs: list[Tensor], right: Tensor) -> None:
    query, key, value, log_decay = inputs
    total = log_decay.cumsum(-1)
    left = (total[..., :, None] - total[..., None, :]).exp().tril()
    scores = query @ key.mT
    require(
        not close(read, scores.tril() @ value),
        "in one chunk already: nothing fades; token s weighs e^(c_t - c_s) for token t",
    )
    require(
        not close(read, (scores * left).tril(-1) @ value),
        "in one chunk already: a token does not read its own write; keep the diagonal",
    )
    require(
        not close(read, (scores * left * log_decay.exp()[..., None, :]) @ value),
        "in one chunk already: one decay too many; the write of token s has not faded at token s",
    )
    require(
        not close(read, scores @ value),
        "in one chunk already: later tokens are read; keep the part on and below the diagonal",
    )
    require(
        not close(read, right * 2),
        "the read is scaled by sqrt(D) = 2: there is no scale in this exercise",
    )
    require(
        not close(read, right / 2),
        "the read is scaled by 1/sqrt(D): there is no scale in this exercise",
    )
    require(close(read, right), "wrong in one chunk already: c_t is the running sum of log_decay")


def _name_chunks(
    read: Tensor, right: Tensor, inputs: list[Tensor], length: int, chunk: int
) -> None:
    if close(read, right):
        return
    where = f"{length} tokens in chunks of {chunk}"
    require(
        close(read[:, :chunk], right[:, :chunk]),
        f"{where}: the first chunk is wrong; its state is zero, and it is written after it is read",
    )
    for name, other in _states_gone_wrong(inputs, chunk).items():
        require(not close(read, other), f"{where}: {name}")
    first_wrong = int((read - right).abs().amax((0, 2)).gt(1e-9).nonzero()[0, 0])
    require(False, f"{where}: wrong from token {first_wrong} on; look at what the state holds then")


def _states_gone_wrong(inputs: list[Tensor], chunk: int) -> dict[str, Tensor]:
    return {
        "the chunks do not know of each other: hand the state over": _chunked(
            *inputs, chunk, state_read="none"
        ),
        "the old state does not fade on its way through a chunk": _chunked(
            *inputs, chunk, state_kept="whole"
        ),
        "the state is read without its decay: token t reads e^(c_t) S": _chunked(
            *inputs, chunk, state_read="unfaded"
        ),
        "the state is read one decay too fresh: c_t includes the decay of token t": _chunked(
            *inputs, chunk, state_read="early"
        ),
        "what a chunk writes does not fade until the end of the chunk": _chunked(
            *inputs, chunk, written="unfaded"
        ),
        "the state is stale: it holds the last chunk alone": _chunked(
            *inputs, chunk, state_kept="nothing"
        ),
    }


def _chunked(
    query, key, value, log_decay, chunk, state_read="faded", state_kept="faded", written="faded"
):
    """The chunked form, and the ways in which its state goes wrong."""
    state, reads = 0.0 * key[..., :1, :].mT @ value[..., :1, :], []
    parts = (
        x.split(chunk, dim) for x, dim in ((query, -2), (key, -2), (value, -2), (log_decay, -1))
    )
    for q, k, v, decay in zip(*parts, strict=True):
        total = decay.cumsum(-1)
        left = (total[..., :, None] - total[..., None, :]).tril().exp().tril()
        onto = {
            "faded": total.exp(),
            "unfaded": torch.ones_like(total),
            "early": (total - decay).exp(),
            "none": torch.zeros_like(total),
        }[state_read]
        reads.append((q @ k.mT * left) @ v + onto[..., None] * (q @ state))
        to_end = (total[..., -1:] - total).exp() if written == "faded" else torch.ones_like(total)
        kept = {"faded": total[..., -1].exp()[..., None, None], "whole": 1.0, "nothing": 0.0}
        state = kept[state_kept] * state + (to_end[..., None] * k).mT @ v
    return torch.cat(reads, dim=-2)


@solution("3.2.3")
def in_chunks(query, key, value, log_decay, chunk):
    return _chunked(query, key, value, log_decay, chunk)


@mutant("3.2.3", "hand the state over")
def no_state(query, key, value, log_decay, chunk):
    return _chunked(query, key, value, log_decay, chunk, state_read="none")


@mutant("3.2.3", "does not fade on its way")
def old_state_kept_whole(query, key, value, log_decay, chunk):
    return _chunked(query, key, value, log_decay, chunk, state_kept="whole")


@mutant("3.2.3", "read without its decay")
def state_read_unfaded(query, key, value, log_decay, chunk):
    return _chunked(query, key, value, log_decay, chunk, state_read="unfaded")


@mutant("3.2.3", "one decay too fresh")
def decay_off_by_one(query, key, value, log_decay, chunk):
    return _chunked(query, key, value, log_decay, chunk, state_read="early")


@mutant("3.2.3", "until the end of the chunk")
def writes_do_not_fade(query, key, value, log_decay, chunk):
    return _chunked(query, key, value, log_decay, chunk, written="unfaded")


@mutant("3.2.3", "the last chunk alone")
def stale_state(query, key, value, log_decay, chunk):
    return _chunked(query, key, value, log_decay, chunk, state_kept="nothing")


@mutant("3.2.3", "nothing fades")
def no_decay(query, key, value, log_decay, chunk):
    return _chunked(query, key, value, 0 * log_decay, chunk)


@mutant("3.2.3", "its own write")
def strict_mask(query, key, value, log_decay, chunk):
    own = (query * key).sum(-1, keepdim=True) * value
    return _chunked(query, key, value, log_decay, chunk) - own


@mutant("3.2.3", "later tokens are read")
def no_mask(query, key, value, log_decay, chunk):
    return query @ key.mT @ value


@mutant("3.2.3", "one decay too many")
def decay_of_the_write(query, key, value, log_decay, chunk):
    return _chunked(query, key * log_decay.exp()[..., None], value, log_decay, chunk)


@mutant("3.2.3", "no scale in this exercise")
def scaled(query, key, value, log_decay, chunk):
    return _chunked(query, key, value, log_decay, chunk) / query.shape[-1] ** 0.5


@mutant("3.2.3", "e^(-c) of a long sum overflows")
def quotient_of_decays(query, key, value, log_decay, chunk):
    state, reads = 0.0 * key[..., :1, :].mT @ value[..., :1, :], []
    parts = (
        x.split(chunk, dim) for x, dim in ((query, -2), (key, -2), (value, -2), (log_decay, -1))
    )
    for q, k, v, decay in zip(*parts, strict=True):
        until = decay.cumsum(-1).exp()[..., None]
        reads.append((q * until @ (k / until).mT).tril() @ v + q * until @ state)
        state = until[..., -1:, :] * (state + (k / until).mT @ v)
    return torch.cat(reads, dim=-2)


@mutant("3.2.3", "no table may be N x N")
def all_at_once(query, key, value, log_decay, chunk):
    return _chunked(query, key, value, log_decay, query.shape[-2])


@mutant("3.2.3", "must have shape")
def last_chunk_dropped(query, key, value, log_decay, chunk):
    whole = query.shape[-2] // chunk * chunk
    return _chunked(query, key, value, log_decay, chunk)[..., :whole, :]


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
