"""Before anything travels, each process shows the others what it holds."""

import hashlib
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from attnlib.checks import check_attention, check_scale
from attnlib.distributed.messages import naming_the_loss


class Card(NamedTuple):
    """What a process holds: an error of its own, what all must have alike, and its lengths."""

    problem: str | None
    alike: dict[str, str]
    query_length: int
    key_length: int


def decoding_cards(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None, enable_gqa: bool, group
) -> list[Card]:
    """The cards of all processes of a decoding step: the whole query must be alike."""
    numbers = query.detach().contiguous().view(torch.uint8).cpu().numpy().tobytes()
    checksum = hashlib.sha256(numbers).hexdigest()[:8]
    alike = {
        "query": f"{query.dtype} {tuple(query.shape)} with checksum {checksum}",
        "key": kind(key),
        "value": kind(value),
        "scale": str(scale),
    }
    problem = own_problem(query, key, value, scale, enable_gqa)
    return show(Card(problem, alike, query.shape[-2], key.shape[-2]), group)


def sequence_cards(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None, is_causal: bool, group
) -> list[Card]:
    """The cards of all processes that share a sequence: everything but the lengths is alike."""
    alike = {
        "query": kind(query),
        "key": kind(key),
        "value": kind(value),
        "scale": str(scale),
        "is_causal": str(is_causal),
    }
    problem = own_problem(query, key, value, scale, enable_gqa=False)
    return show(Card(problem, alike, query.shape[-2], key.shape[-2]), group)


def show(card: Card, group: dist.ProcessGroup | None) -> list[Card]:
    """The cards of all processes, in the order of their numbers, once they are sure to fit.

    Raises the same ValueError in every process, so that none is left waiting for another.
    """
    cards: list[Card] = [card] * dist.get_world_size(group)
    with naming_the_loss("the others before the exchange, when all show what they hold", group):
        dist.all_gather_object(cards, card, group=group)
    for rank, other in enumerate(cards):
        if other.problem is not None:
            raise ValueError(f"in process {rank}: {other.problem}")
        for name, first in cards[0].alike.items():
            if other.alike[name] != first:
                raise ValueError(
                    f"{name} must be alike in all processes: "
                    f"process 0 has {first}, process {rank} has {other.alike[name]}"
                )
    return cards


def kind(tensor: Tensor) -> str:
    """The type and shape of a shard, whose length is its own affair."""
    return f"{tensor.dtype} {(*tensor.shape[:-2], 'any length', *tensor.shape[-1:])}"


def own_problem(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None, enable_gqa: bool
) -> str | None:
    """What is wrong with the tensors of this process, if anything."""
    try:
        check_attention(query, key, value, enable_gqa)
        check_scale(scale)
    except (TypeError, ValueError) as error:
        return str(error)
    return None
