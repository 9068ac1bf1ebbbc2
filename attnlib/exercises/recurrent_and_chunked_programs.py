"""The exercise of chapter 3.2 on linear attention with decay, in chunks."""

import torch
from torch import Tensor

from attnlib.counting import largest_tensor
from attnlib.exercises.answers import call, close, require, tensor_of
from attnlib.exercises.registry import checker, mutant, solution
from attnlib.memory.decayed_state import decayed_attention_dense


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
