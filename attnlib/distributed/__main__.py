"""Tree and ring over processes, checked against one process and counted against each other.

On one machine:

    torchrun --standalone --nproc-per-node 4 -m attnlib.distributed --keys 4096 --heads 8 --dim 64

On two machines, the same command on both, where FIRST is the name of one of them:

    torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint FIRST:29500 \\
        -m attnlib.distributed --keys 4096 --heads 8 --dim 64

Process 0 prints one JSON object. Rounds, messages and bytes are those of the busiest process; the
all-reductions of the library are not counted. Seconds are wall time, given and not judged.
The run fails where a result differs from one process by more than 1e-12 (float64). Where the
network has several devices, GLOO_SOCKET_IFNAME names the one to use.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from attnlib.checks import check_count
from attnlib.distributed.comparison import compare
from attnlib.distributed.processes import ALONE, joined, launched

TOLERANCE = 1e-12


def options() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m attnlib.distributed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--keys", type=int, default=4096, help="keys of the decoding step, in all")
    parser.add_argument("--heads", type=int, default=8, help="query heads")
    parser.add_argument("--key-heads", type=int, help="key heads (default: as many as query heads)")
    parser.add_argument("--dim", type=int, default=64, help="width of a head")
    parser.add_argument("--sequence", type=int, default=256, help="length for ring attention")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers")
    parser.add_argument("--seconds", type=float, default=60.0, help="longest wait for a process")
    parser.add_argument("--output", type=Path, help="write the JSON object here, not to the screen")
    return parser.parse_args()


def write(text: str, path: Path) -> None:
    """The whole file or nothing: written beside its place, then moved there."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


@record
def main() -> None:
    """Compare, and print or write what was found."""
    given = options()
    key_heads = given.heads if given.key_heads is None else given.key_heads
    sizes = {"keys": given.keys, "heads": given.heads, "key_heads": key_heads, "dim": given.dim}
    for name, number in sizes.items():
        check_count(name, number, least=1)
    check_count("sequence", given.sequence, least=1)
    if not launched():
        sys.exit(ALONE)
    with joined(given.seconds):
        results = compare(**sizes, sequence=given.sequence, seed=given.seed)
        rank, processes = dist.get_rank(), dist.get_world_size()
    wrong = [row["method"] for row in results if row["largest_difference"] > TOLERANCE]
    if wrong:
        raise RuntimeError(f"these differ from one process by more than {TOLERANCE}: {wrong}")
    if rank == 0:
        found = {
            "processes": processes,
            **sizes,
            "sequence": given.sequence,
            "dtype": str(torch.float64).removeprefix("torch."),
            "results": results,
        }
        text = json.dumps(found, indent=1) + "\n"
        if given.output is None:
            sys.stdout.write(text)
        else:
            write(text, given.output)


if __name__ == "__main__":
    main()
