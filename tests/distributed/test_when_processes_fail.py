"""Nothing hangs: a process that is lost, or holds something else, ends the exchange in all."""

import os
import time

import pytest
import torch
import torch.distributed as dist
from several_processes import in_processes

from attnlib.distributed import (
    all_reduce_decode,
    chain_decode,
    joined,
    ring_attention,
    ring_decode,
    tree_decode,
)

pytestmark = pytest.mark.processes

WAYS = [tree_decode, all_reduce_decode, chain_decode, ring_decode, ring_attention]
LIMIT = 10.0
SHORT = 3.0


def with_one_that_leaves(rank, way, after_the_cards):
    """Process 1 ends without a word, before it shows its card or after."""
    if rank == 1:
        if after_the_cards:
            dist.isend = dist.irecv = dist.all_reduce = lambda *_, **__: os._exit(0)
        else:
            os._exit(0)
    held = torch.ones(2, 1, 4)
    return way(held, held, held).tolist()


@pytest.mark.parametrize("after_the_cards", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_all_others_fail_where_one_process_leaves(way, after_the_cards):
    began = time.monotonic()
    answers = in_processes(3, with_one_that_leaves, way, after_the_cards, seconds=LIMIT)
    assert answers[1] is None
    for rank in (0, 2):
        assert isinstance(answers[rank], ConnectionError), answers[rank]
        assert f"process {rank} of 3 lost" in str(answers[rank])
    assert time.monotonic() - began < 30


def with_one_that_is_silent(rank):
    if rank == 1:
        time.sleep(SHORT + 2)
        return "slept"
    held = torch.ones(2, 1, 4)
    return tree_decode(held, held, held).tolist()


def test_nobody_waits_longer_than_the_time_limit_for_a_silent_process():
    answers = in_processes(2, with_one_that_is_silent, seconds=SHORT)
    assert isinstance(answers[0], ConnectionError) and answers[1] == "slept"


def with_something_else(rank, way, change):
    """All hold the same but process 1, which changes one of its tensors first."""
    tensors = {name: torch.ones(2, 3, 4) for name in ("query", "key", "value")}
    options = {}
    if rank == 1:
        change(tensors, options)
    return way(*tensors.values(), **options).tolist()


def another_type(tensors, options):
    tensors.update({name: tensor.double() for name, tensor in tensors.items()})


def another_width(tensors, options):
    tensors["query"] = tensors["key"] = torch.ones(2, 3, 5)


def another_width_of_values(tensors, options):
    tensors["value"] = torch.ones(2, 3, 5)


def other_heads(tensors, options):
    tensors.update({name: torch.ones(3, 3, 4) for name in tensors})


def another_scale(tensors, options):
    options["scale"] = 2.0


def fewer_values(tensors, options):
    tensors["value"] = torch.ones(2, 2, 4)


CHANGES = [
    (another_type, "query must be alike in all processes: process 0 has torch.float32"),
    (another_width, "query must be alike in all processes"),
    (another_width_of_values, "value must be alike in all processes"),
    (other_heads, "query must be alike in all processes"),
    (another_scale, "scale must be alike in all processes: process 0 has None, process 1 has 2.0"),
    (fewer_values, "in process 1: value must have one row for each key"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
@pytest.mark.parametrize("way", [tree_decode, ring_attention])
def test_what_does_not_fit_is_named_in_every_process_before_anything_travels(way, change, message):
    answers = in_processes(2, with_something_else, way, change)
    for answer in answers:
        assert isinstance(answer, ValueError), answer
        assert message in str(answer)


def other_numbers(tensors, options):
    tensors["query"] = tensors["query"] + 1e-3


def test_a_decoding_query_with_other_numbers_is_named():
    for answer in in_processes(2, with_something_else, tree_decode, other_numbers):
        assert isinstance(answer, ValueError) and "with checksum" in str(answer)


def causal_here_alone(tensors, options):
    options["is_causal"] = True


def test_a_ring_that_is_causal_in_one_process_alone_is_named():
    for answer in in_processes(2, with_something_else, ring_attention, causal_here_alone):
        assert isinstance(answer, ValueError)
        assert "is_causal must be alike in all processes" in str(answer)


def test_outside_torchrun_the_command_is_shown(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RuntimeError, match="torchrun --standalone --nproc-per-node"), joined():
        pass


@pytest.mark.parametrize("seconds", [0, -1.0])
def test_a_time_limit_must_be_positive(seconds):
    with pytest.raises(ValueError, match="seconds must be positive"), joined(seconds):
        pass
