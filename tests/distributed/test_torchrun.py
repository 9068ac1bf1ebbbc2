"""The command of the book under torchrun: each test starts processes that import torch anew."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from attnlib.distributed import run
from attnlib.distributed.processes import named_errors, start

pytestmark = pytest.mark.processes

FAILING = Path(__file__).with_name("one_process_fails.py")


@pytest.fixture(scope="module")
def found():
    return run(3, keys=100, heads=4, key_heads=2, dim=8, sequence=31, seconds=30)


def test_every_method_agrees_with_one_process(found):
    assert found["processes"] == 3 and found["dtype"] == "float64"
    methods = [row["method"] for row in found["results"]]
    assert methods == [
        "tree_decode",
        "chain_decode",
        "ring_decode",
        "all_reduce_decode",
        "ring_attention",
        "ring_attention, backward",
    ]
    assert all(0 <= row["largest_difference"] < 1e-12 for row in found["results"])


def test_rounds_and_bytes_are_those_of_the_busiest_process(found):
    counted = {
        row["method"]: (row["rounds"], row["messages"], row["bytes"]) for row in found["results"]
    }
    part, block = 4 * (8 + 2) * 8, 34 * 2 * (8 + 8) * 8  # of 33, 33 and 34 keys the longest
    assert counted["tree_decode"] == (3, 2, 2 * part)
    assert counted["chain_decode"] == (2, 2, 2 * part)
    assert counted["ring_decode"] == (2, 2, block + 33 * 2 * 16 * 8)
    assert counted["all_reduce_decode"] == (None, None, None)
    stretch = 4 * (8 + 8) * 8  # one token of the 10, 10 and 11 that the processes hold
    assert counted["ring_attention"] == (2, 2, 21 * stretch)
    assert counted["ring_attention, backward"] == (3, 3, max(2 * 21 + 10, 2 * 20 + 11) * stretch)


def test_a_process_that_leaves_ends_the_run_with_an_error_that_says_so():
    began = time.monotonic()
    lost = r"ConnectionError: (process \d of 3 lost|not all processes joined)"
    with pytest.raises(RuntimeError, match=lost):
        start([str(FAILING), "leaves", "5"], 3, 10)
    assert time.monotonic() - began < 30


def test_a_program_that_does_not_end_is_stopped(tmp_path):
    endless = tmp_path / "endless.py"
    endless.write_text("import time\ntime.sleep(600)\n")
    with pytest.raises(TimeoutError, match="1 processes did not end within 6"):
        start([str(endless)], 1, 2.0)


def test_the_module_without_torchrun_shows_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "attnlib.distributed"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "torchrun --standalone --nproc-per-node" in done.stderr
    assert "Traceback" not in done.stderr


def test_errors_are_found_in_a_long_output():
    text = "\n".join(["[rank0]: ValueError: a", "noise", "  KeyError: no", "ValueError: a"])
    assert named_errors(text) == "ValueError: a"
