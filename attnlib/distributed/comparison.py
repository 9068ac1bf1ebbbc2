"""The same read over many processes in every way of the package, checked against one process."""

import time
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from attnlib.attend import attend
from attnlib.distributed.decoding import all_reduce_decode, chain_decode, ring_decode, tree_decode
from attnlib.distributed.messages import Traffic
from attnlib.distributed.ring import ring_attention
from attnlib.memory.tree import shard_slices


def compare(keys: int, heads: int, key_heads: int, dim: int, sequence: int, seed: int) -> list:
    """Decoding over `keys` keys in four ways, and ring attention over a sequence, both directions.

    Every process draws the same numbers and keeps its shard; a row for each method holds the
    largest difference of any process from `attend` on one, and the traffic of the busiest process.
    """
    return [
        *compare_decoding(keys, heads, key_heads, dim, seed),
        *compare_sequence(sequence, heads, dim, seed),
    ]


def compare_decoding(keys: int, heads: int, key_heads: int, dim: int, seed: int) -> list[dict]:
    """One query over all keys: tree, chain, ring, and the all-reductions of the library."""
    query, key, value = draw(seed, (heads, 1, dim), (key_heads, keys, dim), (key_heads, keys, dim))
    mine = shard_slices(keys, dist.get_world_size())[dist.get_rank()]
    shards = (query, key[:, mine], value[:, mine])
    expected = attend(query, key, value, enable_gqa=True)
    rows = []
    for decode in (tree_decode, chain_decode, ring_decode):
        traffic = Traffic()
        call = partial(decode, *shards, enable_gqa=True, traffic=traffic)
        rows.append(measured(decode.__name__, call, expected, traffic))
    call = partial(all_reduce_decode, *shards, enable_gqa=True)
    rows.append(measured("all_reduce_decode", call, expected, None))
    return rows


def compare_sequence(sequence: int, heads: int, dim: int, seed: int) -> list[dict]:
    """Causal ring attention over a sequence: its read, and the gradients of a sum of squares."""
    whole = [x.requires_grad_() for x in draw(seed, *[(heads, sequence, dim)] * 3)]
    expected = attend(*whole, is_causal=True)
    gradients = torch.autograd.grad(expected.square().sum(), whole)
    mine = shard_slices(sequence, dist.get_world_size())[dist.get_rank()]
    shards = [x.detach()[:, mine].requires_grad_() for x in whole]

    traffic, back = Traffic(), Traffic()
    call = partial(ring_attention, *shards, is_causal=True, traffic=traffic)
    rows = [measured("ring_attention", call, expected.detach()[:, mine], traffic)]
    read = ring_attention(*shards, is_causal=True, traffic=back)
    back.rounds = back.messages = back.bytes = 0  # what follows is the way back alone

    def backward() -> Tensor:
        return torch.cat(torch.autograd.grad(read.square().sum(), shards), dim=-1)

    pieces = torch.cat([gradient[:, mine] for gradient in gradients], dim=-1)
    return [*rows, measured("ring_attention, backward", backward, pieces, back)]


def draw(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    """The same normal numbers in every process, in float64."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def measured(
    method: str, call: Callable[[], Tensor], expected: Tensor, traffic: Traffic | None
) -> dict:
    """A row of the comparison, the same in every process; traffic None was not counted."""
    began = time.perf_counter()
    read = call().detach()
    seconds = time.perf_counter() - began
    difference = (read - expected).abs().max().item() if read.numel() else 0.0
    counted = (0, 0, 0) if traffic is None else (traffic.rounds, traffic.messages, traffic.bytes)
    worst = torch.tensor([difference, seconds, *counted], dtype=torch.float64)
    dist.all_reduce(worst, dist.ReduceOp.MAX)
    difference, seconds, *counted = worst.tolist()
    rounds, messages, sent = (None, None, None) if traffic is None else map(int, counted)
    return {
        "method": method,
        "rounds": rounds,
        "messages": messages,
        "bytes": sent,
        "largest_difference": difference,
        "seconds": seconds,
    }
