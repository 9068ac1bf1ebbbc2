"""Joining the processes that torchrun starts, and starting them from Python."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from attnlib.checks import check_count

ALONE = (
    "there are no other processes to work with: start this with torchrun, for example\n"
    "    torchrun --standalone --nproc-per-node 4 -m attnlib.distributed"
)

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
"""The network device by which the processes of one machine reach each other."""


def launched() -> bool:
    """Whether torchrun started this process."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ)


@contextmanager
def joined(seconds: float = 60.0) -> Iterator[None]:
    """Be one of the processes of a torchrun while the block lasts.

    No exchange inside waits longer than `seconds` for another process. Raises RuntimeError outside
    torchrun, ConnectionError where not all processes join, ValueError for a time limit that is not
    positive.
    """
    if not seconds > 0:
        raise ValueError(f"seconds must be positive, got {seconds}")
    if not launched():
        raise RuntimeError(ALONE)
    try:
        dist.init_process_group("gloo", timeout=timedelta(seconds=seconds))
    except RuntimeError as error:
        raise ConnectionError(f"not all processes joined in {seconds} seconds ({error})") from error
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
    time limit of its processes at most. Raises RuntimeError with the errors of the processes where
    it fails, TimeoutError where it does not end in time.
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
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr"]
    command += ["127.0.0.1", f"--nproc-per-node={processes}", *program]
    environment = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": LOOPBACK} | os.environ
    # Into files: a pipe would stay open for as long as any of the processes holds it.
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as errors:
        launcher = subprocess.Popen(command, env=environment, stdout=printed, stderr=errors)
        try:
            launcher.wait(timeout=3 * seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError(
                f"{processes} processes did not end within {3 * seconds} seconds"
            ) from None
        finally:
            stop(launcher)
        printed.seek(0)
        errors.seek(0)
        if launcher.returncode != 0:
            raise failure(launcher.returncode, errors.read())
        return printed.read()


def stop(launcher: subprocess.Popen, patience: float = 60.0) -> None:
    """End a torchrun that still runs: asked to stop, it stops its processes first."""
    if launcher.poll() is None:
        launcher.terminate()
        try:
            launcher.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            launcher.kill()
            launcher.wait()


def failure(code: int, text: str) -> RuntimeError:
    """The error of a torchrun that ended with `code`: what its processes named, then all."""
    return RuntimeError(f"torchrun ended with {code}:\n{named_errors(text)}\n\n{text}")


def named_errors(text: str) -> str:
    """The lines of a longer output that name an error of a process, each once."""
    lines = (line.split("]: ", 1)[-1] for line in text.splitlines())
    return "\n".join(dict.fromkeys(line for line in lines if re.match(r"\w+Error: ", line)))
