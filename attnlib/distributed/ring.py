"""Ring attention: a long sequence split over processes, keys and values handed around a ring.

Each process keeps the queries of its stretch of the sequence. Blocks of keys and values travel;
as each one comes by, it is folded into the unfinished read. In the backward pass the blocks travel
once more, and the gradients of their keys and values with them, until they are home again.
"""

from itertools import accumulate
from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from attnlib.distributed.cards import sequence_cards
from attnlib.distributed.messages import Traffic, exchange
from attnlib.memory.partial_read import empty_read, finish, finite, merge, partial_read


def ring_attention(
    query_shard: Float[Tensor, "*heads N D"],
    key_shard: Float[Tensor, "*heads M D"],
    value_shard: Float[Tensor, "*heads M E"],
    *,
    is_causal: bool = False,
    scale: float | None = None,
    group: dist.ProcessGroup | None = None,
    traffic: Traffic | None = None,
) -> Float[Tensor, "*heads N E"]:
    r"""The rows of `attend` for the queries of this process, over the keys of all processes.

    Process r holds the r-th stretch of the sequence; stretches may differ in length. With
    `is_causal` positions count through all stretches. Differentiable once: every process must then
    call backward, since gradients travel too. `traffic` is filled in both directions.

    Cost for each process: time N p M (D + E) in either direction. Forward p - 1 rounds of
    M heads (D + E) numbers; backward p - 1 rounds of twice as much (gradients beside the blocks)
    and one of M heads (D + E), which brings the gradients home. Memory for a block, never for all.
    Half precision is computed, and travels, in float32.
    Rounds are not overlapped with the computation here, as the paper does to hide them.
    Raises ValueError, the same in all processes, where what they hold does not fit together, and
    ConnectionError where a process is lost.
    Source: Liu, Zaharia and Abbeel (2024), section 3 and algorithm 1.
    """
    cards = sequence_cards(query_shard, key_shard, value_shard, scale, is_causal, group)
    ring = Ring(
        rank=dist.get_rank(group),
        query_starts=[0, *accumulate(card.query_length for card in cards)],
        key_starts=[0, *accumulate(card.key_length for card in cards)],
        is_causal=is_causal,
        scale=query_shard.shape[-1] ** -0.5 if scale is None else scale,
        group=group,
        traffic=Traffic() if traffic is None else traffic,
    )
    dtype = torch.float32 if query_shard.element_size() < 4 else query_shard.dtype
    shards = (shard.to(dtype) for shard in (query_shard, key_shard, value_shard))
    return RingAttention.apply(*shards, ring).to(query_shard.dtype)


class Ring(NamedTuple):
    """The place of a process in the ring, and where each stretch begins in the sequence."""

    rank: int
    query_starts: list[int]
    key_starts: list[int]
    is_causal: bool
    scale: float
    group: dist.ProcessGroup | None
    traffic: Traffic

    @property
    def processes(self) -> int:
        """How many processes form the ring."""
        return len(self.key_starts) - 1

    def owner(self, step: int) -> int:
        """Whose block is here after `step` rounds."""
        return (self.rank - step) % self.processes

    def scores(self, query: Tensor, key: Tensor, owner: int) -> Tensor:
        """Scores of our queries with the keys of `owner`; minus infinity for keys of the future."""
        scores = (query * self.scale) @ key.mT
        if not self.is_causal:
            return scores
        rows = torch.arange(query.shape[-2], device=key.device) + self.query_starts[self.rank]
        columns = torch.arange(key.shape[-2], device=key.device) + self.key_starts[owner]
        return scores.masked_fill(columns > rows[:, None], -torch.inf)

    def pass_on(self, block: Tensor, step: int) -> Tensor:
        """Send our block to the next process; the block of the previous one, in round `step`."""
        owner = self.owner(step)
        length = self.key_starts[owner + 1] - self.key_starts[owner]
        coming = block.new_empty(*block.shape[:-2], length, block.shape[-1])
        after, before = (self.rank + 1) % self.processes, (self.rank - 1) % self.processes
        return exchange(block, after, coming, before, self.group, self.traffic)


class RingAttention(torch.autograd.Function):
    """Both directions of ring attention."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, ring: Ring) -> Tensor:
        """Fold each block that comes by into the unfinished read."""
        widths = [key.shape[-1], value.shape[-1]]
        part = empty_read(query, value.shape[-1])
        block = torch.cat((key, value), dim=-1)
        for step in range(ring.processes):
            if step > 0:
                block = ring.pass_on(block, step)
            if block.shape[-2] > 0:
                its_key, its_value = block.split(widths, dim=-1)
                scores = ring.scores(query, its_key, ring.owner(step))
                part = merge(part, partial_read(scores, its_value))
        read = finish(part)
        log_total = finite(part.max) + part.total.masked_fill(part.total == 0, 1).log()
        ctx.save_for_backward(query, key, value, read, log_total)
        ctx.ring = ring
        return read

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Blocks travel once more, with the gradients that they have gathered so far."""
        query, key, value, read, log_total = ctx.saved_tensors
        ring, widths = ctx.ring, [key.shape[-1], value.shape[-1]]
        own = (grad * read).sum(-1, keepdim=True)
        grad_query = torch.zeros_like(query)
        block = torch.cat((key, value), dim=-1)
        gathered = torch.zeros_like(block)
        for step in range(ring.processes):
            if step > 0:
                both = ring.pass_on(torch.cat((block, gathered), dim=-1), step)
                block, gathered = both.chunk(2, dim=-1)
            its_key, its_value = block.split(widths, dim=-1)
            weights = torch.exp(ring.scores(query, its_key, ring.owner(step)) - log_total)
            grad_scores = weights * (grad @ its_value.mT - own) * ring.scale
            grad_query += grad_scores @ its_key
            grads = torch.cat((grad_scores.mT @ query, weights.mT @ grad), dim=-1)
            gathered = gathered + grads
        if ring.processes > 1:
            gathered = ring.pass_on(gathered, ring.processes)  # home
        return grad_query, *gathered.split(widths, dim=-1), None
