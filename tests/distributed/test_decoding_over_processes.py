"""Decoding over a group of processes: every way gives the read of one, and costs what it says."""

import math

import pytest
import torch
import torch.distributed as dist
from several_processes import in_processes

from attnlib import attend
from attnlib.distributed import Traffic, all_reduce_decode, chain_decode, ring_decode, tree_decode
from attnlib.memory.tree import shard_slices

pytestmark = pytest.mark.processes

HEADS, KEY_HEADS, QUERIES, DIM, WIDTH = 4, 2, 2, 6, 5
COUNTED = (tree_decode, chain_decode, ring_decode)
WAYS = (*COUNTED, all_reduce_decode)


def draw(keys, dtype=torch.float64, key_heads=KEY_HEADS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((HEADS, QUERIES, DIM), (key_heads, keys, DIM), (key_heads, keys, WIDTH))
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes
    ]


def decode_in_every_way(rank, keys, dtype):
    """By name of the way: the read of this process as an array, and its traffic."""
    query, key, value = draw(keys, dtype)
    mine = shard_slices(keys, dist.get_world_size())[rank]
    found = {}
    for decode in WAYS:
        traffic = Traffic()
        counted = {"traffic": traffic} if decode in COUNTED else {}
        read = decode(query, key[:, mine], value[:, mine], enable_gqa=True, **counted)
        found[decode.__name__] = (str(read.dtype), read.double().numpy(), vars(traffic))
    return found


@pytest.fixture(scope="module")
def found():
    """What each process found, by number of processes and of keys; each group runs once."""
    kept = {}

    def of(processes, keys, dtype=torch.float64):
        at = (processes, keys, dtype)
        if at not in kept:
            kept[at] = in_processes(processes, decode_in_every_way, keys, dtype)
        for answer in kept[at]:
            assert isinstance(answer, dict), answer
        return kept[at]

    return of


def expected(keys, dtype=torch.float64):
    query, key, value = (x.double() for x in draw(keys, dtype))
    return attend(query, key, value, enable_gqa=True)


CASES = [(1, 15), (2, 63), (3, 100), (4, 257), (5, 63), (8, 100)]


@pytest.mark.parametrize(("processes", "keys"), CASES)
def test_every_way_gives_the_read_of_one_process_in_every_process(found, processes, keys):
    whole = expected(keys)
    for rank, answer in enumerate(found(processes, keys)):
        for name, (_, read, _) in answer.items():
            difference = (torch.from_numpy(read) - whole).abs().max()
            assert difference < 1e-12, f"{name} in process {rank}: {difference}"


@pytest.mark.parametrize(("processes", "keys"), [(4, 1), (3, 2), (3, 0)])
def test_processes_without_keys_take_part(found, processes, keys):
    whole = expected(keys)
    for answer in found(processes, keys):
        for name, (_, read, _) in answer.items():
            assert torch.allclose(torch.from_numpy(read), whole, atol=1e-12), name


@pytest.mark.parametrize(("processes", "keys"), CASES)
@pytest.mark.parametrize("name", ["tree_decode", "all_reduce_decode"])
def test_all_processes_hold_the_same_bits(found, processes, keys, name):
    reads = [answer[name][1] for answer in found(processes, keys)]
    assert all((read == reads[0]).all() for read in reads)


@pytest.mark.parametrize(("processes", "keys"), CASES)
def test_the_tree_takes_a_logarithm_of_rounds(found, processes, keys):
    traffic = [answer["tree_decode"][2] for answer in found(processes, keys)]
    doubling = math.floor(math.log2(processes))
    odd = processes != 2**doubling
    assert max(of["rounds"] for of in traffic) == doubling + 2 * odd
    assert doubling + 2 * odd == math.ceil(math.log2(processes)) + odd
    assert max(of["messages"] for of in traffic) == doubling + odd


@pytest.mark.parametrize(("processes", "keys"), CASES)
def test_the_tree_sends_one_part_a_message_whatever_the_number_of_keys(found, processes, keys):
    part = HEADS * QUERIES * (WIDTH + 2) * 8
    for answer in found(processes, keys):
        of = answer["tree_decode"][2]
        assert of["bytes"] == of["messages"] * part


@pytest.mark.parametrize(("processes", "keys"), CASES)
def test_the_chain_sends_a_part_to_the_next_in_each_of_p_minus_one_rounds(found, processes, keys):
    part = HEADS * QUERIES * (WIDTH + 2) * 8
    for answer in found(processes, keys):
        of = answer["chain_decode"][2]
        assert of == {
            "rounds": processes - 1,
            "messages": processes - 1,
            "bytes": (processes - 1) * part,
        }


@pytest.mark.parametrize(("processes", "keys"), CASES)
def test_the_ring_sends_every_block_but_that_of_the_next_process(found, processes, keys):
    lengths = [mine.stop - mine.start for mine in shard_slices(keys, processes)]
    row = KEY_HEADS * (DIM + WIDTH) * 8
    for rank, answer in enumerate(found(processes, keys)):
        of = answer["ring_decode"][2]
        assert of["rounds"] == of["messages"] == processes - 1
        assert of["bytes"] == (keys - lengths[(rank + 1) % processes]) * row
    total = sum(answer["ring_decode"][2]["bytes"] for answer in found(processes, keys))
    assert total == (processes - 1) * keys * row


def test_half_precision_is_merged_in_float32(found):
    whole = expected(100, torch.bfloat16)
    for answer in found(3, 100, torch.bfloat16):
        for name, (dtype, read, _) in answer.items():
            assert dtype == "torch.bfloat16"
            assert (torch.from_numpy(read) - whole).abs().max() < 0.01, name
        assert answer["tree_decode"][2]["bytes"] % (HEADS * QUERIES * (WIDTH + 2) * 4) == 0
        assert answer["ring_decode"][2]["bytes"] % (KEY_HEADS * (DIM + WIDTH) * 2) == 0


def decode_in_a_group_of_the_last_two(rank):
    group = dist.new_group([1, 2])
    if rank == 0:
        return None
    query, key, value = draw(9)
    mine = shard_slices(9, 2)[dist.get_rank(group)]
    shards = (query, key[:, mine], value[:, mine])
    return [decode(*shards, enable_gqa=True, group=group).numpy() for decode in WAYS]


def test_a_part_of_the_processes_may_be_a_group_of_its_own():
    nobody, *members = in_processes(3, decode_in_a_group_of_the_last_two)
    assert nobody is None
    for reads in members:
        assert not isinstance(reads, Exception), reads
        for read in reads:
            assert torch.allclose(torch.from_numpy(read), expected(9), atol=1e-12)
