"""The planted bug of chapter 3.1: causal linear attention in chunks that sees the future."""

import torch
from torch import Tensor

from attnlib.exercises.answers import call, close, require, tensor_of
from attnlib.exercises.exact_and_cached_programs import random
from attnlib.exercises.feature_maps_programs import dense
from attnlib.exercises.registry import checker, mutant, solution


@checker("3.1.6")
def chunks_without_the_bug(answer) -> str:
    """The repaired program: causal linear attention, `chunk` tokens at a time."""
    inputs = [x.exp() for x in random(317, (2, 12, 4), (2, 12, 4))]
    value = random(318, (2, 12, 3))[0]
    read = {chunk: tensor_of(call(answer, *inputs, value, chunk), (2, 12, 3)) for chunk in (1, 4)}
    right = dense(*inputs, value)
    _as_printed(read[4], *inputs, value)
    require(
        not close(read[4], _local(*inputs, value)),
        "nothing of the chunks before is read any more: queries times the state is needed too",
    )
    wrong = [row for row in range(12) if not close(read[4][:, row], right[:, row])]
    first = wrong[0] if wrong else 12
    require(first >= 4, f"row {first} is wrong, and it lies in the first chunk")
    require(first == 12, f"row {first} is wrong, and the first chunk is right")
    require(close(read[1], right), "right in chunks of 4, wrong one token at a time")
    whole = tensor_of(call(answer, *inputs, value, 12), (2, 12, 3))
    require(close(whole, right), "right in chunks of 4, wrong in a single chunk")
    ragged = tensor_of(call(answer, *inputs, value, 5), (2, 12, 3))
    require(close(ragged, right), "right in chunks of 4, wrong where the last chunk is shorter")
    last = value.clone()
    last[:, -1] += 1
    moved = call(answer, *inputs, last, 4)
    require(close(moved[:, :-1], read[4][:, :-1]), "the last value still reaches earlier rows")
    return "Equal to the table of weights for every chunk, and no row sees its future."


def _as_printed(read: Tensor, phi_q: Tensor, phi_k: Tensor, value: Tensor) -> None:
    require(
        not close(read, written_too_early(phi_q, phi_k, value, 4)),
        "that is the program as printed: change one key of the last chunk, and see which rows move",
    )
    require(
        not close(read, no_inside(phi_q, phi_k, value, 4)),
        "now rows see all keys of their own chunk, later ones too: the state must not hold the "
        "chunk that is being read",
    )
    require(
        not close(read, strictly_before(phi_q, phi_k, value, 4)),
        "own keys are counted once, but the state still holds the whole chunk with its future",
    )


def _local(phi_q: Tensor, phi_k: Tensor, value: Tensor) -> Tensor:
    """Reads of the own chunk alone, chunks of 4."""
    parts = zip(phi_q.split(4, -2), phi_k.split(4, -2), value.split(4, -2), strict=True)
    return torch.cat([dense(*part) for part in parts], dim=-2)


def _in_chunks(
    phi_q, phi_k, value, chunk, early=False, inside=0, total_late=False, carries=True, forgets=False
):
    """Causal linear attention in chunks, with what a mutant may change."""
    state = phi_k.new_zeros(*phi_k.shape[:-2], phi_k.shape[-1], value.shape[-1])
    total = torch.zeros_like(phi_k[..., :1, :])
    reads = []
    parts = zip(phi_q.split(chunk, -2), phi_k.split(chunk, -2), value.split(chunk, -2), strict=True)
    for q, k, v in parts:
        after = state + k.mT @ v, total + k.sum(-2, keepdim=True)
        seen = after if early else (state, after[1] if total_late else total)
        weights = (q @ k.mT).tril(inside) if inside is not None else torch.zeros_like(q @ k.mT)
        read = q @ seen[0] + weights @ v
        reads.append(read / (q @ seen[1].mT + weights.sum(-1, keepdim=True)))
        state, total = after if carries else (state, total)
        if forgets:
            state, total = k.mT @ v, k.sum(-2, keepdim=True)
    return torch.cat(reads, dim=-2)


@solution("3.1.6")
def causal_in_chunks(phi_q, phi_k, value, chunk):
    return _in_chunks(phi_q, phi_k, value, chunk)


@mutant("3.1.6", "the program as printed")
def written_too_early(phi_q, phi_k, value, chunk):
    return _in_chunks(phi_q, phi_k, value, chunk, early=True)


@mutant("3.1.6", "that is being read")
def no_inside(phi_q, phi_k, value, chunk):
    return _in_chunks(phi_q, phi_k, value, chunk, early=True, inside=None)


@mutant("3.1.6", "with its future")
def strictly_before(phi_q, phi_k, value, chunk):
    return _in_chunks(phi_q, phi_k, value, chunk, early=True, inside=-1)


@mutant("3.1.6", "of the chunks before")
def state_never_written(phi_q, phi_k, value, chunk):
    return _in_chunks(phi_q, phi_k, value, chunk, carries=False)


@mutant("3.1.6", "it lies in the first chunk")
def total_written_early(phi_q, phi_k, value, chunk):
    return _in_chunks(phi_q, phi_k, value, chunk, total_late=True)


@mutant("3.1.6", "the first chunk is right")
def only_the_chunk_before(phi_q, phi_k, value, chunk):
    return _in_chunks(phi_q, phi_k, value, chunk, forgets=True)


@mutant("3.1.6", "wrong where the last chunk is shorter")
def shorter_chunk_reads_zero(phi_q, phi_k, value, chunk):
    read = _in_chunks(phi_q, phi_k, value, chunk)
    whole = value.shape[-2] // chunk * chunk
    read[..., whole:, :] = 0.0
    return read
