"""Messages between the processes of a group, counted where they are sent."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from attnlib.memory.partial_read import PartialRead


@dataclass
class Traffic:
    """What this process sent: hand an empty one to an exchange, and it is filled.

    `rounds` are the steps of the exchange that this process took part in, one after the other;
    `messages` and `bytes` are those that it sent. The cards by which processes check each other's
    shapes beforehand are not counted: they carry no keys, values or reads.
    """

    rounds: int = 0
    messages: int = 0
    bytes: int = 0


def exchange(
    outgoing: Tensor | None,
    to: int,
    incoming: Tensor | None,
    source: int,
    group: dist.ProcessGroup | None,
    traffic: Traffic,
) -> Tensor | None:
    """One round: send `outgoing` to process `to` while `incoming` is filled by process `source`.

    None in place of a tensor sends nothing, or waits for nothing. Raises ConnectionError where the
    other process is gone or silent for longer than the time limit of the group.
    """
    with naming_the_loss(f"its exchange, to process {to} and from process {source}", group):
        works = []
        if outgoing is not None:
            works.append(dist.isend(outgoing, member(to, group), group=group))
            traffic.messages += 1
            traffic.bytes += outgoing.numel() * outgoing.element_size()
        if incoming is not None:
            works.append(dist.irecv(incoming, member(source, group), group=group))
        for work in works:
            work.wait()
    traffic.rounds += 1
    return incoming


def member(rank: int, group: dist.ProcessGroup | None) -> int:
    """The number among all processes of the process that has number `rank` in the group."""
    return rank if group is None else dist.get_global_rank(group, rank)


@contextmanager
def naming_the_loss(what: str, group: dist.ProcessGroup | None) -> Iterator[None]:
    """Turn the errors of the network into one that says which process waited for what."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(
            f"process {dist.get_rank(group)} of {dist.get_world_size(group)} lost {what}: "
            f"another ended early, or was silent for longer than the time limit ({error})"
        ) from error


def packed(part: PartialRead) -> Float[Tensor, "*batch N E_plus_2"]:
    """A part as one message: maximum, total and read side by side, E + 2 numbers a query."""
    return torch.cat(part, dim=-1)


def unpacked(message: Float[Tensor, "*batch N E_plus_2"]) -> PartialRead:
    """The part of a message."""
    return PartialRead(message[..., :1], message[..., 1:2], message[..., 2:])
