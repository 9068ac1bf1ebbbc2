"""One query, keys on many machines: three ways to read them all.

Each process holds a shard of the keys and values; the query of the decoding step is the same
everywhere, and so is the read in the end. The functions differ in what travels, and along what.

| function | travels | rounds | numbers sent by a process |
| --- | --- | --- | --- |
| `tree_decode` | the unfinished read | ceil(log2 p) | ceil(log2 p) N H (E + 2) |
| `chain_decode` | the unfinished read | p - 1 | (p - 1) N H (E + 2) |
| `ring_decode` | keys and values | p - 1 | (p - 1) (M / p) Hkv (D + E) |

For p processes, N queries, M keys in all, H query heads and Hkv key heads. Where p is not a power
of two, the tree takes one round more, to hand the whole to those that it could not pair.
"""

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from attnlib.distributed.cards import decoding_cards
from attnlib.distributed.messages import Traffic, exchange, naming_the_loss, packed, unpacked
from attnlib.memory.partial_read import PartialRead, empty_read, finish, finite, merge, partial_read
from attnlib.read.heads import repeat_key_heads
from attnlib.score.compare import dot_product


def tree_decode(
    query: Float[Tensor, "*heads N D"],
    key_shard: Float[Tensor, "*key_heads M D"],
    value_shard: Float[Tensor, "*key_heads M E"],
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    group: dist.ProcessGroup | None = None,
    traffic: Traffic | None = None,
) -> Float[Tensor, "*heads N E"]:
    r"""The read of all shards, by recursive doubling: parts are swapped and merged in a tree.

    In round r every process swaps its part with the process whose number differs in bit r, and
    both merge: after round r a part covers 2^(r+1) shards. With p = 2^a + b processes, the last b
    first hand their part to one of the first b, and get the whole back in the end. All processes
    merge the same pairs, so all of them hold the same read to the last bit.

    Shapes: as in `attend`, M being the number of keys of this process (0 too). The query must be
    the same everywhere. Half precision is accumulated in float32, and parts travel so.
    Cost for each process: time N M (D + E), then a = floor(log2 p) rounds (a + 2 where b > 0), one
    part of N heads (E + 2) numbers each.
    Raises ValueError, the same in all processes, where what they hold does not fit together, and
    ConnectionError where a process is lost.
    Source: Shyam et al. (2024), algorithm 3, there with three all-reductions (`all_reduce_decode`).
    """
    decoding_cards(query, key_shard, value_shard, scale, enable_gqa, group)
    traffic = Traffic() if traffic is None else traffic
    rank, processes = dist.get_rank(group), dist.get_world_size(group)
    paired = 2 ** (processes.bit_length() - 1)  # the largest power of two that is not above p
    alone = processes - paired
    part = shard_read(query, key_shard, value_shard, scale)

    if rank >= paired:
        send(part, rank - paired, group, traffic)
        part = receive(part, rank - paired, group, traffic)
    else:
        if rank < alone:
            part = merge(part, receive(part, rank + paired, group, traffic))
        for bit in range(paired.bit_length() - 1):
            part = merge(part, swap(part, rank ^ 2**bit, group, traffic))
        if rank < alone:
            send(part, rank + paired, group, traffic)
    return finish(part).to(query.dtype)


def all_reduce_decode(
    query: Float[Tensor, "*heads N D"],
    key_shard: Float[Tensor, "*key_heads M D"],
    value_shard: Float[Tensor, "*key_heads M E"],
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    group: dist.ProcessGroup | None = None,
) -> Float[Tensor, "*heads N E"]:
    r"""The read of all shards as the paper computes it: three all-reductions.

    With o the finished read of the shard and l its logsumexp: m = max of all l; then
    z = sum o e^{l - m} / sum e^{l - m}. How the numbers travel is the business of the library: an
    all-reduction along a ring sends 2 (p - 1) / p of its numbers from each process (eq. 12), in
    2 (p - 1) rounds; a tree takes about 2 log2 p. So nothing is counted here.

    Shapes and errors as in `tree_decode`.
    Source: Shyam et al. (2024), algorithm 3.
    """
    decoding_cards(query, key_shard, value_shard, scale, enable_gqa, group)
    part = shard_read(query, key_shard, value_shard, scale)
    read, log_total = finish(part), finite(part.max) + part.total.log()
    with naming_the_loss("the others in an all-reduction", group):
        highest = log_total.clone()
        dist.all_reduce(highest, dist.ReduceOp.MAX, group=group)
        total = torch.exp(log_total - finite(highest))
        numerator = read * total
        dist.all_reduce(numerator, dist.ReduceOp.SUM, group=group)
        dist.all_reduce(total, dist.ReduceOp.SUM, group=group)
    return finish(PartialRead(highest, total, numerator)).to(query.dtype)


def chain_decode(
    query: Float[Tensor, "*heads N D"],
    key_shard: Float[Tensor, "*key_heads M D"],
    value_shard: Float[Tensor, "*key_heads M E"],
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    group: dist.ProcessGroup | None = None,
    traffic: Traffic | None = None,
) -> Float[Tensor, "*heads N E"]:
    """The read of all shards, the parts handed around a ring: p - 1 rounds of one part each.

    The control between `ring_decode` and `tree_decode`: it sends as little a round as the tree and
    takes as many rounds as the ring. Shapes and errors as in `tree_decode`.
    """
    decoding_cards(query, key_shard, value_shard, scale, enable_gqa, group)
    traffic = Traffic() if traffic is None else traffic
    rank, processes = dist.get_rank(group), dist.get_world_size(group)
    after, before = (rank + 1) % processes, (rank - 1) % processes
    part = passing = shard_read(query, key_shard, value_shard, scale)
    for _ in range(processes - 1):
        message = packed(passing)
        passing = unpacked(
            exchange(message, after, torch.empty_like(message), before, group, traffic)
        )
        part = merge(part, passing)
    return finish(part).to(query.dtype)


def ring_decode(
    query: Float[Tensor, "*heads N D"],
    key_shard: Float[Tensor, "*key_heads M D"],
    value_shard: Float[Tensor, "*key_heads M E"],
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    group: dist.ProcessGroup | None = None,
    traffic: Traffic | None = None,
) -> Float[Tensor, "*heads N E"]:
    """The read of all shards, keys and values handed around a ring: ring attention for one query.

    In each of p - 1 rounds every process sends the block that it has to the next and reads the one
    that comes from the previous. Shapes and errors as in `tree_decode`; blocks travel in their own
    dtype. Cost for each process: time N p M (D + E), p - 1 rounds of M key heads (D + E) numbers.
    Source: the baseline of Shyam et al. (2024), section 6.3; their eq. 10 counts p blocks, of which
    a process has one already.
    """
    cards = decoding_cards(query, key_shard, value_shard, scale, enable_gqa, group)
    traffic = Traffic() if traffic is None else traffic
    rank, processes = dist.get_rank(group), dist.get_world_size(group)
    after, before = (rank + 1) % processes, (rank - 1) % processes
    widths = [key_shard.shape[-1], value_shard.shape[-1]]
    part = shard_read(query, key_shard, value_shard, scale)
    block = torch.cat((key_shard, value_shard), dim=-1)
    for step in range(1, processes):
        length = cards[(rank - step) % processes].key_length
        coming = block.new_empty(*block.shape[:-2], length, block.shape[-1])
        block = exchange(block, after, coming, before, group, traffic)
        key, value = block.split(widths, dim=-1)
        part = merge(part, shard_read(query, key, value, scale))
    return finish(part).to(query.dtype)


def shard_read(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> PartialRead:
    """The unfinished read of one shard; query heads share key heads where there are fewer."""
    dtype = torch.float32 if query.element_size() < 4 else query.dtype
    if key.shape[-2] == 0:
        return empty_read(query.to(dtype), value.shape[-1])
    key, value = repeat_key_heads(query, key, value)
    return partial_read(dot_product(query.to(dtype), key.to(dtype), scale), value.to(dtype))


def swap(part: PartialRead, partner: int, group, traffic: Traffic) -> PartialRead:
    """The part of the partner, while it gets ours."""
    message = packed(part)
    return unpacked(exchange(message, partner, torch.empty_like(message), partner, group, traffic))


def send(part: PartialRead, to: int, group, traffic: Traffic) -> None:
    """Hand our part to another process."""
    exchange(packed(part), to, None, to, group, traffic)


def receive(part: PartialRead, source: int, group, traffic: Traffic) -> PartialRead:
    """The part that another process hands us, of the shape of ours."""
    return unpacked(exchange(None, source, torch.empty_like(packed(part)), source, group, traffic))
