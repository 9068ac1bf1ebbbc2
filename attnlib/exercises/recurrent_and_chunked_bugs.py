"""The puzzle of chapter 3.2: a property that exposes five bugs of a memory that is handed over."""

import torch
from torch import Tensor

from attnlib.exercises.answers import call, require
from attnlib.exercises.registry import checker, mutant, solution


@checker("3.2.6")
def property_that_exposes_memory_bugs(answer) -> str:
    """A function step -> bool: True for right memories, False for five that are wrong."""
    for name, step in RIGHT_STEPS.items():
        require(_verdict(answer, step), f"your property rejects a right memory: {name}")
    for name, step in BUGS.items():
        require(not _verdict(answer, step), f"your property accepts a memory with a bug: {name}")
    return "Two right memories pass, five bugs do not."


def _verdict(answer, step) -> bool:
    def unnamed(state, query, key, value, log_decay):
        return step(state, query, key, value, log_decay)

    verdict = call(answer, unnamed)
    if isinstance(verdict, Tensor) and verdict.numel() == 1:
        verdict = verdict.item()
    require(isinstance(verdict, bool), f"return True or False, got {type(verdict).__name__}")
    return verdict


def _written(state, key, value, log_decay):
    faded = 0.0 if state is None else log_decay.exp()[..., None, None] * state
    return faded + key[..., :, None] * value[..., None, :]


def _read(state, query):
    return (query[..., None, :] @ state)[..., 0, :]


def _right(state, query, key, value, log_decay):
    state = _written(state, key, value, log_decay)
    return _read(state, query), state


def _in_another_order(state, query, key, value, log_decay):
    """The same sums, added up as a read of the old state and the token's own value."""
    own = (query * key).sum(-1, keepdim=True) * value
    old = 0.0 if state is None else _read(log_decay.exp()[..., None, None] * state, query)
    return old + own, _written(state, key, value, log_decay)


def _stale(state, query, key, value, log_decay):
    read = 0 * value if state is None else _read(log_decay.exp()[..., None, None] * state, query)
    return read, _written(state, key, value, log_decay)


def _decay_behind_the_write(state, query, key, value, log_decay):
    old = 0.0 if state is None else state
    state = log_decay.exp()[..., None, None] * (old + key[..., :, None] * value[..., None, :])
    return _read(state, query), state


def _decay_of_the_first_head(state, query, key, value, log_decay):
    return _right(state, query, key, value, log_decay[..., :1].expand_as(log_decay))


def _overwrites_what_it_got(state, query, key, value, log_decay):
    new = _written(state, key, value, log_decay)
    if state is not None:
        state.copy_(new)
        new = state
    return _read(new, query), new


def _keeps_bfloat16(state, query, key, value, log_decay):
    new = _written(state, key, value, log_decay).bfloat16().to(value.dtype)
    return _read(new, query), new


RIGHT_STEPS = {
    "the plain one": _right,
    "one that adds in another order (compare with a tolerance, not exactly)": _in_another_order,
}
BUGS = {
    "it reads before it writes, so a token does not see itself": _stale,
    "it fades behind the write, so each write is one decay too old": _decay_behind_the_write,
    "all heads fade with the decay of the first": _decay_of_the_first_head,
    "it changes the state that it was given, so nobody can go back to it": _overwrites_what_it_got,
    "it rounds its state to bfloat16, and small writes are lost": _keeps_bfloat16,
}


@solution("3.2.6")
def two_tokens_tell(step) -> bool:
    """A large write, a small one behind it: the read is their faded sum; the old state stays."""
    one = torch.ones(2, 1, dtype=torch.float64)
    none, half = torch.zeros(2, dtype=torch.float64), torch.tensor([0.5, 0.25]).double().log()
    first, state = step(None, one, one, 1000 * one, none)
    before = state.clone()
    second, _ = step(state, one, one, one, half)
    wanted = torch.tensor([[501.0], [251.0]]).double()
    reads = torch.allclose(first, 1000 * one) and torch.allclose(second, wanted)
    return reads and torch.equal(before, state)


def _streamed(step, length=5, decay=0.3):
    """What a memory reads and what it should read, on random tokens."""
    generator = torch.Generator().manual_seed(326)
    tokens = torch.randn(length, 3, 2, 4, generator=generator).double()
    log_decay = -decay * torch.rand(length, 2, generator=generator).double()
    state, right, reads, wanted = None, None, [], []
    for (query, key, value), fade in zip(tokens, log_decay, strict=True):
        read, state = step(state, query, key, value, fade)
        good, right = _right(right, query, key, value, fade)
        reads.append(read)
        wanted.append(good)
    return torch.stack(reads), torch.stack(wanted)


@mutant("3.2.6", "rejects a right memory: the plain one")
def always_false(step):
    return False


@mutant("3.2.6", "with a tolerance")
def exactly_equal(step):
    return torch.equal(*_streamed(step))


@mutant("3.2.6", "reads before it writes")
def finite_reads(step):
    return _streamed(step)[0].isfinite().all().item()


@mutant("3.2.6", "fades behind the write")
def nothing_fades(step):
    reads, wanted = _streamed(step, decay=0.0)
    return torch.allclose(reads, wanted)


@mutant("3.2.6", "the decay of the first")
def first_head_alone(step):
    reads, wanted = _streamed(step)
    return torch.allclose(reads[:, 0], wanted[:, 0])


@mutant("3.2.6", "nobody can go back")
def only_reads(step):
    return torch.allclose(*_streamed(step))


@mutant("3.2.6", "bfloat16")
def loose(step):
    one, none = torch.ones(2, 1).double(), torch.zeros(2).double()
    _, state = step(None, one, one, one, none)
    before = state.clone()
    reads, wanted = _streamed(step, decay=3.0)
    step(state, one, one, one, none)
    return torch.allclose(reads, wanted, atol=0.05) and torch.equal(before, state)


@mutant("3.2.6", "return True or False, got Tensor")
def not_a_bool(step):
    reads, wanted = _streamed(step)
    return reads == wanted
