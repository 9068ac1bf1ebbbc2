"""Joining the processes that torchrun starts, and starting them from Python."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from attnlib.checks import check_count

COMMAND = "torchrun --standalone --nproc-per-node 4 -m attnlib.distributed"


@contextmanager
def joined(seconds: float = 60.0) -> Iterator[None]:
    """Be one of the processes of a torchrun while the block lasts.

    No exchange inside waits longer than `seconds` for another process. Raises RuntimeError outside
    torchrun, ValueError for a time limit that is not positive.
    """
    if not seconds > 0:
        raise ValueError(f"seconds must be positive, got {seconds}")
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ):
        raise RuntimeError(
            "there are no other processes to work with: start this with torchrun, for example\n"
            f"    {COMMAND}"
        )
    dist.init_process_group("gloo", timeout=timedelta(seconds=seconds))
    try:
        yield
    finally:
        dist.destroy_process_group()


def run(
    processes: int,
    *,
    keys: int = 4096,
    heads: int = 8,
    key_heads: int | None = None,
    dim: int = 64,
    sequence: int = 256,
    seed: int = 0,
    seconds: float = 60.0,
) -> dict:
    """What `python -m attnlib.distributed` finds with so many processes on this machine.

    Starts torchrun on a free port of the loopback device and waits for it, for three times the
    time limit of its processes at most. Raises RuntimeError with the end of what it wrote where it
    fails, TimeoutError where it does not end in time.
    """
    check_count("processes", processes, least=1)
    options = {
        "keys": keys,
        "heads": heads,
        "key-heads": heads if key_heads is None else key_heads,
        "dim": dim,
        "sequence": sequence,
        "seed": seed,
        "seconds": seconds,
    }
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        arguments = [f"--{name}={value}" for name, value in options.items()]
        start(["-m", "attnlib.distributed", *arguments, f"--output={output}"], processes, seconds)
        return json.loads(output.read_text(encoding="utf-8"))


def start(program: list[str], processes: int, seconds: float) -> str:
    """Run a program (a file or `-m module`, and arguments) under torchrun; what it prints.

    Raises RuntimeError where it fails, TimeoutError after three times `seconds`.
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr"]
    launcher += ["127.0.0.1", f"--nproc-per-node={processes}", *program]
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    environment = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": loopback} | os.environ
    started = subprocess.Popen(
        launcher,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        printed, errors = started.communicate(timeout=3 * seconds)
    except subprocess.TimeoutExpired:
        raise TimeoutError(
            f"{processes} processes did not end within {3 * seconds} seconds"
        ) from None
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
            started.communicate()
    if started.returncode != 0:
        raise RuntimeError(f"torchrun ended with {started.returncode}:\n{errors[-4000:]}")
    return printed
