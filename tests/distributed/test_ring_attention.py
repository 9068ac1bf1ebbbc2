"""Ring attention over processes: rows and gradients of one process, blocks counted both ways."""

import pytest
import torch
import torch.distributed as dist
from several_processes import in_processes

from attnlib import attend
from attnlib.distributed import Traffic, ring_attention
from attnlib.memory.tree import shard_slices

pytestmark = pytest.mark.processes

HEADS, DIM, WIDTH = 2, 6, 5
CASES = [(1, 15), (2, 63), (3, 100), (4, 63), (8, 100), (4, 3)]


def draw(length):
    generator = torch.Generator().manual_seed(length)
    shapes = [(2, HEADS, length, width) for width in (DIM, DIM, WIDTH)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def loss(read):
    """A sum that weighs every number of the read differently from its neighbors."""
    return (read.square() + 3 * read).sum()


def both_ways(rank, length, is_causal):
    """The read and the gradients of this process, and its traffic there and there and back."""
    mine = shard_slices(length, dist.get_world_size())[rank]
    shards = [x[..., mine, :].clone().requires_grad_() for x in draw(length)]
    traffic = Traffic()
    read = ring_attention(*shards, is_causal=is_causal, traffic=traffic)
    there = dict(vars(traffic))
    gradients = torch.autograd.grad(loss(read), shards)
    return [x.detach().numpy() for x in (read, *gradients)], there, vars(traffic)


@pytest.fixture(scope="module")
def found():
    kept = {}

    def of(processes, length, is_causal):
        at = (processes, length, is_causal)
        if at not in kept:
            kept[at] = in_processes(processes, both_ways, length, is_causal)
        for answer in kept[at]:
            assert not isinstance(answer, Exception), answer
        return kept[at]

    return of


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("processes", "length"), CASES)
def test_reads_and_gradients_are_those_of_one_process(found, processes, length, is_causal):
    inputs = [x.requires_grad_() for x in draw(length)]
    read = attend(*inputs, is_causal=is_causal)
    expected = [read, *torch.autograd.grad(loss(read), inputs)]
    for answer, mine in zip(
        found(processes, length, is_causal), shard_slices(length, processes), strict=True
    ):
        for name, got, whole in zip(
            ("read", "query", "key", "value"), answer[0], expected, strict=True
        ):
            piece = whole[..., mine, :].detach()
            assert torch.allclose(torch.from_numpy(got), piece, rtol=1e-12, atol=1e-12), name


@pytest.mark.parametrize(("processes", "length"), CASES)
def test_a_ring_sends_p_minus_one_blocks_there_and_their_gradients_too_on_the_way_back(
    found, processes, length
):
    lengths = [mine.stop - mine.start for mine in shard_slices(length, processes)]
    row = 2 * HEADS * (DIM + WIDTH) * 8
    for rank, (_, there, both) in enumerate(found(processes, length, True)):
        ahead = lengths[(rank + 1) % processes]
        assert there["rounds"] == there["messages"] == processes - 1
        assert there["bytes"] == (length - ahead) * row
        if processes > 1:
            assert both["rounds"] == both["messages"] == 2 * processes - 1
            assert both["bytes"] - there["bytes"] == (2 * (length - ahead) + ahead) * row


def rows_that_see_nothing(rank):
    """Process 0 holds queries alone, process 1 the first key: queries of process 0 precede it."""
    query, key, value = (x[0] for x in draw(4))
    held = (query, key[:, :0], value[:, :0]) if rank == 0 else (query[:, :0], key, value)
    shards = [x.clone().requires_grad_() for x in held]
    read = ring_attention(*shards, is_causal=True)
    gradients = torch.autograd.grad(loss(read), shards)
    return [x.detach().numpy() for x in (read, *gradients)]


def test_queries_and_keys_may_be_split_differently():
    answers = in_processes(2, rows_that_see_nothing)
    inputs = [x[0].requires_grad_() for x in draw(4)]
    read = attend(*inputs, is_causal=True)
    query, key, value = torch.autograd.grad(loss(read), inputs)
    for got, whole in zip(
        [*answers[0][:2], *answers[1][2:]], (read, query, key, value), strict=True
    ):
        assert torch.allclose(torch.from_numpy(got), whole, atol=1e-12)
