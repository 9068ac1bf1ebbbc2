"""Checked exercises of chapter 6.1 that choose blocks: the weights of landmarks, and a gate."""

import torch
from torch import Tensor

from attnlib.exercises.answers import call, close, require, tensor_of
from attnlib.exercises.content_routing_programs import random
from attnlib.exercises.registry import checker, mutant, solution

# ---- 6.1.5 the grouped softmax of landmarks


@checker("6.1.5")
def landmark_weights(answer) -> str:
    """Each word: its softmax within the block, times its landmark's among the landmarks."""
    for count, size in ((3, 4), (1, 5), (4, 2), (2, 6)):
        scores = 2 * random(616 + count, (count * size,))[0]
        weights = tensor_of(call(answer, scores, size), (count * size,), "the weights")
        _name_weights(weights, scores, size)
    large = torch.tensor([900.0, 901.0, 5.0, 902.0, 900.0, 6.0]).double()
    weights = tensor_of(call(answer, large, 3), (6,), "the weights")
    require(
        weights.isfinite().all(),
        "scores of 900 give NaN or infinity: take a softmax, not a quotient of exponentials",
    )
    require(close(weights, grouped(large, 3)), "wrong for scores of 900")
    return "The landmarks share out the weight among blocks, the words share it within theirs."


def grouped(scores: Tensor, size: int) -> Tensor:
    """The right weights."""
    blocks = scores.view(-1, size)
    words, landmarks = blocks[:, :-1].softmax(-1), blocks[:, -1].softmax(0)
    return torch.cat((words * landmarks[:, None], torch.zeros_like(blocks[:, :1])), 1).flatten()


def _name_weights(weights: Tensor, scores: Tensor, size: int) -> None:
    right = grouped(scores, size)
    if close(weights, right):
        return
    where = f"{len(scores) // size} blocks of {size}"
    blocks = scores.view(-1, size)
    words, marks = blocks[:, :-1], blocks[:, -1].softmax(0)[:, None]
    zero = torch.zeros_like(marks)

    def laid_out(of_words: Tensor, of_marks: Tensor) -> Tensor:
        return torch.cat((of_words, of_marks), 1).flatten()

    for name, other in {
        "landmarks only open their block: their own weight must be zero": laid_out(
            words.softmax(-1) * marks, marks
        ),
        "this is one softmax over all places": scores.softmax(0),
        "this is one softmax over all words: no landmark has a say": laid_out(
            words.flatten().softmax(0).view_as(words), zero
        ),
        "the factor of the landmark is missing: each block sums to one": laid_out(
            words.softmax(-1), zero
        ),
        "the landmark takes part in the softmax of its block; there it is left out": laid_out(
            blocks.softmax(-1)[:, :-1] * marks, zero
        ),
        "the FIRST place of a block is taken for the landmark; it is the last": torch.cat(
            (zero, blocks[:, 1:].softmax(-1) * blocks[:, 0].softmax(0)[:, None]), 1
        ).flatten(),
        "the landmark's factor is a sigmoid; it is a softmax over the landmarks": laid_out(
            words.softmax(-1) * blocks[:, -1:].sigmoid(), zero
        ),
        "the softmax of the words runs over the blocks, not within one": laid_out(
            words.softmax(0) * marks, zero
        ),
    }.items():
        require(not close(weights, other), f"{where}: {name}")
    total = float(weights.sum())
    require(abs(total - 1) < 1e-6, f"{where}: the weights sum to {total:.4f}, not to one")
    require(False, f"{where}: wrong; a word's weight is softmax in its block times its landmark's")


solution("6.1.5")(grouped)


@mutant("6.1.5", "own weight must be zero")
def landmarks_read(scores, block_size):
    blocks = scores.view(-1, block_size)
    marks = blocks[:, -1:].softmax(0)
    return torch.cat((blocks[:, :-1].softmax(-1) * marks, marks), 1).flatten()


@mutant("6.1.5", "one softmax over all places")
def plain_softmax(scores, block_size):
    return scores.softmax(0)


@mutant("6.1.5", "no landmark has a say")
def words_alone(scores, block_size):
    blocks = scores.view(-1, block_size).clone()
    blocks[:, -1] = -torch.inf
    return blocks.flatten().softmax(0)


@mutant("6.1.5", "each block sums to one")
def no_landmark_factor(scores, block_size):
    blocks = scores.view(-1, block_size).clone()
    blocks[:, -1] = -torch.inf
    return blocks.softmax(-1).flatten()


@mutant("6.1.5", "there it is left out")
def landmark_in_its_block(scores, block_size):
    blocks = scores.view(-1, block_size)
    weights = blocks.softmax(-1) * blocks[:, -1:].softmax(0)
    weights[:, -1] = 0
    return weights.flatten()


@mutant("6.1.5", "it is the last")
def first_for_last(scores, block_size):
    return (
        grouped(scores.view(-1, block_size).flip(1).flatten(), block_size)
        .view(-1, block_size)
        .flip(1)
        .flatten()
    )


@mutant("6.1.5", "is a sigmoid")
def sigmoid_factor(scores, block_size):
    blocks = scores.view(-1, block_size)
    weights = blocks[:, :-1].softmax(-1) * blocks[:, -1:].sigmoid()
    return torch.cat((weights, torch.zeros_like(blocks[:, :1])), 1).flatten()


@mutant("6.1.5", "runs over the blocks")
def across_blocks(scores, block_size):
    blocks = scores.view(-1, block_size)
    weights = blocks[:, :-1].softmax(0) * blocks[:, -1:].softmax(0)
    return torch.cat((weights, torch.zeros_like(blocks[:, :1])), 1).flatten()


@mutant("6.1.5", "not a quotient of exponentials")
def exponentials(scores, block_size):
    blocks = scores.view(-1, block_size).exp()
    words, marks = blocks[:, :-1], blocks[:, -1:]
    weights = words / words.sum(1, keepdim=True) * marks / marks.sum()
    return torch.cat((weights, torch.zeros_like(marks)), 1).flatten()


# ---- 6.1.6 the blocks that a query takes


@checker("6.1.6")
def blocks_taken(answer) -> str:
    """bool (N, blocks): the own block, and the past blocks with the best mean keys."""
    for length, size, top_k in ((24, 4, 3), (16, 8, 1), (22, 4, 2), (15, 5, 3)):
        query, key = random(600 + length, (length, 4), (length, 4))
        blocks = -(-length // size)
        chosen = tensor_of(call(answer, query, key, size, top_k), (length, blocks), "the choice")
        require(chosen.dtype == torch.bool, f"the choice must be bool, got {chosen.dtype}")
        _name_choice(chosen, query, key, size, top_k)
    return "The own block is always read, so a gate decides about the past alone."


def taken(query, key, size, top_k, *, sign=1, shift=0, pool="mean") -> Tensor:
    """The right choice, and some wrong ones."""
    parts = key.split(size)
    gates = torch.stack([part.mean(0) if pool == "mean" else part.sum(0) for part in parts])
    if pool == "first":
        gates = torch.stack([part[0] for part in parts])
    own = (torch.arange(len(query)) // size)[:, None]
    block = torch.arange(len(parts))
    scores = (sign * query @ gates.T).masked_fill(block > own + shift, -torch.inf)
    scores = scores.masked_fill(block == own, torch.inf)
    best = scores.topk(min(top_k, len(parts)), dim=-1).indices
    return torch.zeros_like(scores).scatter(1, best, 1.0).bool() & (scores > -torch.inf)


def _name_choice(chosen, query, key, size, top_k) -> None:
    right = taken(query, key, size, top_k)
    if torch.equal(chosen, right):
        return
    where = f"{len(query)} tokens, blocks of {size}, top_k {top_k}"
    place, block = torch.arange(len(query)), torch.arange(right.shape[1])
    own = place // size
    late = chosen & (block > own[:, None])
    if late.any():
        i, b = late.nonzero()[0].tolist()
        require(False, f"{where}: query {i} takes block {b}, which lies in its future")
    missing = ~chosen[place, own]
    require(
        not missing.any(),
        f"{where}: query {int(missing.nonzero()[0, 0]) if missing.any() else 0} does not take its "
        "own block; it is always read, whatever its gate",
    )
    require(
        not torch.equal(chosen, taken(query, key, size, top_k + 1)),
        f"{where}: one block too many: top_k counts the own block",
    )
    require(
        not torch.equal(chosen, taken(query, key, size, top_k, sign=-1)),
        f"{where}: the past blocks with the SMALLEST gates are taken",
    )
    require(
        not torch.equal(chosen, taken(query, key, size, top_k, pool="first")),
        f"{where}: the gate is the first key of a block; it is their mean",
    )
    fewer = chosen.sum(1) < right.sum(1)
    require(
        not fewer.any(),
        f"{where}: query {int(fewer.nonzero()[0, 0]) if fewer.any() else 0} takes "
        f"{int(chosen.sum(1).min())} blocks, and more have begun",
    )
    means = torch.cat([part.mean(0, keepdim=True).expand_as(part) for part in query.split(size)])
    require(
        not torch.equal(chosen, taken(means, key, size, top_k)),
        f"{where}: the queries of a block choose together; each has its own choice",
    )
    row = int((chosen != right).any(1).nonzero()[0, 0])
    require(
        False,
        f"{where}: query {row} takes blocks {chosen[row].nonzero()[:, 0].tolist()}, expected "
        f"{right[row].nonzero()[:, 0].tolist()}",
    )


@solution("6.1.6")
def chosen_blocks(query, key, block_size, top_k):
    return taken(query, key, block_size, top_k)


@mutant("6.1.6", "lies in its future")
def no_order(query, key, block_size, top_k):
    gates = torch.stack([part.mean(0) for part in key.split(block_size)])
    scores = query @ gates.T
    best = scores.topk(min(top_k, len(gates)), dim=-1).indices
    return torch.zeros_like(scores).scatter(1, best, 1.0).bool()


@mutant("6.1.6", "it is always read")
def own_block_by_its_gate(query, key, block_size, top_k):
    gates = torch.stack([part.mean(0) for part in key.split(block_size)])
    own = (torch.arange(len(query)) // block_size)[:, None]
    scores = (query @ gates.T).masked_fill(torch.arange(len(gates)) > own, -torch.inf)
    best = scores.topk(min(top_k, len(gates)), dim=-1).indices
    return torch.zeros_like(scores).scatter(1, best, 1.0).bool() & (scores > -torch.inf)


@mutant("6.1.6", "counts the own block")
def own_block_not_counted(query, key, block_size, top_k):
    return taken(query, key, block_size, top_k + 1)


@mutant("6.1.6", "SMALLEST")
def smallest_gates(query, key, block_size, top_k):
    return taken(query, key, block_size, top_k, sign=-1)


@mutant("6.1.6", "it is their mean")
def first_keys(query, key, block_size, top_k):
    return taken(query, key, block_size, top_k, pool="first")


@mutant("6.1.6", "choose together")
def one_choice_a_block(query, key, block_size, top_k):
    means = [part.mean(0, keepdim=True).expand_as(part) for part in query.split(block_size)]
    return taken(torch.cat(means), key, block_size, top_k)


@mutant("6.1.6", "and more have begun")
def own_block_alone(query, key, block_size, top_k):
    return taken(query, key, block_size, 1)


@mutant("6.1.6", "must be bool")
def numbers_for_bools_of_blocks(query, key, block_size, top_k):
    return taken(query, key, block_size, top_k).long()


@mutant("6.1.6", "your function raised")
def whole_blocks_only(query, key, block_size, top_k):
    """Cuts the keys into equal blocks, which 22 keys are not."""
    key.view(-1, block_size, key.shape[1])
    return taken(query, key, block_size, top_k)
