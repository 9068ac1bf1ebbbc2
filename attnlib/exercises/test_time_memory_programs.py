"""The programs of chapter 7.2, memories that learn at test time."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attnlib.counting import largest_tensor
from attnlib.exercises.answers import call, close, require, tensor_of
from attnlib.exercises.registry import checker, mutant, solution
from attnlib.exercises.test_time_memory_steps import random

# ---- 7.2.4 TTT-linear in mini-batches


def batch_inputs(length: int, seed: int = 724) -> list[Tensor]:
    """query, unit key, value and one rate a token, for two heads."""
    query, key, value, rate = random(
        seed, (2, length, 4), (2, length, 4), (2, length, 3), (2, length)
    )
    return [query, key / key.norm(dim=-1, keepdim=True), value, 0.1 * rate.sigmoid()]


def _in_batches(
    query, key, value, rate, size, *, sees="own", carried="memory", rated="writer", anchor="batch"
):
    """The reads, and the ways in which they go wrong."""
    memory = 0.0 * key[..., :1, :].mT @ value[..., :1, :]
    parts = (x.split(size, -2) for x in (query, key, value, rate[..., None]))
    reads = []
    for q, k, v, step in zip(*parts, strict=True):
        error = v - k @ memory
        if anchor == "token":
            table = (step * (k @ k.mT)).tril(-1)
            error = (
                torch.linalg.solve_triangular(
                    torch.eye(len(k[0])).to(k) + table,
                    step * error,
                    upper=False,
                    unitriangular=True,
                )
                / step
            )
        if anchor == "zero":
            error = v
        scores = q @ k.mT
        scores = {"own": scores.tril(), "before": scores.tril(-1), "all": scores}[sees]
        write = {"writer": step * error, "reader": error, "none": error}[rated]
        read = scores @ write
        reads.append(q @ memory + (step * read if rated == "reader" else read))
        added = k.mT @ (error if rated == "none" else step * error)
        memory = {"memory": memory + added, "nothing": 0 * memory, "last": added}[carried]
    return torch.cat(reads, dim=-2)


BATCH_MISTAKES = {
    "each gradient is taken at the newest memory: that is the delta rule": {"anchor": "token"},
    "the memory is never asked: the error is v - k M at the start of the mini-batch": {
        "anchor": "zero"
    },
    "a token does not read its own write: keep the diagonal": {"sees": "before"},
    "a token sees later tokens of its mini-batch: keep the part on and below the diagonal": {
        "sees": "all"
    },
    "the mini-batches do not know of each other: hand the memory over": {"carried": "nothing"},
    "the memory holds the last mini-batch alone: add to it": {"carried": "last"},
    "the rate belongs to the token that writes, not to the one that reads": {"rated": "reader"},
    "the rate is missing": {"rated": "none"},
}


@checker("7.2.4")
def reads_in_mini_batches(answer) -> str:
    """o_t = q_t (M_0 + sum over s <= t of rate_s k_s e_s^T), e at the start of the mini-batch."""
    for length, size in ((12, 4), (14, 4), (9, 1), (10, 32)):
        inputs = batch_inputs(length)
        read = tensor_of(call(answer, *inputs, size), (2, length, 3), "the reads")
        right = _in_batches(*inputs, size)
        if close(read, right):
            continue
        where = f"{length} tokens in mini-batches of {size}"
        for name, mistake in BATCH_MISTAKES.items():
            require(not close(read, _in_batches(*inputs, size, **mistake)), f"{where}: {name}")
        require(
            not (close(read, right / 2) or close(read, 2 * right)),
            f"{where}: off by a factor 2: there is no scale and the loss is half the square",
        )
        first = int((read - right).abs().amax((0, 2)).gt(1e-9).nonzero()[0, 0])
        require(False, f"{where}: wrong from token {first} on")
    inputs = batch_inputs(512)
    most = largest_tensor(lambda: answer(*inputs, 16))
    require(
        most < 512 * 512,
        f"a tensor of {most} numbers is made: no table may be N x N",
    )
    calls = _products_in(answer, inputs, 64)
    require(
        calls < 200,
        f"512 tokens in mini-batches of 64 take {calls} products: no loop over single tokens",
    )
    return "Right for full and for shorter mini-batches, for one token and for all."


class Products(TorchDispatchMode):
    """Counts the products of tensors in its block."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += any(word in str(function) for word in ("mm", "mul", "dot"))
        return function(*args, **(kwargs or {}))


def _products_in(answer, inputs: list[Tensor], size: int) -> int:
    """How many products of tensors a call takes."""
    with Products() as products:
        answer(*inputs, size)
    return products.count


@solution("7.2.4")
def mini_batch_reads(query, key, value, rate, size):
    return _in_batches(query, key, value, rate, size)


for _says, _mistake in (
    ("that is the delta rule", {"anchor": "token"}),
    ("the memory is never asked", {"anchor": "zero"}),
    ("keep the diagonal", {"sees": "before"}),
    ("on and below the diagonal", {"sees": "all"}),
    ("hand the memory over", {"carried": "nothing"}),
    ("the last mini-batch alone", {"carried": "last"}),
    ("not to the one that reads", {"rated": "reader"}),
    ("the rate is missing", {"rated": "none"}),
):
    mutant("7.2.4", _says, f"{next(iter(_mistake))} {next(iter(_mistake.values()))}")(
        lambda *given, _mistake=_mistake: _in_batches(*given, **_mistake)
    )


@mutant("7.2.4", "no loop over single tokens")
def token_by_token(query, key, value, rate, size):
    memory = 0.0 * key[..., :1, :].mT @ value[..., :1, :]
    reads = []
    for t in range(key.shape[-2]):
        row = slice(t, t + 1)
        if t % size == 0:
            anchor = memory
        error = value[..., row, :] - key[..., row, :] @ anchor
        memory = memory + rate[..., row, None] * key[..., row, :].mT @ error
        reads.append(query[..., row, :] @ memory)
    return torch.cat(reads, dim=-2)


@mutant("7.2.4", "no table may be N x N")
def with_a_whole_table(query, key, value, rate, size):
    _ = query @ key.mT
    return _in_batches(query, key, value, rate, size)


# ---- 7.2.5 a robust step


def _huber(memory, key, value, rate, delta, *, kind="norm"):
    """A step along the slope of Huber's loss, and other slopes."""
    error = key @ memory - value
    length = error.norm()
    slope = {
        "norm": error * (delta / length.clamp(min=delta)),
        "squared": error,
        "coordinates": error.clamp(-delta, delta),
        "unit": error / length.clamp(min=1e-12),
        "always delta": delta * error / length.clamp(min=1e-12),
        "no delta": torch.where(length > delta, error / length.clamp(min=1e-12), error),
        "uphill": -error * (delta / length.clamp(min=delta)),
        "inside out": torch.where(length < delta, delta * error / length.clamp(min=1e-12), error),
        "double": 2 * error * (delta / length.clamp(min=delta)),
        "forgotten": torch.where(length > delta, 0 * error, error),
    }[kind]
    return memory - rate * torch.outer(key, slope)


@checker("7.2.5")
def a_robust_step(answer) -> str:
    """M - rate k (e min(1, delta / |e|))^T: errors count up to a length of delta."""
    memory, key, value = random(725, (4, 3), (4,), (3,))
    error = (key @ memory - value).norm().item()
    kinds = {
        "squared": "the whole error is written, however long: beyond delta the slope has length "
        "delta",
        "coordinates": "each coordinate is cut at delta; here the length of the error is",
        "always delta": "a short error is made longer: below delta the slope is the error itself",
        "no delta": "beyond delta the slope has length delta, not one",
        "unit": "the error is made a unit vector, also when it is short",
        "uphill": "the sign: the memory walks against the slope",
        "double": "twice too long: the loss is half the square",
        "forgotten": "a long error writes nothing: it still writes, up to a length of delta",
    }
    for share in (2.5, 0.4):  # delta above the error, and below it
        delta = share * error
        new = tensor_of(call(answer, memory, key, value, 0.3, delta), (4, 3), "the memory")
        if close(new, _huber(memory, key, value, 0.3, delta)):
            continue
        where = "a long error" if share < 1 else "a short error"
        for kind, message in kinds.items():
            wrong = _huber(memory, key, value, 0.3, delta, kind=kind)
            require(not close(new, wrong), f"{where}: {message}")
        require(
            not close(new, _huber(memory, key, value, 1.0, delta)), f"{where}: the rate is missing"
        )
        require(False, f"{where}: wrong; write rate times k times the slope's transpose")
    known = key @ memory
    new = tensor_of(call(answer, memory, key, known, 0.3, 0.5), (4, 3), "the memory")
    require(
        new.isfinite().all(),
        "an error of length zero gives NaN: keep the divisor away from zero",
    )
    require(close(new, memory), "a pair that is known already must change nothing")
    return "Long errors are cut, short ones are not, and no error at all changes nothing."


@solution("7.2.5")
def robust_step(memory, key, value, rate, delta):
    return _huber(memory, key, value, rate, delta)


for _kind, _says in (
    ("squared", "the whole error is written"),
    ("coordinates", "each coordinate is cut"),
    ("unit", "made a unit vector"),
    ("always delta", "a short error is made longer"),
    ("no delta", "not one"),
    ("uphill", "against the slope"),
    ("inside out", "a short error is made longer"),
    ("double", "twice too long"),
    ("forgotten", "a long error writes nothing"),
):
    mutant("7.2.5", _says, _kind)(lambda *given, _kind=_kind: _huber(*given, kind=_kind))


@mutant("7.2.5", "the rate is missing")
def without_rate(memory, key, value, rate, delta):
    return _huber(memory, key, value, 1.0, delta)


@mutant("7.2.5", "keep the divisor away from zero")
def divides_by_zero(memory, key, value, rate, delta):
    error = key @ memory - value
    slope = error * torch.minimum(error.norm(), torch.tensor(delta)) / error.norm()
    return memory - rate * torch.outer(key, slope)
